"""The warm-up phase: cross-entropy on given completions, in steps of the run like all others."""

import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine import cross_entropy, fused_loss
from engine.cross_entropy import fused_cross_entropy
from engine.evaluate import EncodedPrompt
from engine.events import PhaseChanged, RunEvent, StepDone, TailMeasured
from engine.exit_codes import DONE
from engine.findings import findings_of
from engine.flops import FlopLedger, rollout_flops, student_flops
from engine.language_model import OutputHead
from engine.prompts import PromptRow
from engine.rollout import Rollout
from engine.spec import RunSpec
from engine.student import Student
from engine.warmup import Warmup, WarmupStep
from engine.warmup_spec import SftWarmup
from tests.engine.models import fresh_random_model, random_model, tiny_document
from tests.engine.running import EngineProcess, events_of, quick_document, quick_spec, steps_of, train_here
from tests.engine.test_batch_laws import assert_same, eight_rollouts

N, H, V = 37, 6, 11


def head(*, is_trained: bool = True, has_bias: bool = True) -> OutputHead:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(V, H, generator=generator, dtype=torch.double, requires_grad=is_trained)
    bias = torch.randn(V, generator=generator, dtype=torch.double, requires_grad=is_trained) if has_bias else None
    return OutputHead(weight, bias, 1.0, None, V)


def states() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(N, H, generator=generator, dtype=torch.double, requires_grad=True)
    return hidden, torch.randint(V, (N,), generator=generator)


def chunked(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "chunk_tokens", lambda vocabulary: size)


