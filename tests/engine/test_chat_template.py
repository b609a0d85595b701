"""Chat templates are programs of strangers: they write the frame of a chat, and can do nothing else."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from engine.chat_template import TemplateFailed, rendered_chats
from engine.check import check
from engine.encode import encoded, token_ids_of
from engine.errors import RunError
from engine.findings import findings_of
from engine.prompt_spec import PromptSpec
from engine.prompts import PromptRow
from engine.spec import RunSpec
from tests.engine.models import tiny_document, tiny_model, tiny_spec

PLAIN_FRAME = "{% for m in messages %}m0 {{ m['content'] }} m1 {% endfor %}{% if add_generation_prompt %}m2{% endif %}"
THINKING_FRAME = PLAIN_FRAME + "{% if enable_thinking is defined and not enable_thinking %} m3{% endif %}"


def tokenizer_with(template: str) -> PreTrainedTokenizerBase:
    tokenizer = tiny_model().tokenizer
    tokenizer.chat_template = template
    return tokenizer


def spec_with(**prompts: object) -> RunSpec:
    return tiny_spec(prompts={"path": "builtin:tiny/data/train.jsonl", "template": "chat", **prompts})


def chat(template: str, **options: object) -> str:
    (text,) = rendered_chats(tokenizer_with(template), spec_with(**options).prompts, ["k0"])
    return text


def test_the_frame_is_that_of_transformers() -> None:
    tokenizer = tokenizer_with(PLAIN_FRAME)
    prompts = ["k0 k1", "c0", "k2 c3"]
    for prompt, ids in zip(prompts, token_ids_of(spec_with(), tokenizer, prompts), strict=True):
        talk = [{"role": "user", "content": prompt}]
        assert ids == tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=False)


def test_a_system_message_stands_before_the_prompt() -> None:
    assert chat(PLAIN_FRAME) == "m0 k0 m1 m2"
    assert chat(PLAIN_FRAME, system_message="c1 c2") == "m0 c1 c2 m1 m0 k0 m1 m2"


def test_thinking_is_switched_only_where_the_template_knows_it() -> None:
    assert chat(THINKING_FRAME) == chat(THINKING_FRAME, enable_thinking=True) == "m0 k0 m1 m2"
    assert chat(THINKING_FRAME, enable_thinking=False) == "m0 k0 m1 m2 m3"
    assert chat(PLAIN_FRAME, enable_thinking=False) == "m0 k0 m1 m2"


@pytest.mark.parametrize("field", ["system_message", "enable_thinking"])
def test_options_of_a_chat_without_a_chat_are_refused(field: str) -> None:
    value: Any = "be brief" if field == "system_message" else False
    document = tiny_document(prompts={"path": "builtin:tiny/data/train.jsonl", field: value})
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(document)
    (finding,) = findings_of(caught.value, document)
    assert finding.field == "prompts"
    assert finding.message == (
        f"prompts contradicts itself: {field} is set but template is 'plain'; set template to chat or leave {field} empty."
    )


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
        "{{ ('{0.__class__.__init__.__globals__}'|attr('format'))(messages) }}",
        "{% set _ = messages.append('x') %}{{ messages }}",
        "{{ lipsum.__globals__['os'].popen('touch CANARY') }}",
    ],
)
@pytest.mark.attack(7)
def test_a_hostile_template_does_not_escape(escape: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(TemplateFailed, match=r"unsafe|undefined|not safely callable|no attribute"):
        chat(escape.replace("CANARY", str(canary)))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("hostile", "problem"),
    [
        ("{{ 'x' * 3000000 }}", "it writes 3000000 characters, the limit is 1000002"),
        ("{{ 'x' * 10**11 }}", "MemoryError"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ 9 ** (9 ** 9) }}", r"needs more than \d+ s or more memory|MemoryError|too large"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            r"it needs more than \d+ s or more memory",
        ),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for", "unexpected|Expected"),
        ("{{ x." + "a." * 200_000 + "a }}", "it is larger than 262144 bytes"),
    ],
)
@pytest.mark.attack(7)
def test_a_hostile_template_ends_in_a_sentence(hostile: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.chat_template._SECONDS", 4)
    with pytest.raises(TemplateFailed, match=problem):
        chat(hostile)


def test_a_template_that_fails_is_a_finding_with_its_row() -> None:
    rows = [PromptRow("k0", place="line 1 of 'p.jsonl'"), PromptRow("k1", place="line 2 of 'p.jsonl'")]
    template = (
        "{% if messages[-1]['content'] == 'k1' or messages | length > 1 %}{{ raise_exception('only k0') }}{% endif %}m0"
    )
    with pytest.raises(RunError) as caught:
        encoded(spec_with(), tokenizer_with(template), rows, "prompts.path")
    assert caught.value.message == (
        "prompts.template is 'chat' but the student's chat template fails on line 2 of 'p.jsonl' (only k0); "
        "set it to plain or correct the template."
    )
    with pytest.raises(RunError) as caught:
        encoded(spec_with(system_message="c0"), tokenizer_with(template), rows, "prompts.path")
    assert caught.value.findings[0].field == "prompts.system_message"


def test_a_tokenizer_without_a_template_is_refused() -> None:
    (finding,) = check(spec_with()).findings
    assert finding.field == "prompts.template"
    assert finding.message == (
        "prompts.template is 'chat' but the student's tokenizer has no chat template; set it to plain."
    )


def test_the_spec_keeps_its_defaults() -> None:
    assert PromptSpec(path="x").model_dump() == {
        "path": "x", "prompt_column": "prompt", "answer_column": "answer", "completion_column": "completion", "tag_column": "tag",
        "template": "plain", "system_message": None, "enable_thinking": None, "max_prompt_tokens": None, "overlong": "refuse",
    }  # fmt: skip
