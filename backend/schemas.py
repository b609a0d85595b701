"""What the API adds around the spec: ids, times, states, pages. The dashboard and the command line read these too."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from backend.needs import Needs, RunNeeds
from backend.resources import WorkerCapabilities
from backend.run_states import RunState
from engine.events import RolloutSummary
from engine.findings import Finding
from engine.flops import FlopLedger
from engine.frozen import Frozen
from engine.manifest import ManifestFile
from engine.spec import Name, RunSpec
from engine.token_trace import TokenTrace
from engine.verdicts import Verdicts


class Variant(Frozen):
    """One arm of an experiment: the base spec with some fields replaced."""

    name: Name
    """Name of the arm; the run is called after it, and after its seed when there are several."""
    changes: dict[str, object] = {}
    """Dotted field to new value, such as {"prefix": {"kind": "constant", "tokens": 8}} or {"num_steps": 40}."""
    note: Annotated[str, Field(max_length=2000)] = ""
    """Why this arm is there, shown beside its figures."""


class ExperimentCreate(Frozen):
    """A question: a base spec, the arms that answer it and the seeds to repeat them with."""

    name: Name
    """Name of the experiment."""
    note: Annotated[str, Field(max_length=10_000)] = ""
    """The question it asks, in your words."""
    base: RunSpec
    """The spec that all arms share."""
    variants: Annotated[list[Variant], Field(max_length=200)] = []
    """The arms; empty means one run with the base spec."""
    seeds: Annotated[list[int], Field(min_length=1, max_length=50)] = [0]
    """Every arm runs once with each seed."""
    needs: Needs = Needs()
    """What the workers of its runs must have, beside what the specs say."""


class Experiment(Frozen):
    id: str
    name: str
    note: str
    created_at: datetime
    num_runs: int
    num_active: int
    """Runs that are queued or at work."""


class RunSummary(Frozen):
    """A line of the run list."""

    id: str
    experiment_id: str
    experiment_name: str
    name: str
    variant: str
    note: str
    seed: int
    state: RunState
    desired_state: Literal["run", "pause", "cancel"]
    """What people want of it; the state follows."""
    priority: int
    """Queued runs with a higher one are worked on first."""
    phase: str
    """What the engine is doing: loading, baseline, training, report, saving; empty while queued."""
    step: int
    num_steps: int
    student: str
    teacher: str
    prefix: str
    """The prefix schedule in words, such as `8`, `16 + 1/step`, `full`, `8, every 8th full`."""
    divergence: str
    attempt: int
    best_accuracy: float | None
    """Best full-length accuracy on the dev split so far."""
    report_accuracy: float | None
    """Accuracy of the best checkpoint on the report split."""
    training_flops: float | None
    training_seconds: float | None
    failure_kind: str | None
    failure_message: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    heartbeat_at: datetime | None
    waits_because: str | None = None
    """Why no connected worker can take the queued run, in one sentence with what to do; None where one can, or it is not queued."""


class Run(RunSummary):
    """One run with its frozen spec."""

    spec: RunSpec
    flops: FlopLedger | None
    executed_flops: float | None
    done_share: float | None
    """Share of the run's time that is behind it, evaluations and checkpoints counted; None where eta_seconds is."""
    eta_seconds: tuple[float, float] | None
    """Range of the seconds still to go, judged by the run's own steps, evaluations and checkpoints; None until 5 steps of
    distillation are done."""
    queue_position: int | None
    """Its place if projects and people have equally much at work; those take turns."""
    needs: RunNeeds
    """What its worker must have."""
    row_version: int
    """Raised by each change of state or wish, not by what training records; PATCH asks for it in If-Match."""
    last_seq: int
    """Of the newest event of its history, 0 without one. While it stays, only metrics and curves by position have grown:
    each evaluation, warning, checkpoint and change of state is an event."""


class RunPage(Frozen):
    items: list[RunSummary]
    next_cursor: str | None


class Metric(Frozen):
    """Points of one metric, thinned to at most 2,000."""

    key: str
    steps: list[int]
    values: list[float | None]


class StoredEvent(Frozen):
    """An event of the run's history: what the engine emitted, or what the services did (claimed, requeued, …)."""

    seq: int
    time: datetime
    kind: str
    attempt: int
    payload: dict[str, object]


