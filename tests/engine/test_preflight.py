"""The preflight: vocabularies, chat templates side by side, and some updates on one batch that are thrown away."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from engine.check import CheckResult, check
from engine.encode import completion_ids
from engine.errors import RunError
from engine.events import StepDone, Warned
from engine.pairing import pair_findings, shared_vocabulary
from engine.setup import fit_lengths, load_data, load_models
from engine.trial import trial
from tests.engine.models import CPU, TINY, tiny_document, tiny_spec, write_random_model
from tests.engine.running import quick_spec, train_here

FRAME = "{% for m in messages %}m0 {{ m['content'] }} m1{% endfor %}"
OTHER_FRAME = "{% for m in messages %}m2 {{ m['content'] }} m3{% endfor %}"


def with_template(folder: Path, name: str, template: str) -> str:
    """A copy of a tiny model with this chat template."""
    path = Path(shutil.copytree(TINY / "models" / name, folder / name))
    (path / "chat_template.jinja").write_text(template)
    return str(path)


def chat_check(folder: Path, student: str, teacher: str, **prompts: object) -> CheckResult:
    spec = tiny_spec(
        student={"path": with_template(folder, "student-plan", student)},
        teacher={"path": with_template(folder, "teacher", teacher)},
        prompts={"path": "builtin:tiny/data/train.jsonl", "template": "chat", **prompts},
    )
    return check(spec)


def with_more_tokens(folder: Path, seed: int, tokens: list[str]) -> Path:
    """A random model whose tokenizer has these tokens behind those of the tiny pair."""
    write_random_model(folder, seed, vocabulary=96)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(tokens)
    tokenizer.save_pretrained(folder)
    return folder


def test_some_updates_on_one_batch_show_a_loss_that_falls() -> None:
    result = check(tiny_spec())
    assert result.findings == []
    first, last = result.facts["trial_first_loss"], result.facts["trial_last_loss"]
    assert isinstance(first, float)
    assert isinstance(last, float)
    assert 0 < last < first
    assert result.facts["trial_rollouts"] == 4
    assert result.facts["trial_horizon_tokens"] == 8


def test_a_loss_that_rises_is_a_warning_with_advice() -> None:
    optimizer = tiny_document()["optimizer"]
    assert isinstance(optimizer, dict)
    result = check(tiny_spec(optimizer=optimizer | {"learning_rate": 1.0, "warmup_steps": 0}))
    (finding,) = result.findings
    assert (finding.field, finding.severity) == ("optimizer.learning_rate", "warning")
    assert finding.message.startswith("optimizer.learning_rate is 1 and the loss on one batch went from ")
    assert finding.message.endswith(" nats in 3 updates instead of falling; try a tenth of it.")


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    spec = tiny_spec()
    student, teacher = load_models(spec, CPU, "float32")
    data = fit_lengths(spec, load_data(spec, student.tokenizer), student, teacher)
    with torch.no_grad():
        teacher.head.weight.fill_(float("nan"))
    with pytest.raises(RunError) as caught:
        trial(spec, student, teacher, data)
    assert caught.value.failure == "nan_loss"


def test_a_preflight_leaves_the_models_as_they_are() -> None:
    weights = TINY / "models" / "student-plan" / "model.safetensors"
    before = hashlib.sha256(weights.read_bytes()).hexdigest()
    first, second = check(tiny_spec()).facts, check(tiny_spec()).facts
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == before
    assert first["trial_last_loss"] == second["trial_last_loss"]


def test_tokens_that_only_one_model_has_are_cut_off_behind_the_shared_ones(tmp_path: Path) -> None:
    student = with_more_tokens(tmp_path / "student", 0, ["s0", "s1"])
    teacher = with_more_tokens(tmp_path / "teacher", 1, [])
    spec = tiny_spec(student={"path": str(student)}, teacher={"path": str(teacher)}, max_completion_tokens=32)
    result = check(spec)
    assert [one for one in result.findings if one.severity == "error"] == []
    assert result.facts["shared_vocabulary"] == 81
    models = load_models(spec, CPU, "float32")
    assert [model.head.vocabulary for model in models] == [81, 81]


def test_a_prompt_with_a_token_that_the_teacher_lacks_is_named(tmp_path: Path) -> None:
    student = with_more_tokens(tmp_path / "student", 0, ["s0"])
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "k0", "answer": "1"}\n{"prompt": "k0 s0", "answer": "1"}\n')
    spec = tiny_spec(student={"path": str(student)}, prompts={"path": str(path)}, max_completion_tokens=32)
    (finding,) = [one for one in check(spec).findings if one.severity == "error"]
    assert finding.field == "prompts.path"
    assert finding.message == (
        f"prompts.path: line 2 of {str(path)!r} has a token of id 81 but student and teacher share only the first 81; "
        "change the prompt or choose a teacher with the student's tokenizer."
    )


READS_COMPLETIONS: list[dict[str, object]] = [
    {"completions": {"kind": "data"}},
    {"completions": {"kind": "mixture", "otherwise": "data"}},
    {"warmup_phase": {"kind": "sft", "num_steps": 1, "source": "data"}},
]


@pytest.mark.parametrize("changes", READS_COMPLETIONS)
def test_a_completion_with_a_token_that_the_teacher_lacks_is_named(changes: dict[str, object], tmp_path: Path) -> None:
    student, path = with_more_tokens(tmp_path / "student", 0, ["s0"]), tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "k0", "completion": "m1"}\n{"prompt": "k1", "completion": "m1 s0"}\n')
    spec = quick_spec(student={"path": str(student)}, prompts={"path": str(path)}, **changes)
    (finding,) = [one for one in check(spec).findings if one.severity == "error"]
    assert finding.field == "prompts.path"
    assert finding.message == (
        f"prompts.path: line 2 of {str(path)!r} has a completion with a token of id 81 but student and teacher share only the "
        "first 81; change the completion or choose a teacher with the student's tokenizer."
    )
    with pytest.raises(RunError) as caught:
        train_here(spec, tmp_path / "run")
    assert (caught.value.failure, caught.value.findings) == ("bad_data", [finding])


def test_a_completion_may_have_such_a_token_where_nobody_reads_it(tmp_path: Path) -> None:
    student, path = with_more_tokens(tmp_path / "student", 0, ["s0"]), tmp_path / "prompts.jsonl"
    ending = AutoTokenizer.from_pretrained(student).eos_token
    rows = [{"prompt": "k0", "completion": "m1 " * 24 + "s0"}, {"prompt": "k1", "completion": f"m1 {ending} s0"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"student": {"path": str(student)}, "prompts": {"path": str(path)}}
    for source in ({"kind": "data"}, {"kind": "student"}):
        result = check(quick_spec(**changes, completions=source))
        assert [one for one in result.findings if one.severity == "error"] == []


def test_a_given_completion_ends_with_an_end_of_text_token_that_both_models_have(tmp_path: Path) -> None:
    student, path = with_more_tokens(tmp_path / "student", 0, ["s0"]), tmp_path / "prompts.jsonl"
    tokenizer = AutoTokenizer.from_pretrained(student)
    tokenizer.eos_token = "s0"  # beside that of generation_config.json, which the teacher has
    tokenizer.save_pretrained(student)
    path.write_text('{"prompt": "k0", "completion": "m1"}\n')
    spec = quick_spec(student={"path": str(student)}, prompts={"path": str(path)}, completions={"kind": "data"})
    model, _ = load_models(spec, CPU, "float32")
    assert model.eos_token_ids == {2, 81}
    assert completion_ids(model, "m1")[1:] == [2]
    assert [event.step for event in train_here(spec, tmp_path / "run") if isinstance(event, StepDone)] == [*range(1, 7)]


def test_a_completion_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "k0", "completion": "m1"}\n{"prompt": "k1", "completion": "m1 \\ud800"}\n')
    (finding,) = check(quick_spec(prompts={"path": str(path)}, completions={"kind": "data"})).findings
    assert finding.message.startswith(
        f"prompts.path: line 2 of {str(path)!r} has a completion that the student's tokenizer cannot encode ("
    )


def test_a_token_in_the_middle_that_one_model_lacks_is_a_different_vocabulary(tmp_path: Path) -> None:
    spec = tiny_spec()
    student, teacher = load_models(spec, CPU, "float32")
    folder = Path(shutil.copytree(TINY / "models" / "teacher", tmp_path / "teacher"))
    document = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    del vocabulary["k1"]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    other = load_models(tiny_spec(teacher={"path": str(TINY / "models" / "teacher")}), CPU, "float32")[1]
    object.__setattr__(other, "tokenizer", AutoTokenizer.from_pretrained(folder))
    assert shared_vocabulary(student, teacher) == 81
    (finding,) = pair_findings(student, other)
    assert "(1 of 81 ids differ: 18 is 'k1' and nothing)" in finding.message


def test_chats_of_both_models_stand_side_by_side(tmp_path: Path) -> None:
    result = chat_check(tmp_path, FRAME, OTHER_FRAME)
    preview, *others = result.previews
    assert preview.student == ["m0", "k3", "k2", "c2", "c3", "c3", "5", "N14", "|", "m1"]
    assert preview.teacher == ["m2", *preview.student[1:-1], "m3"]
    assert preview.place == "line 1 of 'builtin:tiny/data/train.jsonl'"
    assert len(others) == 2
    (finding,) = result.findings
    assert (finding.field, finding.severity) == ("prompts.template", "warning")
    assert "the teacher's chat template differs from the student's" in finding.message


def test_a_teacher_whose_template_fails_does_not_stop_the_check(tmp_path: Path) -> None:
    result = chat_check(tmp_path, FRAME, "{{ raise_exception('not me') }}")
    assert result.previews[0].teacher == []
    assert result.previews[0].problem == "its template fails: not me"
    assert "trial_first_loss" in result.facts


def test_a_chat_template_that_is_left_unused_is_a_warning(tmp_path: Path) -> None:
    result = chat_check(tmp_path, FRAME, FRAME, template="plain")
    assert [(one.field, one.severity) for one in result.findings] == [("prompts.template", "warning")]
    assert "'plain' but the student has a chat template" in result.findings[0].message
    assert result.facts["trial_rollouts"] == 4, "it is tried all the same"


def test_thinking_that_a_template_does_not_know_is_a_warning_in_preflight_and_run(tmp_path: Path) -> None:
    message = (
        "prompts.enable_thinking is false but the student's chat template does not look at it, so that it changes nothing; "
        "leave it empty."
    )
    result = chat_check(tmp_path, FRAME, FRAME, enable_thinking=False)
    assert [(one.field, one.message) for one in result.findings] == [("prompts.enable_thinking", message)]
    spec = quick_spec(
        student={"path": str(tmp_path / "student-plan")},
        prompts={"path": "builtin:tiny/data/train.jsonl", "template": "chat", "enable_thinking": False},
        num_steps=2,
    )
    events = train_here(spec, tmp_path / "run")
    assert message in [event.message for event in events if isinstance(event, Warned)]
