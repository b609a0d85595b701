"""API records as data frames, one row per mark of a chart; the same frames stand behind `Show data` and the CSV."""

from collections.abc import Sequence

import pandas as pd

from backend.schemas import Evaluation, Metric, Positions, Rollout, RolloutDetail, RunSummary, StoredEvent
from dashboard.quantities import accuracy_text, flops_text

MAX_POSITIONS = 512  # marks of a line that a browser draws without delay; longer completions are averaged in bins
NOTABLE_EVENTS = frozenset({"step", "evaluation", "traces", "estimated"})  # shown as charts, so left out of the log


def runs_frame(runs: Sequence[RunSummary]) -> pd.DataFrame:
    """Figures as numbers and moments as such, so that a column is sorted by size; units are in the view's headers."""
    return pd.DataFrame(
        {
            "name": [run.name for run in runs],
            "state": [run.state for run in runs],
            "accuracy": [run.report_accuracy if run.report_accuracy is not None else run.best_accuracy for run in runs],
            "prefix": [run.prefix for run in runs],
            "progress": [100.0 * run.step / run.num_steps if run.num_steps else 0.0 for run in runs],
            "training": [gflop(run.training_flops) for run in runs],
            "time": [run.training_seconds for run in runs],
            "experiment": [run.experiment_name for run in runs],
            "seed": [run.seed for run in runs],
            "created": [run.created_at for run in runs],
            "id": [run.id for run in runs],
        }
    ).astype({"training": float, "time": float})


def gflop(flops: float | None) -> float | None:
    """FLOPs in the unit that tables have in their headers."""
    return None if flops is None else flops / 1e9


def metric_frame(metric: Metric) -> pd.DataFrame:
    """step, value; steps without a value are left out."""
    frame = pd.DataFrame({"step": metric.steps, "value": metric.values}, columns=["step", "value"])
    return frame.dropna().astype({"step": int, "value": float})


def evaluations_frame(evaluations: Sequence[Evaluation], arm: str = "") -> pd.DataFrame:
    """One row per evaluation with all that was measured."""
    rows = [
        {
            "arm": arm,
            "step": evaluation.step,
            "subject": evaluation.subject,
            "split": evaluation.split,
            "num_prompts": evaluation.num_prompts,
            "training_flops": evaluation.training_flops,
            "training_seconds": evaluation.training_seconds,
            "is_best": evaluation.is_best,
            **evaluation.metrics,
        }
        for evaluation in evaluations
    ]
    return pd.DataFrame(rows)


def positions_frame(positions: Positions, series: str) -> pd.DataFrame:
    """series, position (counted from 1), mean, p90, teacher_entropy, count; long completions averaged in bins.

    Positions that no rollout supervises are left out: they have no mean.
    """
    frame = pd.DataFrame(
        {
            "series": series,
            "position": range(1, len(positions.mean) + 1),
            "mean": positions.mean,
            "p90": _padded(positions.p90, len(positions.mean)),
            "teacher_entropy": _padded(positions.teacher_entropy, len(positions.mean)),
            "count": _padded(positions.count, len(positions.mean)),
        }
    )
    frame = frame[frame["count"] != 0].reset_index(drop=True)
    if len(frame) <= MAX_POSITIONS:
        return frame
    width = -(-len(frame) // MAX_POSITIONS)
    bins = frame.groupby(["series", (frame["position"] - 1) // width], as_index=False)
    return bins.agg({"position": "min", "mean": "mean", "p90": "mean", "teacher_entropy": "mean", "count": "mean"})


def _padded(values: Sequence[float], length: int) -> list[float | None]:
    return [*values, *[None] * (length - len(values))]


def log_lines(events: Sequence[StoredEvent]) -> list[tuple[str, str, str]]:
    """Time, kind and words of the events that are not drawn elsewhere, newest first."""
    told = [event for event in events if event.kind not in NOTABLE_EVENTS]
    return [(event.time.strftime("%H:%M:%S"), event.kind, _words(event)) for event in reversed(told)]


def _words(event: StoredEvent) -> str:
    payload = event.payload
    if isinstance(payload.get("message"), str):
        return str(payload["message"])
    hidden = {"kind", "time", "event_version", "versions", "findings", "flops", "manifest_sha256"}
    return ", ".join(
        f"{name} {value}" for name, value in payload.items() if name not in hidden and value not in ("", [])
    )


def evaluation_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Evaluations for reading: the subject in words and the columns that people compare."""
    named = frame.assign(
        who=frame["subject"].map({"student": "student", "base": "base student", "teacher": "teacher"}),
        training=frame["training_flops"].map(flops_text),
    )
    wanted = {
        "who": "who",
        "step": "step",
        "split": "split",
        "num_prompts": "prompts",
        "accuracy": "accuracy",
        "exact": "exact text",
        "reverse_kl_inside": "reverse KL inside",
        "reverse_kl_beyond": "reverse KL beyond",
        "share_inside": "share inside",
        "sampled_eos_rate": "EOS rate",
        "sampled_mean_tokens": "tokens",
        "sampled_repetition": "repetition",
        "training": "training",
    }
    present = [name for name in wanted if name in named]
    return named[present].rename(columns=wanted).round(4)


def accuracy_of(run: RunSummary) -> str:
    """The figure to show for a run: the reported one if there is one, else the best so far."""
    if run.report_accuracy is not None:
        return accuracy_text(run.report_accuracy)
    return f"{accuracy_text(run.best_accuracy)} (dev)" if run.best_accuracy is not None else "–"


def horizons_frame(horizons: dict[str, int]) -> pd.DataFrame:
    """label, horizon: the dashed lines of a chart by position."""
    return pd.DataFrame({"label": list(horizons), "horizon": list(horizons.values())})


def trace_frame(rollout: RolloutDetail) -> pd.DataFrame:
    """A traced rollout as a table, one row per completion token; position is counted from 1."""
    trace = rollout.trace
    return pd.DataFrame(
        {
            "position": range(1, len(trace.texts) + 1),
            "token": trace.texts,
            "id": trace.token_ids,
            "trained": [rollout.trained_start <= at < rollout.horizon for at in range(len(trace.texts))],
            "reverse_kl": trace.reverse_kl,
            "forward_kl": trace.forward_kl,
            "jsd": trace.jsd,
            "student_logprob": trace.student_logprob,
            "teacher_logprob": trace.teacher_logprob,
            "student_rank": trace.student_rank,
            "teacher_rank": trace.teacher_rank,
            "student_entropy": trace.student_entropy,
            "teacher_entropy": trace.teacher_entropy,
        }
    )


def rollouts_frame(rollouts: Sequence[Rollout]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt": [one.prompt_index for one in rollouts],
            "right": [one.is_right for one in rollouts],
            "mean reverse KL": [one.mean_reverse_kl for one in rollouts],
            "largest": [one.max_reverse_kl for one in rollouts],
            "share inside": [one.inside_share for one in rollouts],
            "tokens": [one.num_tokens for one in rollouts],
            "ended by": [one.finish_reason for one in rollouts],
            "completion": [one.completion for one in rollouts],
        }
    )