class EventPage(Frozen):
    items: list[StoredEvent]
    last_seq: int
    """Pass it as after_seq to read on."""


class Evaluation(Frozen):
    """One full-length evaluation of a run."""

    step: int
    subject: Literal["student", "base", "teacher"]
    split: Literal["dev", "report"]
    num_prompts: int
    horizon: int
    metrics: dict[str, float | None]
    training_flops: float
    """Training FLOPs spent when it was measured."""
    training_seconds: float
    sampled_tokens: float | None = None
    """Completion tokens of all steps so far, whoever wrote them; None where steps did not count them."""
    trained_tokens: float | None = None
    """Those of them that carried loss."""
    is_best: bool
    verdicts: Verdicts | None = None
    """Which problems were answered rightly; None where it was not recorded."""


class Positions(Frozen):
    """A quantity by completion position (position 0 is the first completion token)."""

    step: int
    source: Literal["training", "student", "base"]
    """training: the loss of that step's rollouts, inside the horizon; student, base: samples of an evaluation."""
    split: Literal["train", "dev", "report"]
    horizon: int
    mean: list[float]
    """Nats. Training: the run's own divergence; else reverse KL. 0 where `count` is 0."""
    p90: list[float]
    teacher_entropy: list[float]
    count: list[int]


class Rollout(RolloutSummary):
    """A traced rollout in a list."""

    id: str
    run_id: str
    step: int
    subject: Literal["student", "base", "teacher"]
    horizon: int


class RolloutPage(Frozen):
    items: list[Rollout]
    steps: list[int]
    """Steps at which this run has traces."""


class RolloutDetail(Rollout):
    """A rollout with all that the token lens draws."""

    trained_start: int = 0
    """First position at which the loss applied at that step, as far as the horizon."""
    trace: TokenTrace
    run_p99_reverse_kl: float
    """99th percentile of the mean-by-rollout maxima of this run: the common upper end of the colour scale, in nats."""


class Checkpoint(Frozen):
    id: str
    run_id: str
    run_name: str
    experiment_name: str
    step: int
    num_bytes: int
    manifest_sha256: str
    accuracy: float | None
    is_best: bool
    pinned: bool = False
    """Whether it stays, whatever `checkpoints` of the run's spec says."""
    created_at: datetime
    files: list["CheckpointFile"]


class CheckpointFile(ManifestFile):
    """A file of a checkpoint."""


class Link(Frozen):
    """Signed addresses that work without credentials until they expire."""

    archive_url: str
    """The whole folder as one uncompressed tar stream."""
    file_urls: dict[str, str]
    """Each file of the manifest, with Range support."""
    expires_at: datetime


class Preset(Frozen):
    name: str
    title: str
    description: str
    spec: RunSpec
    variants: list[Variant] = []


class Preflight(Frozen):
    """A check of a spec on a worker: models, tokenizers, context, data."""

    id: str
    state: Literal["queued", "running", "done", "failed"]
    findings: list[Finding]
    facts: dict[str, object]
    """What was found, such as parameter counts and context lengths; `previews` are the first prompts as tokens of both models."""


class Problem(Frozen):
    """An error, RFC 9457 (application/problem+json)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[Finding] = []
    """The findings at the fields of the spec, for 422."""


class Health(Frozen):
    status: Literal["ok", "degraded"]
    database: str
    broker: Literal["up", "down"]
    store: Literal["folder", "bucket", "down"] = "folder"
    """Where checkpoints are kept; down is a bucket that does not work."""
    workers: int
    """Workers that were heard of within the last minute."""
    version: str
    warnings: list[str]


class Worker(Frozen):
    id: str
    host: str
    pid: int
    slot: str
    run_id: str | None
    heartbeat_at: datetime
    is_connected: bool
    """Whether it was heard of within the last minute. Each takes one run at a time."""
    capabilities: WorkerCapabilities
    drain: Literal["no", "draining", "drained"] = "no"
    """draining: it takes nothing new and has work left; drained: it has none. Both last until it is resumed or ends."""
    drain_requeues: bool = False
    """Whether it gives back what it works on, with a checkpoint, in place of finishing it."""
    clock_offset_seconds: float = 0.0
    """What its machine's clock was ahead of the database's at the last heartbeat."""
