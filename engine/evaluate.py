"""Full-length evaluation: its length never depends on the horizon.

Greedy completions give accuracy, length, EOS rate and repetition; samples at the training temperature give the divergence
by position, inside and beyond the horizon, and calibration; k samples of each prompt give avg@k, pass@k and maj@k; fixed
texts of the teacher give a forward KL. T completion positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.answer_samples import answer_samples
from engine.calibration import CALIBRATION_METRICS, calibration_metrics
from engine.errors import RunError
from engine.flops import FlopLedger, rollout_flops
from engine.language_model import LanguageModel
from engine.loss_region import LossRegion
from engine.prompts import PromptRow
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.scorers import Mark, Scorer
from engine.scoring import TokenColumns, executed_scoring_flops, score_rollouts
from engine.spec import RunSpec
from engine.truncation import Truncation
from engine.verdicts import Verdicts, verdicts_of


@dataclass(frozen=True)
class EncodedPrompt:
    """A row of an evaluation file with its token ids."""

    row: PromptRow
    token_ids: list[int]


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found; see engine.events.Evaluated for the metrics."""

    metrics: dict[str, float | None]
    position_reverse_kl: list[float]
    position_p90: list[float]
    position_teacher_entropy: list[float]
    position_count: list[int]
    sampled: list[TokenColumns]
    """Scored full-length samples; empty for the teacher."""
    flops: FlopLedger
    """Useful FLOPs, all of them evaluation."""
    executed: FlopLedger
    """The same with padding and rows that had ended."""
    verdicts: Verdicts | None = None
    """Which problems were answered rightly; None when there are too many to keep."""


