"""The comparison of runs as data frames: for the chart, for reading and for CSV."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from backend.arms import Arm, problems_of, variant_names
from backend.comparison import Comparison
from backend.schemas import Evaluation, Run
from backend.unique_labels import run_labels
from dashboard.frames import gflop
from dashboard.quantities import flops_text, times_text
from engine.seed_statistics import mean_interval

Pairs = Sequence[tuple[Run, list[Evaluation]]]
COSTS = ("training_flops", "training_seconds", "trained_tokens", "sampled_tokens")
_LABEL_GAP = 0.09  # of an axis's length: closer labels cover each other
_NAMES = frozenset({"name", "seed", "spec_version"})  # differ between runs without being a difference in method


def curve_points(runs: Pairs, metric: str = "accuracy") -> pd.DataFrame:
    """One row per dev evaluation of a student that has the metric: arm, run, step, the costs (COSTS), value, is_best."""
    labels = run_labels([run for run, _ in runs])
    variants = variant_names(run for run, _ in runs)
    rows = [
        {
            "arm": variants[run.id],
            "run": labels[run.id],
            "step": one.step,
            **{cost: getattr(one, cost) for cost in COSTS},
            "value": one.metrics.get(metric),
            "is_best": _is_last_best(one, evaluations),
        }
        for run, evaluations in runs
        for one in evaluations
        if one.subject == "student" and one.split == "dev"
    ]
    return pd.DataFrame(rows).dropna(subset=["value"]) if rows else pd.DataFrame()


def seed_curves(points: pd.DataFrame, *, is_share: bool = True) -> pd.DataFrame:
    """One row per arm and step that several seeds were evaluated at: mean value, its 95 % interval over seeds, mean costs.

    The interval of a share is cut at 0 and 1.
    """
    columns = ["arm", "step", *COSTS, "value", "low", "high", "seeds"]
    rows = []
    for (arm, step), group in points.groupby(["arm", "step"], sort=False):
        interval = mean_interval(group["value"].tolist())
        if interval is not None:
            low, high = (min(max(end, 0.0), 1.0) if is_share else end for end in interval)
            rows.append([arm, step, *group[[*COSTS, "value"]].mean(), low, high, len(group)])
    return pd.DataFrame(rows, columns=columns)


def pareto_front(points: pd.DataFrame, cost: str, *, falls: bool = False) -> pd.DataFrame:
    """The evaluations that no other one beats: less of `cost` for a value at least as good. Cheapest first.

    `falls` is whether smaller values are better.
    """
    ordered = points.dropna(subset=[cost]).sort_values([cost, "value"], ascending=[True, falls])
    goodness = -ordered["value"] if falls else ordered["value"]
    return ordered[goodness > goodness.cummax().shift(fill_value=-math.inf)]


def seeds_table(comparison: Comparison) -> pd.DataFrame:
    """One row per variant for reading: means over seeds, with intervals where there are several."""
    rows = [
        {
            "variant": one.variant,
            "seeds": one.num_seeds,
            "accuracy": _with_interval(f"{one.accuracy:.3f}", one.accuracy_interval, ".3f"),
            "training, GFLOP": gflop(one.training_flops),
            f"to reach {comparison.target:.2f}": flops_text(one.flops_to_target)
            if one.flops_to_target is not None
            else f"{one.num_reached} of {one.num_seeds} reached it",
            "less compute than the baseline": "baseline"
            if one.is_baseline
            else _with_interval(times_text(one.times_less), one.times_less_interval, ".1f"),
            "accuracy at the budget": "–"
            if one.accuracy_at_budget is None
            else _with_interval(f"{one.accuracy_at_budget:.3f}", one.accuracy_at_budget_interval, ".3f"),
        }
        for one in comparison.seeds
    ]
    return pd.DataFrame(rows)


def _with_interval(mean: str, interval: tuple[float, float] | None, form: str) -> str:
    return mean if interval is None else f"{mean} [{interval[0]:{form}}, {interval[1]:{form}}]"


def parallel_frame(runs: Pairs, comparison: Comparison) -> pd.DataFrame:
    """One row per run and axis: run, arm, axis, order, at (0 to 1 along the axis), label, is_named, accuracy.

    `is_named` leaves out labels that would cover another one. Axes are the spec's fields that differ, then training FLOPs
    (logarithmic) and accuracy. Runs without a result are left out.
    """
    results = {arm.run_id: arm for arm in comparison.arms}
    done = [run for run, _ in runs if run.id in results]
    flat = {run.id: _flat(run.spec.model_dump(mode="json")) for run in done}
    labels, variants = run_labels([run for run, _ in runs]), variant_names(run for run, _ in runs)
    axes: dict[str, dict[str, Any]] = {
        field: {run.id: flat[run.id].get(field) for run in done} for field in _different_fields(flat)
    }
    axes["training FLOPs"] = {run.id: results[run.id].flops.training for run in done}
    axes["accuracy"] = {run.id: results[run.id].accuracy for run in done}
    rows = []
    for order, (axis, values) in enumerate(axes.items()):
        places = _places(values, is_log=axis == "training FLOPs")
        named: dict[str, float] = {}
        for run_id, place in sorted(places.items(), key=lambda item: item[1]):
            if all(abs(place - other) >= _LABEL_GAP for other in named.values()):
                named[run_id] = place
        rows += [
            {
                "run": labels[run.id], "arm": variants[run.id], "axis": axis, "order": order, "at": places[run.id],
                "is_named": run.id in named,
                "label": flops_text(values[run.id]) if axis == "training FLOPs" else _words(values[run.id]),
                "accuracy": results[run.id].accuracy,
            }
            for run in done
        ]  # fmt: skip
    return pd.DataFrame(rows)


def _places(values: dict[str, Any], *, is_log: bool) -> dict[str, float]:
    """Where each value lies on its axis: numbers by size, anything else in order of appearance."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values()):
        numbers = {key: math.log(value) if is_log and value > 0 else float(value) for key, value in values.items()}
    else:
        kinds = list(dict.fromkeys(_words(value) for value in values.values()))
        numbers = {key: float(kinds.index(_words(value))) for key, value in values.items()}
    low, high = min(numbers.values()), max(numbers.values())
    return {key: (number - low) / (high - low) if high > low else 0.5 for key, number in numbers.items()}


