"""What the engine tells the world: one JSON object a line in `events.jsonl`, append-only. It imports without torch.

Recorder, terminal and tests read a run only through these. Units: tokens, nats, FLOPs, seconds (`time` is Unix time), bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from engine.findings import Finding
from engine.flops import FlopLedger
from engine.frozen import Frozen
from engine.trace_profile import TraceProfile
from engine.verdicts import Verdicts

EVENT_VERSION = 1

Phase = Literal["loading", "baseline", "warmup", "training", "evaluation", "report", "saving"]
Subject = Literal["student", "base", "teacher"]
Split = Literal["dev", "report"]
EndReason = Literal["steps", "flops_budget", "sentinel", "early_stopping"]
FailureKind = Literal[
    "bad_spec", "bad_model", "bad_data", "bad_checkpoint", "oom_host", "gpu_error", "nan_loss", "disk_full", "server_unreachable",
    "server_mismatch", "rank_lost", "internal",
]  # fmt: skip


class EventBase(Frozen):
    event_version: Literal[1] = 1
    time: float
    """When it was emitted, Unix seconds."""


class Started(EventBase):
    """The engine has read the spec and is about to load the models."""

    kind: Literal["started"] = "started"
    attempt: int
    """The fence of this attempt."""
    pid: int
    device: str
    precision: str
    num_steps: int
    resumed_from_step: int = 0
    """Steps already done in the checkpoint that this attempt starts from; 0 is a fresh start."""
    versions: dict[str, str] = {}
    """Versions of torch, transformers and Incipit."""


class PhaseChanged(EventBase):
    """The engine has entered a phase."""

    kind: Literal["phase"] = "phase"
    phase: Phase
    detail: str = ""


class Ready(EventBase):
    """Models are loaded and checked; training is about to begin."""

    kind: Literal["ready"] = "ready"
    student_parameters: int
    teacher_parameters: int
    trained_parameters: int | None = None
    """How many of the student's weights are trained: those of an adapter, or all; None in records of earlier versions."""
    sources: dict[str, str] = {}
    """Where the prompts were read, by the field of the spec; a data set of the hub with its commit."""
    seconds: float
    """From process start to here."""


class StepDone(EventBase):
    """One optimizer update."""

    kind: Literal["step"] = "step"
    step: int
    """Updates done, this one included: 1 after the first."""
    horizon: int
    """Tokens after which sampling stopped at this step: the schedule's horizon, or the end of the window if that comes
    first; the full length at a step that is anchored as a whole."""
    metrics: dict[str, float | None]
    """loss (nats per token), grad_norm, learning_rate, rollout_tokens, supervised_tokens, mean_tokens, natural_stop_rate, student_entropy,
    teacher_entropy, sampled_logprob_gap (of the student's own tokens), own_token_share (of the supervised tokens, those that the student
    sampled), with a probe selection also probe_overlap_kept, probe_overlap_dropped (mean share of the models' top k) and kept_share (of
    the candidates), with a top-k divergence kept_mass_student and kept_mass_teacher, with token weights or a termination guard divergence
    (the mean without either) and termination_guard (nats, without its weight); None where it does not exist: a step without a supervised
    token has no loss and changes no weight."""
    position_loss: list[float] = []
    """Mean divergence at each completion position of this step, in nats; 0 where no rollout is supervised."""
    position_count: list[int] = []
    """Supervised rollouts behind each mean."""
    flops: FlopLedger
    """Useful training and evaluation FLOPs of the run so far, by phase."""
    executed_flops: float
    """FLOPs really executed so far, padding included, all phases."""
    executed: FlopLedger = FlopLedger()
    """The same by phase; empty in events from before they were told apart."""
    peak_memory_bytes: int | None = None
    """The most memory that this attempt's process has used so far: resident on a CPU, of tensors on a GPU."""
    seconds: dict[str, float]
    """Wall seconds of this step: rollout, update (teacher scoring included), total."""


class Evaluated(EventBase):
    """A full-length evaluation."""

    kind: Literal["evaluation"] = "evaluation"
    step: int
    """Updates done by the student that was evaluated; 0 for base and teacher."""
    subject: Subject
    split: Split
    num_prompts: int
    horizon: int
    """Tokens after which sampling stopped at that step, anchoring left out: where `beyond` begins."""
    metrics: dict[str, float | None]
    """accuracy, exact (share of completions equal to the reference text), mean_tokens, eos_rate, repetition (share of repeated 4-grams):
    greedy; sampled_mean_tokens, sampled_eos_rate, sampled_repetition, reverse_kl, forward_kl, reverse_kl_inside (where the loss applies),
    reverse_kl_before (sampled but left out by a window or suffix), reverse_kl_beyond (behind the horizon), share_inside, top1_agreement,
    overlap_mass (mean over tokens of the sum over the vocabulary of min(student, teacher)), sampled_student_entropy and
    sampled_teacher_entropy (nats per token): on full-length samples; calibration_error and
    overconfidence of the student's token probabilities against the teacher's, in [0, 1] and [-1, 1], on the same samples;
    forward_kl_on_teacher_texts, and by quarter of max_completion_tokens with _quarter_1 to _quarter_4;
    avg_at_k with avg_at_k_low, avg_at_k_high (bootstrap over problems, 95 %) and avg_at_k_standard_error,
    pass_at_1, pass_at_2, pass_at_4 up to k, maj_at_k, answer_calibration_error. None where it does not exist (no reference text, nothing
    beyond the horizon, the teacher against itself)."""
    position_reverse_kl: list[float] = []
    """Mean reverse KL by completion position on the samples, in nats."""
    position_p90: list[float] = []
    """Its 90th percentile over rollouts, by position."""
    position_teacher_entropy: list[float] = []
    """Mean teacher entropy by position, in nats."""
    position_count: list[int] = []
    """Rollouts behind each mean."""
    verdicts: Verdicts | None = None
    """Which problems were answered rightly."""
    is_cached: bool = False
    """Whether the figures were measured by an earlier run with the same models, prompts and settings."""
    is_best: bool = False
    """Whether this student is the best so far by evaluation.primary_metric on the dev split."""
    flops: FlopLedger
    executed: FlopLedger = FlopLedger()
    """FLOPs really executed so far, by phase."""
    seconds: float


