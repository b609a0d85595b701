"""The tables: experiments and their runs, and the installation's own state. What a run records is in records.py."""

from datetime import datetime
from typing import Any, ClassVar, get_args

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from backend.analyses import AnalysisState
from backend.asked import Asked, Found
from backend.columns import CleanText, Id, Json, RecordColumn, UtcDateTime
from backend.ids import new_id
from backend.run_states import RunState
from engine.flops import FlopLedger
from engine.spec import RunSpec


class Table(DeclarativeBase):
    """Every constraint has a name, which migrations on SQLite need."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime(), dict[str, Any]: Json, list[Any]: Json}


def one_of(column: str, values: tuple[str, ...], name: str) -> CheckConstraint:
    """A CHECK that a text column holds one of these words."""
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=name)


class Experiment(Table):
    """A question, which its runs answer."""

    __tablename__ = "experiments"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(String(64), default="default")
    created_by: Mapped[str] = mapped_column(String(128), default="local")
    name: Mapped[str] = mapped_column(String(128))
    note: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[datetime]


class Run(Table):
    """A training job with its frozen spec. People write `desired_state`; the holder of the lease writes `state`."""

    __tablename__ = "runs"
    __table_args__ = (
        one_of("state", get_args(RunState), "state"),
        one_of("desired_state", ("run", "pause", "cancel"), "desired_state"),
        Index("ix_runs_queue", "state", "priority", "project_id", "created_by", "id"),
        Index("ix_runs_served_project", "project_id", "claimed_at"),
        Index("ix_runs_served_user", "project_id", "created_by", "claimed_at"),
        Index("ix_runs_experiment_id", "experiment_id", "id"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    experiment_id: Mapped[str] = mapped_column(Id, ForeignKey("experiments.id", ondelete="CASCADE"))
    project_id: Mapped[str] = mapped_column(String(64), default="default")
    created_by: Mapped[str] = mapped_column(String(128), default="local")
    created_at: Mapped[datetime]

    spec: Mapped[RunSpec] = mapped_column(RecordColumn(RunSpec))
    name: Mapped[str] = mapped_column(String(300))
    variant: Mapped[str] = mapped_column(String(128), default="")
    note: Mapped[str] = mapped_column(Text, default="")
    # What the run list shows of the spec, so that it need not read the specs of 1,000 runs.
    seed: Mapped[int] = mapped_column(BigInteger)
    num_steps: Mapped[int]
    student: Mapped[str] = mapped_column(Text)
    teacher: Mapped[str] = mapped_column(Text)
    prefix: Mapped[str] = mapped_column(String(128))
    divergence: Mapped[str] = mapped_column(String(128))

    state: Mapped[str] = mapped_column(String(16), default="queued")
    desired_state: Mapped[str] = mapped_column(String(16), default="run")
    desired_at: Mapped[datetime | None]
    """When people last said what they want."""
    checkpoint_on_cancel: Mapped[bool] = mapped_column(default=False)
    """Whether a cancelled run saves a checkpoint before it stops."""
    priority: Mapped[int] = mapped_column(default=0)
    """Higher runs first."""
    not_before: Mapped[datetime | None]
    """Earliest time of the next claim, after a failure that is tried again."""
    last_rung_at: Mapped[datetime | None]
    """When the doorbell was last rung for this run."""
    claimed_at: Mapped[datetime | None]
    """When a worker last took it: of equally urgent runs those come first whose owner was served longest ago."""

    # What it needs of a worker, see backend/needs.py; its labels are in RunLabel.
    device: Mapped[str] = mapped_column(String(8), default="auto")
    num_gpus: Mapped[int] = mapped_column(default=1)
    num_processes: Mapped[int] = mapped_column(default=1)
    cpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    spec_version: Mapped[int] = mapped_column(default=1)
    event_version: Mapped[int] = mapped_column(default=0)
    refusal: Mapped[str | None] = mapped_column(Text)
    """Why the last worker that looked at it could not read its spec; None once one has taken it."""

    fence: Mapped[int] = mapped_column(BigInteger, default=0)
    """Raised by each claim; names the attempt folder. A write with a lower fence must change nothing."""
    lease_owner: Mapped[str | None] = mapped_column(String(128))
    """Id of the worker that holds the lease."""
    lease_until: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    first_fence: Mapped[int] = mapped_column(BigInteger, default=0)
    """Checkpoints of attempts before this fence do not count: the run was begun again."""
    row_version: Mapped[int] = mapped_column(default=0)
    """Raised by each change of state or wish, not by what training records."""
    attempt: Mapped[int] = mapped_column(default=0)
    """Attempts that count against max_attempts."""
    max_attempts: Mapped[int] = mapped_column(default=3)

    started_at: Mapped[datetime | None]
    ready_at: Mapped[datetime | None]
    """When the engine of the present attempt said that its models are loaded."""
    finished_at: Mapped[datetime | None]
    progressed_at: Mapped[datetime | None]
    """When something of it was last recorded."""
    phase: Mapped[str] = mapped_column(String(16), default="")
    last_step: Mapped[int] = mapped_column(default=0)
    last_checkpoint_id: Mapped[str | None] = mapped_column(Id)
    best_accuracy: Mapped[float | None]
    report_accuracy: Mapped[float | None]
    flops: Mapped[FlopLedger | None] = mapped_column(RecordColumn(FlopLedger))
    training_flops: Mapped[float | None]
    """flops.training, as a column to sort by."""
    executed_flops: Mapped[float | None]
    training_seconds: Mapped[float | None]
    """Wall seconds of the recorded steps alone."""
    failure_kind: Mapped[str | None] = mapped_column(String(32))
    failure_message: Mapped[str | None] = mapped_column(CleanText)


class RunLabel(Table):
    """A label that a run's worker must have."""

    __tablename__ = "run_labels"

    run_id: Mapped[str] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    label: Mapped[str] = mapped_column(String(64), primary_key=True)


