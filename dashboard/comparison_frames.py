"""The comparison of runs as data frames: for the chart, for reading and for CSV."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from backend.arms import Arm
from backend.comparison import Comparison
from backend.schemas import Evaluation, Run
from dashboard.quantities import accuracy_text, flops_text, seconds_text, share_text, times_text

Pairs = Sequence[tuple[Run, list[Evaluation]]]
_NAMES = frozenset({"name", "seed", "spec_version"})  # differ between runs without being a difference in method


def curve_points(runs: Pairs) -> pd.DataFrame:
    """One row per dev evaluation of a student: arm, run, step, training_flops, training_seconds, accuracy, is_best."""
    rows = [
        {
            "arm": run.variant or run.name,
            "run": run.name,
            "step": one.step,
            "training_flops": one.training_flops,
            "training_seconds": one.training_seconds,
            "accuracy": one.metrics.get("accuracy"),
            "is_best": _is_last_best(one, evaluations),
        }
        for run, evaluations in runs
        for one in evaluations
        if one.subject == "student" and one.split == "dev"
    ]
    return pd.DataFrame(rows).dropna(subset=["accuracy"]) if rows else pd.DataFrame()


def _is_last_best(evaluation: Evaluation, evaluations: list[Evaluation]) -> bool:
    """`is_best` says best so far; of these the last one is the checkpoint that is reported."""
    best = [one.step for one in evaluations if one.is_best and one.subject == "student" and one.split == "dev"]
    return bool(best) and evaluation.step == max(best)


def reference_lines(runs: Pairs) -> pd.DataFrame:
    """label, accuracy of every student before training, and of the teacher, on the dev prompts."""
    students = {run.spec.student.path for run, _ in runs}
    lines: dict[str, float] = {}
    for run, evaluations in runs:
        base = f"base student ({run.spec.student.path.rpartition('/')[2]})" if len(students) > 1 else "base student"
        for one in evaluations:
            accuracy = one.metrics.get("accuracy")
            if one.split == "dev" and one.subject != "student" and accuracy is not None:
                lines.setdefault(base if one.subject == "base" else "teacher", accuracy)
    return pd.DataFrame({"label": list(lines), "accuracy": list(lines.values())})


def arms_frame(comparison: Comparison) -> pd.DataFrame:
    """Raw figures, one row per arm, for CSV."""
    return pd.DataFrame(
        [
            arm.model_dump(exclude={"flops", "dev_curve"}) | arm.flops.model_dump(by_alias=False)
            for arm in comparison.arms
        ]
    )


def arms_table(comparison: Comparison) -> pd.DataFrame:
    """The same for reading, with units."""
    rows = [
        {
            "arm": arm.name,
            "horizon": arm.prefix,
            "accuracy": f"{arm.accuracy:.3f} [{arm.accuracy_low:.3f}, {arm.accuracy_high:.3f}]",
            "McNemar p": "–" if arm.mcnemar_p is None else f"{arm.mcnemar_p:.2g}",
            "avg@k": _average(arm),
            "exact": accuracy_text(arm.exact),
            "training": flops_text(arm.flops.training),
            "saving": "baseline" if arm.is_baseline else times_text(arm.saving),
            f"to reach {comparison.target:.2f}": flops_text(arm.flops_to_target)
            if arm.flops_to_target is not None
            else "not reached",
            "share inside": share_text(arm.share_inside),
            "tail, nats": _change(arm.tail_before, arm.tail_after),
            "EOS": share_text(arm.eos_rate),
            "time": seconds_text(arm.training_seconds),
        }
        for arm in comparison.arms
    ]
    return pd.DataFrame(rows)


def _average(arm: Arm) -> str:
    if arm.avg_at_k is None or arm.avg_at_k_low is None or arm.avg_at_k_high is None:
        return "–"
    return f"{arm.avg_at_k:.3f} [{arm.avg_at_k_low:.3f}, {arm.avg_at_k_high:.3f}]"


def _change(before: float | None, after: float | None) -> str:
    if before is None and after is None:
        return "–"
    return f"{'–' if before is None else f'{before:.3f}'} → {'–' if after is None else f'{after:.3f}'}"


def config_differences(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per field that differs, one column per run; empty when there is none."""
    flat = {run.id: _flat(run.spec.model_dump(mode="json")) for run in runs}
    fields = list(dict.fromkeys(field for values in flat.values() for field in values))
    different = [
        field
        for field in fields
        if field not in _NAMES and len({json.dumps(values.get(field)) for values in flat.values()}) > 1
    ]
    if not different:
        return pd.DataFrame()
    columns: dict[str, list[str]] = {"field": different}
    for run in runs:
        name = run.name if [one.name for one in runs].count(run.name) == 1 else f"{run.name} ({run.id[-6:]})"
        columns[name] = ["–" if flat[run.id].get(field) is None else str(flat[run.id][field]) for field in different]
    return pd.DataFrame(columns)


def _flat(document: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in document.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found
