"""Evaluates one model on a task or a file, without training: what `incipit evaluate` runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version

from engine.encode import encoded
from engine.errors import RunError
from engine.estimators import mcnemar, paired_interval, wilson
from engine.evaluate import EncodedPrompt, Evaluator
from engine.evaluation_spec import AnswerSampling
from engine.findings import Finding
from engine.frozen import Frozen
from engine.language_model import LanguageModel, load_language_model
from engine.prompts import pinned, read_prompts
from engine.scorers import Scorer
from engine.setup import choose_device, choose_precision
from engine.spec import RunSpec
from engine.task_spec import scorer_of
from engine.verdicts import MAX_PROBLEMS, Verdicts


class ModelEvaluation(Frozen):
    """What an evaluation of one model found, with all that is needed to do it again."""

    model: str
    source: str
    """The task or file; of a data set of the hub with the commit that was read."""
    scorer: Scorer
    template: str
    max_completion_tokens: int
    seed: int
    answer_sampling: AnswerSampling | None
    """How samples were drawn; None when only greedy completions were."""
    num_prompts: int
    accuracy_low: float
    """95 % interval over prompts of the greedy accuracy (Wilson)."""
    accuracy_high: float
    metrics: dict[str, float | None]
    """See engine.events.Evaluated."""
    verdicts: Verdicts
    device: str
    precision: str
    versions: dict[str, str]
    seconds: float


class PairedComparison(Frozen):
    """Two models on the same problems, problem by problem; differences are the second minus the first."""

    num_problems: int
    only_first: int
    """Problems that only the first model answers rightly."""
    only_second: int
    mcnemar_p: float
    """Exact two-sided p-value."""
    difference: float
    """Of the greedy accuracies."""
    difference_low: float
    """95 % interval over problems, by the standard error of the differences."""
    difference_high: float
    average_difference: float | None
    """Of avg@k; None when either has no samples."""
    average_difference_low: float | None
    average_difference_high: float | None


def evaluate_model(spec: RunSpec, on_token: Callable[[], None] = lambda: None) -> ModelEvaluation:
    """Evaluate `spec.student` as `spec.evaluation` says; nothing else of the spec is used. Raises RunError."""
    began = time.monotonic()
    device = choose_device(spec)
    precision = choose_precision(spec, device)
    model = load_language_model(spec.student, "student", device, precision)
    source = pinned(spec.evaluation.path, "evaluation.path")
    rows = read_prompts(
        source, "evaluation.path", columns=spec.evaluation, limit=spec.evaluation.num_prompts, need_answer=True
    )
    if len(rows) > MAX_PROBLEMS:  # known before hours of answers, not behind them
        raise RunError(
            "bad_spec",
            f"{len(rows):,} problems of {source!r} are asked, but one evaluation keeps the verdicts of at most "
            f"{MAX_PROBLEMS:,}; set a limit.",
        )
    prompts = encoded(spec, model.tokenizer, rows, "evaluation.path")
    _check_context(spec, model, prompts)
    scorer = scorer_of(spec.evaluation.path, spec.evaluation.scorer)
    evaluator = Evaluator(spec, prompts, on_token, scorer=scorer)
    evaluation = evaluator.evaluate(model, model, spec.max_completion_tokens)
    assert evaluation.verdicts is not None, "there are not too many problems"
    low, high = wilson(evaluation.metrics["accuracy"] or 0.0, len(prompts))
    return ModelEvaluation(
        model=spec.student.path,
        source=source,
        scorer=evaluator.scorer,
        template=spec.prompts.template,
        max_completion_tokens=spec.max_completion_tokens,
        seed=spec.seed,
        answer_sampling=spec.evaluation.answer_sampling if spec.evaluation.samples_per_prompt else None,
        num_prompts=len(prompts),
        accuracy_low=low,
        accuracy_high=high,
        metrics={name: value for name, value in evaluation.metrics.items() if value is not None},
        verdicts=evaluation.verdicts,
        device=str(device),
        precision=precision,
        versions={name: version(name) for name in ("incipit", "torch", "transformers")},
        seconds=time.monotonic() - began,
    )


def compared(first: ModelEvaluation, second: ModelEvaluation) -> PairedComparison:
    """The two paired by problem; ValueError with the whole sentence when they answered different ones."""
    mine, theirs = first.verdicts, second.verdicts
    if mine.problems != theirs.problems:
        raise ValueError(
            f"{first.source} ({first.num_prompts} problems) and {second.source} ({second.num_prompts} problems) are not "
            "the same problems, so they cannot be paired; evaluate both on the same task with the same --limit."
        )
    pairs = list(zip(mine.greedy(), theirs.greedy(), strict=True))
    difference, low, high = paired_interval([a for a, _ in pairs], [b for _, b in pairs])
    average: tuple[float, float, float] | tuple[None, None, None] = (None, None, None)
    if mine.samples_right and theirs.samples_right:
        average = paired_interval(
            [count / mine.samples_per_problem for count in mine.samples_right],
            [count / theirs.samples_per_problem for count in theirs.samples_right],
        )
    return PairedComparison(
        num_problems=len(pairs),
        only_first=sum(a and not b for a, b in pairs),
        only_second=sum(b and not a for a, b in pairs),
        mcnemar_p=mcnemar(mine.greedy(), theirs.greedy()),
        difference=difference,
        difference_low=low,
        difference_high=high,
        average_difference=average[0],
        average_difference_low=average[1],
        average_difference_high=average[2],
    )


def _check_context(spec: RunSpec, model: LanguageModel, prompts: list[EncodedPrompt]) -> None:
    longest = max(len(prompt.token_ids) for prompt in prompts)
    context = model.context_tokens
    if context is not None and longest + spec.max_completion_tokens > context:
        message = (
            f"max_completion_tokens is {spec.max_completion_tokens} but the model's context of {context} tokens leaves "
            f"{max(context - longest, 0)} after the longest prompt ({longest}); lower it (--max-tokens)."
        )
        raise RunError("bad_data", message, [Finding(field="max_completion_tokens", message=message)])