def _words(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_last_best(evaluation: Evaluation, evaluations: list[Evaluation]) -> bool:
    """`is_best` says best so far; of these the last one is the checkpoint that is reported."""
    best = [one.step for one in evaluations if one.is_best and one.subject == "student" and one.split == "dev"]
    return bool(best) and evaluation.step == max(best)


def share_problems(runs: Pairs) -> bool:
    """Whether all runs were evaluated on the same prompts, as far as their specs tell."""
    return len({problems_of(run) for run, _ in runs}) == 1


def reference_lines(runs: Pairs, metric: str = "accuracy") -> pd.DataFrame:
    """label, value of every student before training, and of the teacher where it has one, on the dev prompts.

    Empty for runs that do not share their problems: no line would be theirs.
    """
    if not share_problems(runs):
        return pd.DataFrame({"label": [], "value": []})
    students = {run.spec.student.path for run, _ in runs}
    lines: dict[str, float] = {}
    for run, evaluations in runs:
        base = f"base student ({run.spec.student.path.rpartition('/')[2]})" if len(students) > 1 else "base student"
        for one in evaluations:
            value = one.metrics.get(metric)
            if one.split == "dev" and one.subject != "student" and value is not None:
                lines.setdefault(base if one.subject == "base" else "teacher", value)
    return pd.DataFrame({"label": list(lines), "value": list(lines.values())})


def arms_frame(comparison: Comparison) -> pd.DataFrame:
    """Raw figures, one row per arm, for CSV."""
    return pd.DataFrame(
        [
            arm.model_dump(exclude={"flops", "dev_curve"}) | arm.flops.model_dump(by_alias=False)
            for arm in comparison.arms
        ]
    )


def arms_table(comparison: Comparison) -> pd.DataFrame:
    """The same for reading: figures as numbers, so that a column is sorted by size; those with an interval are text."""
    rows = [
        {
            "arm": arm.name,
            "horizon": arm.prefix,
            "accuracy": f"{arm.accuracy:.3f} [{arm.accuracy_low:.3f}, {arm.accuracy_high:.3f}]",
            "McNemar p": arm.mcnemar_p,
            "avg@k": _average(arm),
            "exact": arm.exact,
            "training, GFLOP": gflop(arm.flops.training),
            "saving": 1.0 if arm.is_baseline else arm.saving,
            f"GFLOP to reach {comparison.target:.2f}": gflop(arm.flops_to_target),
            "share inside": arm.share_inside,
            "tail, nats": _change(arm.tail_before, arm.tail_after),
            "EOS": arm.eos_rate,
            "time, s": arm.training_seconds,
        }
        for arm in comparison.arms
    ]
    texts = {"arm", "horizon", "accuracy", "avg@k", "tail, nats"}
    frame = pd.DataFrame(rows)
    return frame.astype({name: float for name in frame.columns if name not in texts})


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
    different = _different_fields(flat)
    if not different:
        return pd.DataFrame()
    columns: dict[str, list[str]] = {"field": different}
    labels = run_labels(runs, taken=columns)
    for run in runs:
        columns[labels[run.id]] = [
            "–" if flat[run.id].get(field) is None else str(flat[run.id][field]) for field in different
        ]
    return pd.DataFrame(columns)


def differences_frame(parent: Mapping[str, Any], document: Mapping[str, Any]) -> pd.DataFrame:
    """field, was, is: where a spec's document differs from the one that it came from; empty when nowhere."""
    flat = {"was": _flat(dict(parent)), "is": _flat(dict(document))}
    rows = [
        {"field": field, "was": _words(flat["was"].get(field)), "is": _words(flat["is"].get(field))}
        for field in _different_fields(flat)
    ]
    return pd.DataFrame(rows)


def _different_fields(flat: Mapping[str, Mapping[str, Any]]) -> list[str]:
    fields = dict.fromkeys(field for values in flat.values() for field in values)
    return [
        field
        for field in fields
        if field not in _NAMES and len({json.dumps(values.get(field)) for values in flat.values()}) > 1
    ]


def _flat(document: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in document.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return found
