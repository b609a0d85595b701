"""Measures the tail of whole texts for the sentinel: a few full-length rollouts that nothing is trained on.

N rollouts, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from engine.batch import RolloutBatch, micro_batches
from engine.errors import RunError
from engine.evaluate import EncodedPrompt, text_metrics
from engine.events import TailMeasured, Warned
from engine.flops import FlopLedger, rollout_flops
from engine.language_model import LanguageModel
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.scoring import executed_reading_flops, executed_scoring_flops, score_rollouts
from engine.sentinel import after_measurement
from engine.sentinel_spec import WatchTail
from engine.spec import RunSpec

if TYPE_CHECKING:
    from engine.run import Run


@dataclass
class TailProbe:
    """Student and teacher on the sentinel's prompts. The teacher's texts are sampled once an attempt; they follow from the seed."""

    spec: RunSpec
    teacher: LanguageModel
    prompts: list[EncodedPrompt]
    on_token: Callable[[], None]
    executed_flops: float = 0.0
    """Executed by all measurements so far, padding and rows that had ended included."""

    @cached_property
    def teacher_texts(self) -> list[Rollout]:
        """What the teacher writes on the prompts, at the training temperature."""
        return self._sample(self.teacher)

    @cached_property
    def teacher_metrics(self) -> dict[str, float | None]:
        """The teacher's own figures."""
        return text_metrics(self.teacher_texts) | {"stop_probability": self.stop_probability(self.teacher)}

    @property
    def teacher_flops(self) -> float:
        """What the teacher's texts and figures cost, once."""
        return self._generation(self.teacher, self.teacher_texts) + self._reading(self.teacher, self._ended)

    def measure(self, student: LanguageModel, horizon: int) -> tuple[dict[str, float | None], float]:
        """The student's figures behind and inside `horizon`, and the FLOPs that they cost. RunError("nan_loss") when not finite."""
        rollouts = self._sample(student)
        micro_batch = self.spec.usual_micro_batch
        columns = score_rollouts(
            student,
            self.teacher,
            rollouts,
            temperature=self.spec.sampling.temperature,
            top_k=1,
            micro_batch=micro_batch,
        )
        self.executed_flops += executed_scoring_flops(student, self.teacher, rollouts, micro_batch)
        inside = torch.cat([c.reverse_kl[:horizon] for c in columns])
        beyond = torch.cat([c.reverse_kl[horizon:] for c in columns])
        if not bool(inside.isfinite().all() and beyond.isfinite().all()):
            raise RunError(
                "nan_loss",
                "The divergence of student and teacher is not finite on the sentinel's rollouts; "
                "lower optimizer.learning_rate or set precision to float32.",
            )
        metrics = text_metrics(rollouts) | {
            "reverse_kl_inside": float(inside.mean()),
            "reverse_kl_beyond": float(beyond.mean()) if len(beyond) else None,
            "stop_probability": self.stop_probability(student),
        }
        scoring = sum(self._reading(model, rollouts, is_whole=True) for model in (student, self.teacher))
        return metrics, self._generation(student, rollouts) + scoring + self._reading(student, self._ended)

    @torch.no_grad()
    def stop_probability(self, model: LanguageModel) -> float | None:
        """The probability of a stop token where the teacher's texts end, the mean over those that end by themselves; None without any."""
        total = 0.0
        self.executed_flops += executed_reading_flops(model, self._ended, self.spec.usual_micro_batch)
        stops = sorted(token for token in model.eos_token_ids if token < model.head.vocabulary)
        if model.servers is not None:
            for told in model.servers.read(self._ended):
                chances = dict(zip(told.ids[0].tolist(), told.logprobs[0].exp().tolist(), strict=True))
                total += sum(chances.get(stop, 0.0) for stop in stops)
            return total / len(self._ended) if self._ended else None
        with model.on_device():
            for group in micro_batches(self._ended, self.spec.usual_micro_batch, model.device):
                batch = RolloutBatch.collate(group, model.pad_token_id, model.device)
                with model.autocast():
                    hidden = model.hidden(batch.token_ids).flatten(0, 1)[batch.hidden_index]
                logprobs = torch.log_softmax(model.head.logits(hidden) / self.spec.sampling.temperature, -1)
                total += float(logprobs[:, stops].exp().sum())
        return total / len(self._ended) if self._ended else None

    @property
    def _ended(self) -> list[Rollout]:
        """The teacher's texts that end by themselves, read for the prediction of their last token."""
        return [
            replace(text, supervised_start=len(text.completion_token_ids) - 1)
            for text in self.teacher_texts
            if text.finish_reason == "eos"
        ]

    def _sample(self, model: LanguageModel) -> list[Rollout]:
        # Visit 0, as in evaluation: no training rollout has its noise, and every measurement has the same.
        requests = [RolloutRequest(index, prompt.token_ids, 1, 0) for index, prompt in enumerate(self.prompts)]
        sampler = Sampler(model, self.spec.seed, self.spec.sampling.temperature, self.on_token)
        rollouts = sampler.sample(requests, self.spec.max_completion_tokens)
        self.executed_flops += sampler.executed.total
        return rollouts

    def _generation(self, model: LanguageModel, rollouts: list[Rollout]) -> float:
        return sum(rollout_flops(model.shape, len(r.prompt_token_ids), [len(r.completion_token_ids)]) for r in rollouts)

    def _reading(self, model: LanguageModel, rollouts: list[Rollout], *, is_whole: bool = False) -> float:
        """One forward pass over whole texts, projected at every completion token or at the last alone."""
        return sum(
            model.shape.forward(
                len(r.prompt_token_ids) + len(r.completion_token_ids), len(r.completion_token_ids) if is_whole else 1
            )
            for r in rollouts
        )


def measure_tail(run: Run) -> None:
    """Measure the student of the current step, tell what was found, and let the sentinel act."""
    run.enter("evaluation", f"tail of step {run.state.step}")
    began = time.monotonic()
    spec, state, step = run.spec.sentinel, run.state.sentinel, run.state.step
    assert isinstance(spec, WatchTail)
    horizon = run.measured_horizon(step)
    executed_before = run.tail_probe.executed_flops
    # What the sentinel decides by is one rank's: the others' may differ by rounding on another machine.
    metrics, flops = run.ranks.agreed(list(run.tail_probe.measure(run.student.model, horizon)))
    if not state.teacher:
        flops += run.tail_probe.teacher_flops
        known = {name: value for name, value in run.tail_probe.teacher_metrics.items() if value is not None}
        known = run.ranks.agreed(known)
        state = state.model_copy(update={"teacher": known})
    state, alarms = after_measurement(spec, state, step, metrics, horizon=horizon, full=run.spec.max_completion_tokens)
    executed = FlopLedger(evaluation=run.tail_probe.executed_flops - executed_before)
    run.change_state(
        sentinel=state,
        flops=run.state.flops + FlopLedger(evaluation=flops),
        executed=run.state.executed + executed,
        executed_flops=run.state.executed_flops + executed.total,
    )
    run.journal.emit(
        TailMeasured,
        step=step,
        horizon=horizon,
        num_rollouts=len(run.tail_probe.prompts),
        metrics=metrics,
        teacher_metrics=state.teacher,
        flops=run.state.flops,
        seconds=time.monotonic() - began,
    )
    for alarm in alarms:
        run.journal.emit(Warned, step=step, **alarm.model_dump())