class Preflight(Table):
    """A check of a spec on a worker."""

    __tablename__ = "preflights"
    __table_args__ = (one_of("state", ("queued", "running", "done", "failed"), "state"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(String(64), default="default")
    created_by: Mapped[str] = mapped_column(String(128), default="local")
    created_at: Mapped[datetime]
    spec: Mapped[RunSpec] = mapped_column(RecordColumn(RunSpec))
    state: Mapped[str] = mapped_column(String(16), default="queued", index=True)
    findings: Mapped[list[Any]] = mapped_column(default=list)
    """Records of engine.findings.Finding."""
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    fence: Mapped[int] = mapped_column(BigInteger, default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(128))
    lease_until: Mapped[datetime | None]
    last_rung_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Analysis(Table):
    """What a worker does without training: an analysis, a question of the playground, or an export of a checkpoint."""

    __tablename__ = "analyses"
    __table_args__ = (one_of("state", get_args(AnalysisState), "state"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(String(64), default="default")
    created_by: Mapped[str] = mapped_column(String(128), default="local")
    created_at: Mapped[datetime]
    spec: Mapped[Asked] = mapped_column(RecordColumn[Asked](Asked))
    kind: Mapped[str] = mapped_column(String(32))
    """Of the analysis, or `playground`, or `export`."""
    checkpoint_id: Mapped[str | None] = mapped_column(Id, index=True)
    """Of an export, the checkpoint that is exported."""
    state: Mapped[str] = mapped_column(String(16), default="queued", index=True)
    done: Mapped[float] = mapped_column(default=0.0)
    """Share of the work that is done."""
    detail: Mapped[str] = mapped_column(CleanText, default="")
    findings: Mapped[list[Any]] = mapped_column(default=list)
    """Records of engine.findings.Finding."""
    result: Mapped[Found | None] = mapped_column(RecordColumn[Found](Found))
    traces: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    """The tokens of the answers as a Parquet file, see engine/token_trace.py; None for an analysis."""
    removed_at: Mapped[datetime | None]
    """When the files of an export were let go; worker/export_garbage.py removes them."""
    attempt: Mapped[int] = mapped_column(default=0)
    fence: Mapped[int] = mapped_column(BigInteger, default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(128))
    lease_until: Mapped[datetime | None]
    last_rung_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class SavedView(Table):
    """A comparison that somebody keeps, by its address, with what they make of it."""

    __tablename__ = "saved_views"
    __table_args__ = (Index("ix_saved_views_project_id", "project_id", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(String(64), default="default")
    created_by: Mapped[str] = mapped_column(String(128), default="local")
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    name: Mapped[str] = mapped_column(String(128))
    note: Mapped[str] = mapped_column(Text, default="")
    query: Mapped[str] = mapped_column(Text)


class Worker(Table):
    """A worker process that has been heard of. `id` is its lease owner name."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    boot_id: Mapped[str] = mapped_column(String(64), default="")
    """Changes when the machine restarts: with host, pid and pid_started it says whether the process still lives."""
    pid: Mapped[int]
    pid_started: Mapped[float | None]
    """Unix seconds at which the process was made; a reused pid has another."""
    slot: Mapped[str] = mapped_column(String(64))
    run_id: Mapped[str | None] = mapped_column(Id)
    """The run or the analysis that it works on."""
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
    clock_offset_seconds: Mapped[float] = mapped_column(default=0.0)
    """What its machine's clock was ahead of the database's at the last heartbeat."""
    draining_since: Mapped[datetime | None]
    """Since when it takes nothing new."""
    drain_requeues: Mapped[bool] = mapped_column(default=False)
    """Whether it also gives back what it works on, with a checkpoint."""
    capabilities: Mapped[dict[str, Any]] = mapped_column(default=dict)


class ControlLease(Table):
    """Who may be the control process; one row, named `control`."""

    __tablename__ = "control_lease"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(128))
    fence: Mapped[int] = mapped_column(BigInteger, default=0)
    lease_until: Mapped[datetime]
