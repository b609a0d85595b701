"""Any causal language model with a key/value cache is sampled, trained and resumed; others are refused by name.

The proof that an architecture is used rightly: the log-probabilities of the sampler, which pads prompts on the left and
decodes token by token, are those of the training pass, which sees whole texts.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.errors import RunError
from engine.events import Warned
from engine.language_model import LanguageModel, load_language_model
from engine.model_spec import ModelSpec
from engine.rollout import RolloutRequest
from engine.sampler import Sampler
from engine.student import Student
from tests.engine.families import FAMILIES, STATEFUL, write_family
from tests.engine.models import CPU, tiny_spec
from tests.engine.running import quick_spec, steps_of, train_here

REQUESTS = [RolloutRequest(0, [1, 5, 6, 7, 8, 9], 2, 1), RolloutRequest(1, [1, 7], 2, 1)]


def opened(folder: Path) -> LanguageModel:
    return load_language_model(ModelSpec(path=str(folder)), "student", CPU, "float32")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sampler_and_the_training_pass_agree(family: str, tmp_path: Path) -> None:
    write_family(tmp_path / "student", family)
    write_family(tmp_path / "teacher", family, seed=1)
    student, teacher = opened(tmp_path / "student"), opened(tmp_path / "teacher")
    rollouts = Sampler(student, seed=0, temperature=1.0).sample(REQUESTS, 24)
    before = {name: weight.clone() for name, weight in student.module.named_parameters()}
    update = Student(student, tiny_spec()).update(rollouts, teacher, 0)
    assert update.logprob_gap < 1e-5
    assert update.loss > 0
    changed = {n for n, weight in student.module.named_parameters() if not torch.equal(weight, before[n])}
    assert len(changed) > len(before) / 2


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3_moe"])
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_not_stopped(family: str, tmp_path: Path) -> None:
    write_family(tmp_path / "student", family)
    write_family(tmp_path / "teacher", family, seed=1)
    spec = quick_spec(
        student={"path": str(tmp_path / "student")},
        teacher={"path": str(tmp_path / "teacher")},
        num_steps=3,
        checkpoints={"every_steps": 1, "keep_last": 3},
    )
    whole = train_here(spec, tmp_path / "whole")
    assert steps_of(whole) == [1, 2, 3]
    slow = [one for one in whole if isinstance(one, Warned) and one.code == "plain_decoding"]
    assert [f"({family})" in one.message for one in slow] == [True], "the slower way is taken with a word"
    start = tmp_path / "whole" / "attempts" / "1" / "checkpoints"
    again = train_here(spec, tmp_path / "whole", attempt=2, resume=start / "step-1")
    assert steps_of(again) == [2, 3]
    ends = [load_file(tmp_path / "whole" / "attempts" / n / "checkpoints/step-3/model.safetensors") for n in "12"]
    assert ends[0].keys() == ends[1].keys()
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, rtol=0, atol=0)
    assert opened(start / "step-3").num_parameters == opened(tmp_path / "student").num_parameters


@pytest.mark.parametrize("family", STATEFUL)
def test_a_model_without_a_cache_of_keys_is_refused_by_name(family: str, tmp_path: Path) -> None:
    write_family(tmp_path, family)
    with pytest.raises(RunError) as caught:
        opened(tmp_path)
    assert caught.value.failure == "bad_model"
    assert caught.value.findings[0].field == "student.path"
    assert f"of the architecture {family}, which " in caught.value.message
    assert caught.value.message.endswith("choose a transformer with a key/value cache.")


def test_products_are_counted_where_weights_lie_transposed_or_in_experts(tmp_path: Path) -> None:
    """By hand, of 2 layers of width 16: a GPT-2 layer has 12·16² weights; a Mixtral layer the attention (4 heads, 2 of keys),
    a router to 4 experts, and of its experts (3·16·32) the 2 that a token is sent to."""
    write_family(tmp_path / "gpt2", "gpt2")
    assert opened(tmp_path / "gpt2").shape.block_parameters == 2 * 12 * 16**2
    write_family(tmp_path / "mixtral", "mixtral")
    attention, router, expert = 2 * 16 * 16 + 2 * 16 * 8, 4 * 16, 3 * 16 * 32
    assert opened(tmp_path / "mixtral").shape.block_parameters == 2 * (attention + router + 2 * expert)


def test_a_hub_id_may_carry_its_revision() -> None:
    assert (ModelSpec(path="org/name@v1.0").location, ModelSpec(path="org/name@v1.0").hub_revision) == (
        "org/name",
        "v1.0",
    )
    assert ModelSpec(path="org/name", revision="main").hub_revision == "main"
    assert ModelSpec(path="/models/a@b").location == "/models/a@b"
    assert ModelSpec(path="org/name").hub_revision is None
