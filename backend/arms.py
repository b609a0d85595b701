"""One finished run as an arm of a comparison. Pure: computed from recorded figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from backend.schemas import Evaluation, Run
from backend.unique_labels import id_end
from engine.estimators import mcnemar, wilson
from engine.flops import FlopLedger
from engine.frozen import Frozen
from engine.prompt_spec import PromptColumns
from engine.verdicts import Verdicts

_NO_METHOD = frozenset({"name", "seed", "checkpoints", "traces"})
"""What two seeds of a variant may differ in."""
_PROBLEMS = frozenset({"path", "num_prompts", "report_path", "num_report_prompts", *PromptColumns.model_fields})
"""Fields of a spec's evaluation that say which problems it asks."""


class Arm(Frozen):
    """One finished run."""

    run_id: str
    name: str
    """Unlike that of every other arm beside it."""
    variant: str
    """See `variant_names`."""
    seed: int
    note: str
    student: str
    prefix: str
    region: Literal["prefix", "window", "suffix"]
    """Where its loss applies."""
    num_prompts: int
    """Prompts behind accuracy and exact."""
    accuracy: float
    accuracy_low: float
    """Wilson interval over prompts, 95 %; it says nothing about other seeds."""
    accuracy_high: float
    mcnemar_p: float | None
    """Exact p-value of McNemar's test against the baseline, paired by problem; None without a baseline on the same problems."""
    avg_at_k: float | None
    """Mean over problems of the share of right samples; None when no samples were taken."""
    avg_at_k_low: float | None
    """95 % interval over problems, the samples of a problem as one cluster."""
    avg_at_k_high: float | None
    samples_per_problem: int
    exact: float | None
    eos_rate: float | None
    repetition: float | None
    """Share of repeated 4-grams in greedy texts."""
    reverse_kl_before: float | None
    """Of the base student, mean over full-length samples, nats per token."""
    reverse_kl: float | None
    """The same after training, at the best checkpoint."""
    share_inside: float | None
    """Share of the base student's reverse KL where the arm's first step applies its loss; None for whole completions."""
    tail_before: float | None
    """Reverse KL beyond the horizon before training, nats per token."""
    tail_after: float | None
    """The same after training, at the best checkpoint."""
    flops: FlopLedger
    training_seconds: float
    saving: float | None
    """The baseline's training FLOPs / this arm's; None for arms with another student or other problems."""
    flops_to_target: float | None
    """Training FLOPs at the first dev evaluation that reached the target accuracy; None when none did."""
    is_baseline: bool
    shares_problems: bool
    """Whether its evaluations ask what the baseline's ask; False without a baseline."""
    dev_curve: list[tuple[float, float]]
    """Training FLOPs and accuracy of the student's dev evaluations, in their order."""


def final(evaluations: list[Evaluation]) -> Evaluation:
    """The evaluation of the kept checkpoint whose figures are reported."""
    students = [e for e in evaluations if e.subject == "student"]
    # Each new best is marked; the last mark is on the checkpoint that is kept.
    kept = [e for e in students if e.is_best] or students
    return next((e for e in students if e.split == "report"), None) or kept[-1]


def _paired_p(mine: Verdicts | None, theirs: Verdicts | None) -> float | None:
    if mine is None or theirs is None or mine.problems != theirs.problems:
        return None
    return mcnemar(mine.greedy(), theirs.greedy())


def variant_names(runs: Iterable[Run]) -> dict[str, str]:
    """Of which variant each run is a seed, by its id.

    Runs of one name that differ in more than their seed, or repeat it, are no seeds of one variant: then the end of an id
    tells them apart.
    """
    by_name: dict[str, dict[tuple[str, int], list[Run]]] = {}
    for run in runs:
        groups = by_name.setdefault(run.variant or run.name, {})
        method = run.spec.model_dump_json(exclude=set(_NO_METHOD))
        repeats = sum(run.seed == other.seed for key, group in groups.items() if key[0] == method for other in group)
        groups.setdefault((method, repeats), []).append(run)
    return {
        run.id: name if len(groups) == 1 else f"{name} ({id_end(group[0].id)})"
        for name, groups in by_name.items()
        for group in groups.values()
        for run in group
    }


def problems_of(run: Run) -> str:
    """The same for runs whose evaluations ask the same problems, as far as their specs tell."""
    return run.spec.evaluation.model_dump_json(include=set(_PROBLEMS))


def arm_of(
    run: Run,
    name: str,
    variant: str,
    evaluations: list[Evaluation],
    baseline: Run | None,
    of_baseline: Verdicts | None,
    target: float,
) -> Arm:
    """A run with its evaluations as an arm called `name`; `of_baseline` are the baseline's verdicts, `target` the accuracy to reach."""
    students = [e for e in evaluations if e.subject == "student"]
    kept = final(evaluations)
    before = next((e for e in evaluations if e.subject == "base" and e.split == kept.split), None)
    accuracy = kept.metrics.get("accuracy") or 0.0
    low, high = wilson(accuracy, kept.num_prompts)
    curve = [(e.training_flops, e.metrics.get("accuracy") or 0.0) for e in students if e.split == "dev"]
    is_full = run.spec.trains_whole_completions
    # A file may have changed between two runs: where the problems themselves are recorded, they decide.
    other_file = kept.verdicts and of_baseline and kept.verdicts.problems != of_baseline.problems
    shares_problems = baseline is not None and problems_of(baseline) == problems_of(run) and not other_file
    comparable = shares_problems and baseline is not None and baseline.spec.student == run.spec.student
    assert run.flops is not None
    return Arm(
        run_id=run.id,
        name=name,
        variant=variant,
        seed=run.seed,
        note=run.note,
        student=run.spec.student.path,
        prefix=run.prefix,
        region="prefix" if run.spec.loss_region.kind == "whole" else run.spec.loss_region.kind,
        num_prompts=kept.num_prompts,
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        mcnemar_p=_paired_p(kept.verdicts, of_baseline) if baseline is not None and run.id != baseline.id else None,
        avg_at_k=kept.metrics.get("avg_at_k"),
        avg_at_k_low=kept.metrics.get("avg_at_k_low"),
        avg_at_k_high=kept.metrics.get("avg_at_k_high"),
        samples_per_problem=kept.verdicts.samples_per_problem if kept.verdicts else 0,
        exact=kept.metrics.get("exact"),
        eos_rate=kept.metrics.get("eos_rate"),
        repetition=kept.metrics.get("repetition"),
        reverse_kl_before=before.metrics.get("reverse_kl") if before else None,
        reverse_kl=kept.metrics.get("reverse_kl"),
        share_inside=before.metrics.get("share_inside") if before and not is_full else None,
        tail_before=before.metrics.get("reverse_kl_beyond") if before and not is_full else None,
        tail_after=kept.metrics.get("reverse_kl_beyond") if not is_full else None,
        flops=run.flops,
        training_seconds=run.training_seconds or 0.0,
        saving=baseline.flops.training / run.flops.training if comparable and baseline and baseline.flops else None,
        flops_to_target=min((flops for flops, reached in curve if reached >= target), default=None),
        is_baseline=baseline is not None and run.id == baseline.id,
        shares_problems=shares_problems,
        dev_curve=curve,
    )
