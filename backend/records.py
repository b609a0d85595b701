"""The tables that hold what a run records. Rows of one attempt carry its fence.

The recorder copies an attempt's events.jsonl into them and stores the byte offset in `attempts` in the same
transaction.
"""

from datetime import datetime
from typing import Any, get_args

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from backend.columns import CleanText, Id, RecordColumn
from backend.ids import new_id
from backend.tables import Table, one_of
from engine.events import Split, Subject
from engine.trace_profile import TraceProfile
from engine.verdicts import Verdicts

_RUN = "runs.id"


class Attempt(Table):
    """One try at a run, by one worker; its folder is attempts/<fence> in the run's folder."""

    __tablename__ = "attempts"

    run_id: Mapped[str] = mapped_column(Id, ForeignKey(_RUN, ondelete="CASCADE"), primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    worker_id: Mapped[str] = mapped_column(String(128))
    host: Mapped[str] = mapped_column(String(255))
    boot_id: Mapped[str] = mapped_column(String(64), default="")
    pid: Mapped[int | None]
    """Of the engine process."""
    pid_started: Mapped[float | None]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    exit_code: Mapped[int | None]
    """Of the engine process; negative is the signal that ended it."""
    outcome: Mapped[str | None] = mapped_column(String(32))
    """State that the run was left in, or why the attempt ended: succeeded, failed, cancelled, requeued, lost."""
    resumed_from_step: Mapped[int] = mapped_column(default=0)
    resume_checkpoint_id: Mapped[str | None] = mapped_column(Id)
    event_offset: Mapped[int] = mapped_column(BigInteger, default=0)
    """Bytes of this attempt's events.jsonl that are in rows."""


class Event(Table):
    """The run's history: what the engine emitted and what the services did. `seq` has no gaps."""

    __tablename__ = "events"

    run_id: Mapped[str] = mapped_column(Id, ForeignKey(_RUN, ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    time: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(32))
    fence: Mapped[int] = mapped_column(BigInteger)
    payload: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Metric(Table):
    """A number at a step: those of StepDone.metrics, horizon, training_flops, executed_flops, peak_memory_bytes,
    seconds.<phase>; and of
    TailMeasured, as sentinel_<name> and sentinel_teacher_<name>."""

    __tablename__ = "metrics"

    run_id: Mapped[str] = mapped_column(Id, ForeignKey(_RUN, ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(250), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float | None]
    fence: Mapped[int] = mapped_column(BigInteger)


class MetricHighlight(Table):
    """A copy of a metric's point that a chart of a long run must show, see backend/queries/metrics.py."""

    __tablename__ = "metric_highlights"

    run_id: Mapped[str] = mapped_column(Id, ForeignKey(_RUN, ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(250), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float | None]


class Evaluation(Table):
    """A full-length evaluation."""

    __tablename__ = "evaluations"
    __table_args__ = (
        one_of("subject", get_args(Subject), "subject"),
        one_of("split", get_args(Split), "split"),
    )

    run_id: Mapped[str] = mapped_column(Id, ForeignKey(_RUN, ondelete="CASCADE"), primary_key=True)
    subject: Mapped[str] = mapped_column(String(16), primary_key=True)
    split: Mapped[str] = mapped_column(String(16), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fence: Mapped[int] = mapped_column(BigInteger)
    num_prompts: Mapped[int]
    horizon: Mapped[int]
    metrics: Mapped[dict[str, Any]]
    training_flops: Mapped[float]
    training_seconds: Mapped[float]
    sampled_tokens: Mapped[float | None]
    """Completion tokens of all steps so far, whoever wrote them; None where steps do not count them."""
    trained_tokens: Mapped[float | None]
    """Those of them that carried loss."""
    is_best: Mapped[bool]
    verdicts: Mapped[Verdicts | None] = mapped_column(RecordColumn(Verdicts))


class PositionCurve(Table):
    """A quantity by completion position: training (the step's loss, split train) or the samples of an evaluation."""

    __tablename__ = "positions"
    __table_args__ = (
        one_of("source", ("training", "student", "base"), "source"),
        one_of("split", ("train", "dev", "report"), "split"),
    )

    run_id: Mapped[str] = mapped_column(Id, ForeignKey(_RUN, ondelete="CASCADE"), primary_key=True)
    source: Mapped[str] = mapped_column(String(16), primary_key=True)
    split: Mapped[str] = mapped_column(String(16), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fence: Mapped[int] = mapped_column(BigInteger)
    horizon: Mapped[int]
    mean: Mapped[list[Any]]
    """Nats, by position; p90 and teacher_entropy are empty for training."""
    p90: Mapped[list[Any]] = mapped_column(default=list)
    teacher_entropy: Mapped[list[Any]] = mapped_column(default=list)
    count: Mapped[list[Any]] = mapped_column(default=list)


class Rollout(Table):
    """A traced rollout; its tokens are in row `row` of the Parquet file at `path` in the attempt folder."""

    __tablename__ = "rollouts"
    __table_args__ = (Index("ix_rollouts_run_id_step", "run_id", "step"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    run_id: Mapped[str] = mapped_column(Id, ForeignKey(_RUN, ondelete="CASCADE"))
    fence: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int]
    subject: Mapped[str] = mapped_column(String(16))
    horizon: Mapped[int]
    path: Mapped[str] = mapped_column(Text)
    row: Mapped[int]
    prompt_index: Mapped[int]
    prompt: Mapped[str] = mapped_column(CleanText)
    completion: Mapped[str] = mapped_column(CleanText)
    answer: Mapped[str | None] = mapped_column(CleanText)
    is_right: Mapped[bool | None]
    num_prompt_tokens: Mapped[int]
    num_tokens: Mapped[int]
    finish_reason: Mapped[str] = mapped_column(String(16))
    mean_reverse_kl: Mapped[float]
    max_reverse_kl: Mapped[float]
    inside_share: Mapped[float | None]


class StepProfile(Table):
    """What the traced rollouts of a step say together. It is written with their rows, so readers open no trace file."""

    __tablename__ = "step_profiles"

    run_id: Mapped[str] = mapped_column(Id, ForeignKey(_RUN, ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fence: Mapped[int] = mapped_column(BigInteger)
    subject: Mapped[str] = mapped_column(String(16))
    horizon: Mapped[int]
    num_tokens: Mapped[int] = mapped_column(BigInteger)
    reverse_kl: Mapped[float]
    """Summed over its tokens, in nats."""
    grid: Mapped[dict[str, Any]]
    """The row of the position x step map: bin_tokens, rollouts, tokens, mean (by metric), in at most 64 bins."""
    profile: Mapped[TraceProfile] = mapped_column(RecordColumn(TraceProfile))
    """In up to 512 bins; without its token types."""
    token_types: Mapped[list[Any]]
    """Of each token type: id, text, count, summed reverse KL in nats."""


class ResourceSample(Table):
    """What an attempt's engine used at a moment, see backend.resources.ResourceFigures; at most 720 of a run."""

    __tablename__ = "resource_samples"

    run_id: Mapped[str] = mapped_column(Id, ForeignKey(_RUN, ondelete="CASCADE"), primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Counted within the attempt."""
    time: Mapped[datetime]
    cpu_percent: Mapped[float | None]
    rss_bytes: Mapped[int | None] = mapped_column(BigInteger)
    memory_available_bytes: Mapped[int | None] = mapped_column(BigInteger)
    gpu_percent: Mapped[float | None]
    gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    gpu_memory_total_bytes: Mapped[int | None] = mapped_column(BigInteger)
    disk_free_bytes: Mapped[int | None] = mapped_column(BigInteger)


class Checkpoint(Table):
    """A committed checkpoint. The row is the commitment: a folder without one does not exist for readers."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("ix_checkpoints_run_id_step", "run_id", "step"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    run_id: Mapped[str] = mapped_column(Id, ForeignKey(_RUN, ondelete="CASCADE"))
    fence: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int]
    path: Mapped[str] = mapped_column(Text)
    """Relative to the attempt folder."""
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    accuracy: Mapped[float | None]
    is_best: Mapped[bool]
    files: Mapped[list[Any]]
    """Records of backend.schemas.CheckpointFile, from the manifest, which is not among them itself."""
    created_at: Mapped[datetime]
    removed_at: Mapped[datetime | None]
    """When its folder was deleted, or found corrupt; such a checkpoint is not shown."""
    pinned: Mapped[bool] = mapped_column(default=False)
    """Whether a person wants it to stay, whatever the spec says."""
    damage: Mapped[str | None] = mapped_column(Text)
    """What was wrong with its files when an attempt was to start from it; see queries/resumable.py for how it comes back."""
