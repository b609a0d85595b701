"""A step of the warm-up phase: cross-entropy on completions that the teacher or the prompt file has written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from engine.batch import RolloutBatch
from engine.completion_spec import DataCompletions, TeacherCompletions
from engine.cross_entropy import FusedCrossEntropy, fused_cross_entropy
from engine.evaluate import EncodedPrompt
from engine.events import StepDone
from engine.flops import FlopLedger, student_flops
from engine.language_model import LanguageModel
from engine.peak_memory import peak_memory_bytes
from engine.prompts import prompts_of_step
from engine.rollout import Rollout, RolloutRequest
from engine.sources import Writers
from engine.spec import RunSpec
from engine.student import Student
from engine.warmup_spec import SftWarmup

if TYPE_CHECKING:
    from engine.run import Run

# Which visit of a prompt the teacher's completion belongs to: behind all that training can make, and always the same.
_VISIT = 2**32


@dataclass(frozen=True)
class WarmupStep:
    """What a warm-up step did."""

    metrics: dict[str, float | None]
    """As in engine.events.StepDone; `loss` is None, since there is no divergence."""
    flops: FlopLedger
    executed: FlopLedger
    """FLOPs that ran, padding included."""


@dataclass
class Warmup:
    """Fine-tunes a student on given completions. Nothing in it needs a checkpoint: all follows from seed and step."""

    spec: RunSpec
    phase: SftWarmup
    student: Student
    teacher: LanguageModel
    prompts: list[EncodedPrompt]
    on_token: Callable[[], None]
    written: dict[int, Rollout] = field(default_factory=dict)
    """The teacher's completions by prompt, so that later epochs need not sample them again."""

    @classmethod
    def of(cls, run: Run) -> Warmup | None:
        """The warm-up of a run whose spec has one."""
        phase = run.spec.warmup_phase
        if not isinstance(phase, SftWarmup):
            return None
        return cls(run.spec, phase, run.student, run.teacher, run.data.train, run.control.raise_if_stopped)

    def step(self, step: int) -> WarmupStep:
        """One update on the completions of `step`, counted from 0."""
        rollouts, sampling, executed = self._rollouts(step)
        return self.update(rollouts, step, sampling=sampling, executed=executed)

    def update(self, rollouts: list[Rollout], step: int, *, sampling: FlopLedger, executed: FlopLedger) -> WarmupStep:
        """One optimizer update on all completion tokens of `rollouts`: one mean over the global batch."""
        num_tokens = sum(len(rollout.completion_token_ids) for rollout in rollouts)

        def take(groups: list[list[Rollout]]) -> tuple[float, float, FlopLedger]:
            each = [self._backward(group, num_tokens) for group in groups]
            return (
                sum(loss for loss, _, _ in each),
                sum(entropy for _, entropy, _ in each),
                sum((ledger for *_, ledger in each), FlopLedger()),
            )

        loss, entropy, of_groups = self.student.in_micro_batches(rollouts, take)
        ranks = self.student.model.ranks
        if ranks.size > 1:
            heard = ranks.gathered([loss, entropy, of_groups.model_dump()])
            loss, entropy = (sum(told[i] for told in heard) for i in (0, 1))
            of_groups = sum((FlopLedger(**told[2]) for told in heard), FlopLedger())
        rate = self.phase.learning_rate * self.spec.optimizer.warmup_share_at(step)
        norm = self.student.apply(loss, rate, step)
        flops = sampling
        for rollout in rollouts:
            num_completion = len(rollout.completion_token_ids)
            flops += student_flops(
                self.student.model.shape,
                len(rollout.prompt_token_ids) + num_completion,
                num_completion,
                recomputes_blocks=self.student.plan.recomputes_blocks,
            )
        metrics: dict[str, float | None] = {
            "loss": None,
            "cross_entropy": loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "rollout_tokens": num_tokens,
            "supervised_tokens": num_tokens,
            "mean_tokens": num_tokens / len(rollouts),
            "natural_stop_rate": sum(rollout.finish_reason == "eos" for rollout in rollouts) / len(rollouts),
            "student_entropy": entropy / num_tokens,
        }
        return WarmupStep(metrics, flops, executed + of_groups)

    def _backward(self, group: list[Rollout], num_tokens: int) -> tuple[float, float, FlopLedger]:
        """Add the gradient of a micro-batch; its part of the mean, its summed entropy, its executed FLOPs."""
        model = self.student.model
        batch = RolloutBatch.collate(group, model.pad_token_id, model.device)
        losses: list[FusedCrossEntropy] = []

        def total() -> Tensor:
            with model.autocast():
                hidden = model.hidden(batch.token_ids, use_cache=False).flatten(0, 1)[batch.hidden_index]
            losses.append(fused_cross_entropy(hidden, batch.target_ids, model.head, num_supervised_tokens=num_tokens))
            return losses[0].total

        model.run(total).backward()  # type: ignore[no-untyped-call]
        (loss,) = losses
        num_rows, width = batch.token_ids.shape
        blocks = student_flops(model.shape, width, 0, recomputes_blocks=self.student.plan.recomputes_blocks)
        heads = student_flops(model.shape, 0, len(batch.target_ids))
        return float(loss.total.detach()), float(loss.entropy.sum()), blocks * num_rows + heads

    def _rollouts(self, step: int) -> tuple[list[Rollout], FlopLedger, FlopLedger]:
        """The completions of a step, the useful and the executed FLOPs of writing them.

        A prompt's first visit pays, also where a resumed attempt has to write its completion again.
        """
        first, count = step * self.phase.prompts_per_step, len(self.prompts)
        indices = prompts_of_step(count, self.spec.seed, step, self.phase.prompts_per_step)
        requests = {i: RolloutRequest(i, self.prompts[i].token_ids, 1, _VISIT) for i in indices}
        missing = [request for i, request in requests.items() if i not in self.written]
        writers = Writers.of(
            self.student.model,
            self.teacher,
            self.prompts,
            seed=self.spec.seed,
            temperature=self.spec.sampling.temperature,
            on_token=self.on_token,
        )
        source = TeacherCompletions() if self.phase.source == "teacher" else DataCompletions()
        for (rollout,) in writers.write(source, missing, self.spec.max_completion_tokens) if missing else []:
            self.written[rollout.prompt_index] = rollout
        sampling = FlopLedger()
        for i in [i for draw, i in enumerate(indices, first) if draw < count]:
            lengths = [len(self.written[i].completion_token_ids)]
            num_prompt = len(self.prompts[i].token_ids)
            sampling += source.sampling_ledger(self.student.model.shape, self.teacher.shape, num_prompt, lengths)
        return [self.written[i] for i in indices], sampling, writers.executed


def take_warmup_step(run: Run, warmup: Warmup) -> None:
    """Do the run's next step as a step of its warm-up, and say so; the last one says that training begins."""
    began = time.monotonic()
    step = run.state.step
    done = warmup.step(step)
    seconds = time.monotonic() - began
    run.change_state(
        step=step + 1,
        flops=run.state.flops + done.flops,
        executed=run.state.executed + done.executed,
        executed_flops=run.state.executed_flops + done.executed.total,
        training_seconds=run.state.training_seconds + seconds,
    )
    run.journal.emit(
        StepDone,
        step=step + 1,
        horizon=run.spec.max_completion_tokens,
        metrics=done.metrics,
        flops=run.state.flops,
        executed=run.state.executed,
        executed_flops=run.state.executed_flops,
        peak_memory_bytes=peak_memory_bytes(run.student.model.device),
        seconds={"total": seconds},
    )