class TailMeasured(EventBase):
    """The sentinel has looked at a few full-length rollouts of the student, which are not trained on."""

    kind: Literal["sentinel"] = "sentinel"
    step: int
    """Updates done by the student that was measured; 0 before training."""
    horizon: int
    """Where `beyond` begins, anchored steps apart, in tokens."""
    num_rollouts: int
    metrics: dict[str, float | None]
    """mean_tokens, eos_rate, repetition, reverse_kl_inside, reverse_kl_beyond (None when nothing lies behind the horizon),
    stop_probability (mean probability of a stop token where the teacher's texts end; None when none does): of the student."""
    teacher_metrics: dict[str, float]
    """mean_tokens, eos_rate, repetition, stop_probability of the teacher on the same prompts, as far as they exist."""
    flops: FlopLedger
    seconds: float


class RolloutSummary(Frozen):
    """One traced rollout, without its tokens."""

    row: int
    """Row of the trace file, and its row group."""
    prompt_index: int
    """Line of the evaluation file, counted from 0."""
    prompt: str
    completion: str
    answer: str | None = None
    is_right: bool | None = None
    num_prompt_tokens: int
    num_tokens: int
    finish_reason: Literal["eos", "length"]
    mean_reverse_kl: float
    max_reverse_kl: float
    inside_share: float | None = None
    """Share of the rollout's reverse KL that lies inside the horizon."""


class TracesWritten(EventBase):
    """Token traces of some full-length rollouts were written to a Parquet file (see engine/trace_file.py)."""

    kind: Literal["traces"] = "traces"
    step: int
    subject: Subject = "student"
    horizon: int
    path: str
    """Relative to the attempt folder."""
    top_k: int
    rollouts: list[RolloutSummary]
    profile: TraceProfile | None = None
    """What they say together; None in records of earlier versions."""


class CheckpointSaved(EventBase):
    """A checkpoint is complete on disk: staged, hashed, fsynced, renamed."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    """Relative to the attempt folder: checkpoints/step-N."""
    manifest_sha256: str
    num_bytes: int
    accuracy: float | None = None
    """Full-length dev accuracy at this step, when it was measured."""
    is_best: bool = False
    best_path: str | None = None
    """The best checkpoint so far, of whichever attempt, relative to the run folder."""
    seconds: float = 0.0
    """Wall seconds that writing it took; 0 in records of earlier versions."""


class CheckpointRemoved(EventBase):
    """An older checkpoint of this attempt was deleted, as `checkpoints` says; below a supervisor that is its task."""

    kind: Literal["checkpoint_removed"] = "checkpoint_removed"
    step: int
    path: str


class Warned(EventBase):
    """Something a person should look at; the run goes on."""

    kind: Literal["warning"] = "warning"
    code: str
    """What it is about: `model_pair`, `plain_decoding`, `overlap`, an alarm of engine/health.py or drift of the sentinel, such as
    `alarm_repetition` or `sentinel_eos_rate`; `sentinel_action` is what the sentinel did."""
    message: str
    """One sentence; of an alarm with the value and the limit."""
    step: int | None = None
    """Updates done when it was raised; None where it is not about a step."""
    value: float | None = None
    """The value that reached a limit."""
    limit: float | None = None
    advice: str = ""
    """One sentence: what to do."""


class Failed(EventBase):
    """The run cannot go on."""

    kind: Literal["failed"] = "failed"
    failure: FailureKind
    message: str
    """One sentence with the value, the limit and the fix."""
    findings: list[Finding] = []
    """The same at the fields of the spec, where it concerns them."""


class Finished(EventBase):
    """All steps are done, or something ended the run before; the last checkpoint is committed."""

    kind: Literal["finished"] = "finished"
    step: int
    best_step: int
    reason: EndReason
    detail: str = ""  # of early stopping, the sentence that says why
    seconds: float
    """Wall seconds of this attempt."""
    training_seconds: float
    """Wall seconds of the steps alone, over all attempts."""


class Stopped(EventBase):
    """The engine was told to stop and has done so."""

    kind: Literal["stopped"] = "stopped"
    step: int
    checkpointed: bool
    """Whether a checkpoint at this very step exists."""


RunEvent = Annotated[
    Started | PhaseChanged | Ready | StepDone | Evaluated | TailMeasured | TracesWritten | CheckpointSaved | CheckpointRemoved
    | Warned | Failed | Finished | Stopped,
    Field(discriminator="kind"),
]  # fmt: skip
RUN_EVENT: TypeAdapter[RunEvent] = TypeAdapter(RunEvent)


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[RunEvent, int]]:
    """Events from a byte offset on, each with the offset behind it; an unfinished last line is left for later."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield RUN_EVENT.validate_json(line), offset