class Evaluator:
    """Evaluates models of a run on one file of prompts; `teacher_texts` are completions of the first of them.

    `scorer` marks the completions: the spec's, unless the file is a task with its own.
    """

    def __init__(
        self,
        spec: RunSpec,
        prompts: list[EncodedPrompt],
        on_token: Callable[[], None],
        teacher_texts: Sequence[Rollout] = (),
        scorer: Scorer | None = None,
    ) -> None:
        self.spec = spec
        self.prompts = prompts
        self.on_token = on_token
        self.teacher_texts = list(teacher_texts)
        self.scorer = scorer or spec.evaluation.scorer
        self._executed = 0.0
        """FLOPs that the evaluation at hand has executed, padding and rows that had ended included."""

    def evaluate(self, model: LanguageModel, teacher: LanguageModel, horizon: int) -> Evaluation:
        """Greedy completions of all prompts and samples of the first `num_sampled`, both at full length.

        `model is teacher` measures the teacher itself: no divergence then.
        """
        self._executed = 0.0
        greedy = self._sample(model, self.prompts, 0.0)
        marks = [self.mark(model, rollout) for rollout in greedy]
        sampled_prompts = self.prompts[: self.spec.evaluation.num_sampled]
        samples = self._sample(model, sampled_prompts, self.spec.sampling.temperature)
        metrics = self._greedy_metrics(model, greedy, marks) | {
            f"sampled_{name}": value for name, value in text_metrics(samples).items()
        }
        flops = generation_flops(model, greedy) + generation_flops(model, samples)
        num_right, answer_metrics, answer_flops = self._answer_samples(model)
        metrics |= answer_metrics
        flops += answer_flops
        verdicts = verdicts_of(
            [(prompt.row.prompt, prompt.row.answer) for prompt in self.prompts],
            [mark is not None and mark.is_right for mark in marks],
            num_right,
            self.spec.evaluation.samples_per_prompt,
        )
        if model is teacher:
            metrics |= dict.fromkeys(PAIR_METRICS)
            return Evaluation(
                metrics, [], [], [], [], [], FlopLedger(evaluation=flops), self._executed_ledger, verdicts
            )
        columns = self._scored(model, teacher, samples)
        texts = self._scored(model, teacher, self.teacher_texts)
        for sample in [*samples, *self.teacher_texts]:
            prompt, completion = len(sample.prompt_token_ids), len(sample.completion_token_ids)
            flops += model.shape.forward(prompt + completion, completion)
            flops += teacher.shape.forward(prompt + completion, completion)
        if not all(bool(c.reverse_kl.isfinite().all() and c.forward_kl.isfinite().all()) for c in [*columns, *texts]):
            raise RunError(
                "nan_loss",
                "The divergence of student and teacher is not finite on full-length completions; "
                "lower optimizer.learning_rate or set precision to float32.",
            )
        metrics |= _divergence_metrics(columns, horizon, self.spec.loss_region)
        metrics |= calibration_metrics(columns)
        metrics |= text_divergence([c.forward_kl for c in texts], self.spec.max_completion_tokens)
        reverse = _by_position([c.reverse_kl for c in columns])
        return Evaluation(
            metrics=metrics,
            position_reverse_kl=reverse.nanmean(0).tolist(),
            position_p90=reverse.nanquantile(0.9, dim=0).tolist(),
            position_teacher_entropy=_by_position([c.teacher_entropy for c in columns]).nanmean(0).tolist(),
            position_count=(~reverse.isnan()).sum(0).tolist(),
            sampled=columns,
            flops=FlopLedger(evaluation=flops),
            executed=self._executed_ledger,
            verdicts=verdicts,
        )

    def mark(self, model: LanguageModel, rollout: Rollout) -> Mark | None:
        """Whether a completion has the row's answer; None when the row has none."""
        row = self.prompts[rollout.prompt_index].row
        if row.answer is None:
            return None
        return self.scorer.mark(completion_text(model, rollout), row.answer, row.entry)

    def _answer_samples(self, model: LanguageModel) -> tuple[list[int], dict[str, float | None], float]:
        """Right samples by prompt, the metrics of k samples of each prompt, and the FLOPs of drawing them."""
        k, draw = self.spec.evaluation.samples_per_prompt, self.spec.evaluation.answer_sampling
        if not k:
            return [], {}, 0.0
        kept = Truncation(draw.top_k, draw.top_p, draw.min_p)
        sampler = Sampler(model, self.spec.seed, draw.temperature, self.on_token, truncation=kept)
        requests = [RolloutRequest(index, prompt.token_ids, k, 0) for index, prompt in enumerate(self.prompts)]
        rollouts = sampler.sample(requests, self.spec.max_completion_tokens)
        self._executed += sampler.executed.total
        marks = [self.mark(model, rollout) or Mark(False, None) for rollout in rollouts]
        of_prompt = range(0, len(rollouts), k)
        found = answer_samples([marks[at : at + k] for at in of_prompt], self.spec.seed)
        lengths = [[len(r.completion_token_ids) for r in rollouts[at : at + k]] for at in of_prompt]
        flops = sum(
            rollout_flops(model.shape, len(prompt.token_ids), of_samples)
            for prompt, of_samples in zip(self.prompts, lengths, strict=True)
        )
        return found.num_right, found.metrics, flops

    @property
    def _executed_ledger(self) -> FlopLedger:
        return FlopLedger(evaluation=self._executed)

    def _scored(self, model: LanguageModel, teacher: LanguageModel, rollouts: list[Rollout]) -> list[TokenColumns]:
        micro_batch = self.spec.usual_micro_batch
        self._executed += executed_scoring_flops(model, teacher, rollouts, micro_batch)
        return score_rollouts(
            model,
            teacher,
            rollouts,
            temperature=self.spec.sampling.temperature,
            top_k=self.spec.traces.top_k,
            micro_batch=micro_batch,
        )

    def _sample(self, model: LanguageModel, prompts: list[EncodedPrompt], temperature: float) -> list[Rollout]:
        requests = [RolloutRequest(index, prompt.token_ids, 1, 0) for index, prompt in enumerate(prompts)]
        sampler = Sampler(model, self.spec.seed, temperature, self.on_token)
        rollouts = sampler.sample(requests, self.spec.max_completion_tokens)
        self._executed += sampler.executed.total
        return rollouts

    def _greedy_metrics(
        self, model: LanguageModel, rollouts: list[Rollout], marks: list[Mark | None]
    ) -> dict[str, float | None]:
        right = [mark.is_right for mark in marks if mark is not None]
        exact = [
            r.finish_reason == "eos" and " ".join(completion_text(model, r).split()) == " ".join(reference.split())
            for r in rollouts
            if (reference := self.prompts[r.prompt_index].row.completion) is not None
        ]
        return {"accuracy": _mean(right), "exact": _mean(exact), **text_metrics(rollouts)}


