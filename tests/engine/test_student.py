"""The one way the student's weights change."""

import math

import pytest
import torch

from engine.errors import RunError
from engine.rollout import RolloutRequest
from engine.sampler import Sampler
from engine.student import Student
from engine.update import Update
from tests.engine.models import tiny_model, tiny_spec

TEACHER = tiny_model("teacher", "teacher")


def update(student: Student, *, horizon: int = 8, step: int = 0) -> Update:
    ids = student.model.tokenizer("k3 k2 c2 c3 c3 5 N14 |")["input_ids"]
    rollouts = Sampler(student.model, 0, 1.0).sample([RolloutRequest(0, ids, 8, 1)], horizon)
    return student.update(rollouts, TEACHER, step)


def test_the_logprobs_of_sampler_and_training_pass_agree() -> None:
    assert update(Student(tiny_model(), tiny_spec())).logprob_gap < 1e-5


def test_position_loss_is_the_mean_by_position_and_the_loss_the_mean_over_tokens() -> None:
    done = update(Student(tiny_model(), tiny_spec()))
    assert done.position_count == [8] * 8
    assert done.num_tokens == 64
    assert done.loss == pytest.approx(sum(done.position_loss) / 8, rel=1e-6)


def test_flops_are_those_of_the_tokens_and_padding_counts_as_executed_only() -> None:
    student = Student(tiny_model(), tiny_spec())
    done = update(student)
    mine, theirs = student.model.shape, TEACHER.shape
    assert done.flops.student_forward == pytest.approx(8 * mine.forward(17, 8))
    assert done.flops.student_backward == pytest.approx(16 * mine.forward(17, 8))
    assert done.flops.teacher == pytest.approx(8 * theirs.forward(17, 8))
    assert done.executed.model_dump() == pytest.approx(done.flops.model_dump())


def test_the_gradient_is_scaled_down_to_the_limit() -> None:
    free = Student(tiny_model(), tiny_spec(optimizer={"learning_rate": 1.0, "warmup_steps": 0, "max_grad_norm": 1e6}))
    held = Student(tiny_model(), tiny_spec(optimizer={"learning_rate": 1.0, "warmup_steps": 0, "max_grad_norm": 1e-3}))
    lengths = []
    for student in (free, held):
        before = [p.detach().clone() for p in student.parameter_names]
        student.optimizer = torch.optim.SGD(list(student.parameter_names), lr=1.0)
        norm = update(student).grad_norm
        moved = [(p.detach() - b).norm() ** 2 for p, b in zip(student.parameter_names, before, strict=True)]
        lengths.append((norm, math.sqrt(sum(moved))))
    assert lengths[0][0] == pytest.approx(lengths[1][0])
    assert lengths[0][1] == pytest.approx(lengths[0][0], rel=1e-3)
    assert lengths[1][1] == pytest.approx(1e-3, rel=1e-3)


def test_norms_are_not_decayed_and_matrices_are() -> None:
    student = Student(tiny_model(), tiny_spec(optimizer={"weight_decay": 0.1, "warmup_steps": 0}))
    decayed, kept = student.optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all("norm" in student.parameter_names[p] for p in kept["params"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_named(bad: float) -> None:
    student = Student(tiny_model(), tiny_spec())
    update(student)
    teacher = tiny_model("teacher", "teacher")
    with torch.no_grad():
        teacher.module.get_decoder().layers[0].mlp.up_proj.weight[0, 0] = bad
    before = [p.detach().clone() for p in student.parameter_names]
    ids = student.model.tokenizer("k3 k2 c2 c3 c3 5 N14 |")["input_ids"]
    rollouts = Sampler(student.model, 0, 1.0).sample([RolloutRequest(0, ids, 2, 1)], 4)
    with pytest.raises(RunError) as caught:
        student.update(rollouts, teacher, 6)
    assert caught.value.failure == "nan_loss"
    assert caught.value.message.startswith("Step 7: loss nan")
    assert "lower optimizer.learning_rate" in caught.value.message
    assert all(torch.equal(p, b) for p, b in zip(student.parameter_names, before, strict=True))