@pytest.mark.parametrize("size", [1, 5, 37, 1000])
def test_cross_entropy_in_chunks_is_the_formula_in_numpy(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """−1/n Σ log softmax(Wh + b)[y] and its gradients (softmax − onehot)/n through W, b and h."""
    chunked(size, monkeypatch)
    projection, (hidden, targets) = head(), states()
    assert projection.bias is not None
    found = fused_cross_entropy(hidden, targets, projection, num_supervised_tokens=50)
    (2 * found.total).backward()  # type: ignore[no-untyped-call]
    w, b, h = (tensor.detach().numpy() for tensor in (projection.weight, projection.bias, hidden))
    logits = h @ w.T + b
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    assert float(found.total.detach()) == pytest.approx(-np.log(p[np.arange(N), targets.numpy()]).sum() / 50, abs=1e-12)
    np.testing.assert_allclose(found.entropy.numpy(), -(p * np.log(p)).sum(1), atol=1e-12)
    slope = 2 * (p - np.eye(V)[targets.numpy()]) / 50
    for grad, expected in (
        (hidden.grad, slope @ w),
        (projection.weight.grad, slope.T @ h),
        (projection.bias.grad, slope.sum(0)),
    ):
        assert grad is not None
        np.testing.assert_allclose(grad.numpy(), expected, atol=1e-12)


def test_gradcheck_of_the_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    chunked(5, monkeypatch)
    hidden, targets = states()

    def loss(h: Tensor, w: Tensor) -> Tensor:
        projection = OutputHead(w, None, 0.5, 3.0, V)
        return fused_cross_entropy(h, targets, projection, num_supervised_tokens=N).total

    weight = head(has_bias=False).weight
    assert torch.autograd.gradcheck(loss, (hidden, weight), atol=1e-8)


def test_a_frozen_head_gets_no_gradient() -> None:
    projection, (hidden, targets) = head(is_trained=False), states()
    fused_cross_entropy(hidden, targets, projection, num_supervised_tokens=N).total.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert projection.weight.grad is None


class Largest(TorchDispatchMode):
    """The entries of the largest tensor that operations within it make."""

    entries = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        sizes = [tensor.numel() for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
        self.entries = max([self.entries, *sizes])
        return out


def test_no_tensor_holds_all_tokens_and_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    chunked(5, monkeypatch)
    hidden, targets = states()
    with Largest() as largest:
        fused_cross_entropy(hidden, targets, head(), num_supervised_tokens=N).total.backward()  # type: ignore[no-untyped-call]
    assert largest.entries <= max(N * H, V * H, 5 * V) < N * V


def warmup_spec(**changes: Any) -> RunSpec:
    phase = {"kind": "sft", "num_steps": 4, "prompts_per_step": 3, "learning_rate": 1e-2}
    optimizer = {"learning_rate": 1e-3, "warmup_steps": 0, "max_grad_norm": 1e6}
    return RunSpec.model_validate(
        tiny_document(warmup_phase=phase, optimizer=optimizer, max_completion_tokens=12) | changes
    )


def warmup(spec: RunSpec, student: Student | None = None) -> Warmup:
    """A warm-up of random float64 models on five prompts."""
    assert isinstance(spec.warmup_phase, SftWarmup)
    prompts = [EncodedPrompt(PromptRow(str(i), completion=f"k{i % 4} k2"), [1, 5 + i, 6]) for i in range(5)]
    student = student or Student(fresh_random_model(), spec)
    return Warmup(spec, spec.warmup_phase, student, random_model(1, hidden=32), prompts, lambda: None)


def update(rollouts: list[Rollout], micro_batch: int, **changes: Any) -> tuple[WarmupStep, dict[str, Tensor]]:
    """One warm-up update by plain gradient descent with rate 1, so that the change is the gradient."""
    phase = {"kind": "sft", "num_steps": 4, "learning_rate": 1.0}
    spec = warmup_spec(micro_batch_rollouts=micro_batch, warmup_phase=phase, **changes)
    student = Student(fresh_random_model(), spec)
    named = dict(student.model.module.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    student.optimizer = torch.optim.SGD(named.values(), lr=1.0)
    done = warmup(spec, student).update(rollouts, 0, sampling=FlopLedger(), executed=FlopLedger())
    return done, {name: before[name] - parameter.detach() for name, parameter in named.items()}


def test_the_update_is_one_mean_over_all_completion_tokens() -> None:
    done, gradients = update(eight_rollouts(), 16)
    model = fresh_random_model()
    total = torch.zeros((), dtype=torch.double)
    for each in eight_rollouts():
        token_ids = torch.tensor([each.prompt_token_ids + each.completion_token_ids])
        logits = model.module(input_ids=token_ids[:, :-1]).logits[0, len(each.prompt_token_ids) - 1 :]
        total = total + torch.nn.functional.cross_entropy(
            logits, torch.tensor(each.completion_token_ids), reduction="sum"
        )
    loss = total / sum(len(each.completion_token_ids) for each in eight_rollouts())
    loss.backward()  # type: ignore[no-untyped-call]
    assert done.metrics["cross_entropy"] == pytest.approx(float(loss.detach()), abs=1e-12)
    expected = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    assert_same(gradients, expected)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_one_times_eight_is_four_times_two(micro_batch: int) -> None:
    whole, expected = update(eight_rollouts(), 8)
    parts, gradients = update(eight_rollouts()[::-1], micro_batch, gradient_checkpointing="always")
    assert parts.metrics["cross_entropy"] == pytest.approx(whole.metrics["cross_entropy"], abs=1e-12)
    assert_same(gradients, expected)


def test_the_teacher_writes_once_for_each_prompt_and_later_epochs_cost_no_sampling() -> None:
    one = warmup(warmup_spec())
    steps = [one.step(step) for step in range(4)]  # twelve draws of five prompts
    assert len(one.written) == 5
    first = {index: rollout.completion_token_ids for index, rollout in one.written.items()}
    shape = random_model(1, hidden=32).shape
    paid = sum(step.flops.rollout for step in steps)
    assert paid == pytest.approx(sum(rollout_flops(shape, 3, [len(ids)]) for ids in first.values()))
    assert steps[3].flops.rollout == 0
    again = warmup(warmup_spec())
    again.step(2)  # as after a resume
    for index, rollout in again.written.items():
        assert rollout.completion_token_ids == first[index]
    assert all(step.flops.teacher == 0 for step in steps)


def test_the_student_pays_for_its_passes_only_and_executed_flops_are_not_less() -> None:
    done, _ = update(eight_rollouts(), 3)
    shape = random_model().shape
    expected = FlopLedger()
    for each in eight_rollouts():
        count = len(each.completion_token_ids)
        expected += student_flops(shape, len(each.prompt_token_ids) + count, count)
    assert done.flops.model_dump() == pytest.approx(expected.model_dump())
    assert done.executed.training > done.flops.training
    single, _ = update(eight_rollouts(), 1)  # no padding
    assert single.executed.training == pytest.approx(single.flops.training)


def test_completions_of_the_prompt_file_end_with_an_end_of_text_token() -> None:
    phase = {"kind": "sft", "num_steps": 4, "prompts_per_step": 5, "source": "data"}
    one = warmup(warmup_spec(warmup_phase=phase))
    done = one.step(0)
    assert done.flops.rollout == 0
    tokenizer = one.student.model.tokenizer
    for index, rollout in one.written.items():
        assert rollout.completion_token_ids[:-1] == tokenizer(f"k{index % 4} k2", add_special_tokens=False)["input_ids"]
        assert rollout.completion_token_ids[-1] in one.student.model.eos_token_ids
    assert done.metrics["natural_stop_rate"] == 1


def test_cross_entropy_falls_on_the_data() -> None:
    one = warmup(
        warmup_spec(warmup_phase={"kind": "sft", "num_steps": 30, "prompts_per_step": 5, "learning_rate": 1e-2})
    )
    losses = [one.step(step).metrics["cross_entropy"] for step in range(20)]
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < losses[0] / 2, losses


PHASE = {"kind": "sft", "num_steps": 3, "prompts_per_step": 4, "learning_rate": 1e-3}


def step_events(events: list[RunEvent]) -> list[StepDone]:
    return [event for event in events if isinstance(event, StepDone)]


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("source", ["teacher", "data"])
def test_warmup_steps_are_the_first_steps_of_the_run(tmp_path: Path, source: str) -> None:
    prefix = {"kind": "linear", "start_tokens": 2, "increment_tokens": 1}
    prompts = {"path": "builtin:tiny/data/dev.jsonl"}  # its rows have completions
    spec = quick_spec(warmup_phase=PHASE | {"source": source}, prefix=prefix, prompts=prompts)
    events = train_here(spec, tmp_path / "run")
    steps = step_events(events)
    assert [event.step for event in steps] == [1, 2, 3, 4, 5, 6]
    assert [event.horizon for event in steps] == [24, 24, 24, 2, 3, 4]  # the schedule begins behind the warm-up
    assert [event.metrics["loss"] is None for event in steps] == [True] * 3 + [False] * 3
    assert ["cross_entropy" in event.metrics for event in steps] == [True] * 3 + [False] * 3
    # warmup_steps is 2: each phase rises to its own rate.
    rates = [event.metrics["learning_rate"] for event in steps]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 2.5e-4, 5e-4, 5e-4])
    assert [event.flops.teacher > 0 for event in steps] == [False] * 3 + [True] * 3
    assert (steps[2].flops.rollout > 0) is (source == "teacher")
    phases = [event.phase for event in events if isinstance(event, PhaseChanged)]
    assert phases[-3:] == ["warmup", "training", "evaluation"]


@pytest.mark.usefixtures("home")
def test_sentinel_and_validation_driven_prefix_begin_behind_the_warmup(tmp_path: Path) -> None:
    prefix = {
        "kind": "validation",
        "start_tokens": 2,
        "increment_tokens": 2,
        "patience_evaluations": 1,
        "min_improvement": 9.0,
    }
    spec = quick_spec(
        warmup_phase=PHASE,
        prefix=prefix,
        sentinel={"kind": "watch", "every_steps": 2, "num_rollouts": 1},
        evaluation=quick_document()["evaluation"] | {"every_steps": 1},  # type: ignore[operator]
    )
    events = train_here(spec, tmp_path / "run")
    assert [event.step for event in events if isinstance(event, TailMeasured)] == [3, 5]
    # Three evaluations in the warm-up grow nothing; the one after the first step of distillation is the best to beat.
    assert [event.horizon for event in step_events(events)][3:] == [2, 2, 4]


@pytest.mark.usefixtures("home")
def test_a_run_killed_in_its_warmup_resumes_to_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    document = quick_document(
        num_steps=7, checkpoints={"every_steps": 1, "keep_last": 9}, warmup_phase=PHASE | {"num_steps": 5}
    )
    whole = EngineProcess(tmp_path / "whole", document)
    killed = EngineProcess(tmp_path / "killed", document)
    kill_at = random.randrange(1, 5)
    killed.wait_for(lambda events: len(steps_of(events)) >= kill_at)
    killed.send(signal.SIGKILL)
    assert killed.exit_code() == -signal.SIGKILL
    resumed = EngineProcess(tmp_path / "killed", document, "--attempt", "2", "--resume", "newest")
    assert whole.exit_code() == resumed.exit_code() == DONE, resumed.log
    second = steps_of(events_of(tmp_path / "killed", 2))
    kept = [step for step in steps_of(events_of(tmp_path / "killed", 1)) if step < second[0]]
    assert kept + second == list(range(1, 8))
    folders = [next((tmp_path / name).glob("attempts/*/checkpoints/step-7")) for name in ("whole", "killed")]
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), (file, kill_at)
    last = [step_events(events_of(tmp_path / "whole"))[-1], step_events(events_of(tmp_path / "killed", 2))[-1]]
    # The second attempt found its baselines measured.
    assert last[0].flops.training == last[1].flops.training


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        (
            {"warmup_phase": {"kind": "sft", "num_steps": 40}},
            "warmup_phase.num_steps",
            "warmup_phase.num_steps is 40 but num_steps, which includes them, is 40; "
            "shorten the warm-up phase or train longer.",
        ),
        (
            {"warmup_phase": {"kind": "sft", "num_steps": 38}},
            "optimizer.warmup_steps",
            "optimizer.warmup_steps is 5 but num_steps is 40 and the warm-up phase takes 38 of them; "
            "shorten the warm-up or train longer.",
        ),
    ],
)
def test_a_warmup_that_leaves_no_room_is_refused(changes: dict[str, object], field: str, message: str) -> None:
    document = tiny_document(**changes)
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(document)
    (finding,) = findings_of(caught.value, document)
    assert (finding.field, finding.message) == (field, message)


def test_the_chunk_is_that_of_the_divergence() -> None:
    assert cross_entropy.chunk_tokens is fused_loss.chunk_tokens