def completion_text(model: LanguageModel, rollout: Rollout) -> str:
    """The completion as text, without special tokens."""
    text = model.tokenizer.decode(rollout.completion_token_ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


_QUARTERS = 4
TEXT_METRICS = (
    "forward_kl_on_teacher_texts",
    *(f"forward_kl_on_teacher_texts_quarter_{quarter}" for quarter in range(1, _QUARTERS + 1)),
)
PAIR_METRICS = (
    "reverse_kl", "forward_kl", "reverse_kl_inside", "reverse_kl_before", "reverse_kl_beyond", "share_inside",
    "top1_agreement", "overlap_mass", "sampled_student_entropy", "sampled_teacher_entropy", *CALIBRATION_METRICS, *TEXT_METRICS,
)  # fmt: skip
"""What a student is measured by against its teacher."""


def _divergence_metrics(columns: list[TokenColumns], horizon: int, region: LossRegion) -> dict[str, float | None]:
    """Inside is what training would supervise of a sample cut at the horizon; beyond is what the cut takes away."""
    reverse = torch.cat([c.reverse_kl for c in columns])
    beyond = torch.cat([torch.arange(len(c.reverse_kl)) >= horizon for c in columns])
    inside = torch.zeros_like(beyond)
    start = 0
    for c in columns:
        span = region.span(min(len(c.reverse_kl), horizon))
        inside[start + span.start : start + span.stop] = True
        start += len(c.reverse_kl)
    total = float(reverse.sum())
    return {
        "reverse_kl": float(reverse.mean()),
        "forward_kl": float(torch.cat([c.forward_kl for c in columns]).mean()),
        "reverse_kl_inside": _tensor_mean(reverse[inside]),
        "reverse_kl_before": _tensor_mean(reverse[~inside & ~beyond]),
        "reverse_kl_beyond": _tensor_mean(reverse[beyond]),
        "share_inside": float(reverse[inside].sum()) / total if total > 0 else None,
        "top1_agreement": float(torch.cat([c.top1_agrees for c in columns]).float().mean()),
        "overlap_mass": float(torch.cat([c.overlap_mass for c in columns]).mean()),
        "sampled_student_entropy": float(torch.cat([c.student_entropy for c in columns]).mean()),
        "sampled_teacher_entropy": float(torch.cat([c.teacher_entropy for c in columns]).mean()),
    }


def text_divergence(forward_kl: list[Tensor], max_tokens: int) -> dict[str, float | None]:
    """Mean forward KL on the teacher's texts and on each quarter of the longest completion, nats: one [tokens] for each text.

    The texts are the same for every student, so that the quarters show where in a text a student was repaired.
    """
    if not forward_kl:
        return dict.fromkeys(TEXT_METRICS)
    values = torch.cat(forward_kl)
    quarters = torch.cat([torch.arange(len(text)) * _QUARTERS // max_tokens for text in forward_kl])
    means = [_tensor_mean(values), *(_tensor_mean(values[quarters == quarter]) for quarter in range(_QUARTERS))]
    return dict(zip(TEXT_METRICS, means, strict=True))


def _tensor_mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def text_metrics(rollouts: list[Rollout]) -> dict[str, float | None]:
    """Mean length in tokens, share that ended by itself and mean share of repeated 4-grams."""
    return {
        "mean_tokens": _mean([len(r.completion_token_ids) for r in rollouts]),
        "eos_rate": _mean([r.finish_reason == "eos" for r in rollouts]),
        "repetition": _mean([_repeated_share(r.completion_token_ids) for r in rollouts]),
    }


def _repeated_share(token_ids: list[int]) -> float:
    """Share of 4-grams that occurred earlier in the same completion."""
    grams = [tuple(token_ids[i : i + 4]) for i in range(len(token_ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _by_position(columns: list[Tensor]) -> Tensor:
    """[rollouts, T] with NaN behind the end of each rollout."""
    return torch.nn.utils.rnn.pad_sequence([c.float() for c in columns], batch_first=True, padding_value=float("nan"))


def generation_flops(model: LanguageModel, rollouts: list[Rollout]) -> float:
    """Useful FLOPs of writing completions, one for each prompt."""
    return sum(rollout_flops(model.shape, len(r.prompt_token_ids), [len(r.completion_token_ids)]) for r in rollouts)


def _mean(values: list[bool] | list[int] | list[float]) -> float | None:
    return sum(values) / len(values) if values else None
