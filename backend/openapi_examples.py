"""What the OpenAPI document shows of requests that people write, and of their answers: real records, so never outdated."""

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import TypeAdapter

from backend.access import ApiKey, CreatedKey, KeyCreate
from backend.alerts import Alert, AlertRules, CreatedWebhook, Delivery, Webhook, WebhookCreate
from backend.analyses import Analysis
from backend.estimates import Estimate, PhaseSeconds
from backend.exports import Export, ExportCreate
from backend.needs import RunNeeds
from backend.playground import CheckpointChoice, PlaygroundQuestion, QuestionCreate
from backend.prompt_files import PromptFile, PromptLook
from backend.resources import WorkerCapabilities
from backend.routes.wishes import Cancel, Clone, Retry, RunPatch
from backend.routes.workers import Drain
from backend.saved_views import SavedView, SavedViewWrite
from backend.schemas import (
    Checkpoint,
    CheckpointFile,
    Experiment,
    ExperimentCreate,
    Link,
    Preflight,
    Run,
    Variant,
    Worker,
)
from backend.signatures import PREFIX
from engine.analysis_spec import AnalysisSpec, TeacherPrefix
from engine.export_spec import GgufFile
from engine.findings import Finding
from engine.flops import FlopLedger
from engine.playground_spec import TeacherSpeaker
from engine.prompt_map import PromptMap
from engine.spec import RunSpec

_NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_ID = "019b7cd4-5b1c-7000-8658-dda455b805af"
_SPEC = RunSpec.model_validate(
    {
        "name": "prefix 8",
        "student": {"path": "builtin:tiny/models/student-plan"},
        "teacher": {"path": "builtin:tiny/models/teacher"},
        "prompts": {"path": "builtin:tiny/data/train.jsonl"},
        "prefix": {"kind": "constant", "tokens": 8},
        "max_completion_tokens": 224,
        "num_steps": 40,
        "evaluation": {"path": "builtin:tiny/data/dev.jsonl"},
    }
)
_ARMS = [
    Variant(name="prefix 8", note="Where the plan is written."),
    Variant(name="full", changes={"prefix": {"kind": "full"}}, note="What it costs without a prefix."),
]
_EXPERIMENT = Experiment(
    id=_ID, name="How short may the prefix be?", note="", created_at=_NOW, num_runs=4, num_active=4
)
_RUN = Run(
    id=_ID, experiment_id=_ID, experiment_name=_EXPERIMENT.name, name="prefix 8 · seed 0", variant="prefix 8", note="", seed=0,
    state="queued", desired_state="run", priority=0, phase="", step=0, num_steps=40, student=_SPEC.student.path,
    teacher=_SPEC.teacher.path, prefix="8", divergence="reverse KL", attempt=0, best_accuracy=None, report_accuracy=None,
    training_flops=None, training_seconds=None, failure_kind=None, failure_message=None, created_at=_NOW, started_at=None,
    finished_at=None, heartbeat_at=None, spec=_SPEC, flops=None, executed_flops=None, done_share=None, eta_seconds=None, queue_position=1,
    needs=RunNeeds.stated(_SPEC), row_version=0,
    last_seq=1,
)  # fmt: skip
_WORKER = Worker(
    id="lab:0a1b2c3d:4242:0", host="lab", pid=4242, slot="gpu0", run_id=_ID, heartbeat_at=_NOW, is_connected=True,
    capabilities=WorkerCapabilities(
        device="cuda", num_gpus=1, cores=16, memory_total_bytes=128 * 10**9, gpu_memory_total_bytes=80 * 10**9, labels=["h100"],
        versions={"incipit": "0.1.0", "torch": "2.13.0"}, spec_version=1, event_version=1,
    ),
)  # fmt: skip
_ANALYSIS_SPEC = AnalysisSpec(run=_SPEC, analysis=TeacherPrefix(kind="teacher_prefix", num_prompts=16))
_ANALYSIS = Analysis(
    id=_ID, created_at=_NOW, spec=_ANALYSIS_SPEC, state="queued", done=0.0, detail="", eta_seconds=None, findings=[], result=None,
    started_at=None, finished_at=None,
)  # fmt: skip
_QUESTION = QuestionCreate(
    run_id=_ID, prompt="k3 k0 c3 c2 c3 4 N13 |", seed=7, max_completion_tokens=64,
    speakers=[CheckpointChoice(kind="checkpoint", checkpoint_id=_ID), TeacherSpeaker(kind="teacher")],
)  # fmt: skip
_ASKED = PlaygroundQuestion(
    id=_ID, created_at=_NOW, asked=_QUESTION, run_name=_RUN.name, speakers=["prefix 8 · seed 0 at step 40", "teacher"], state="queued",
    queue_position=1, done=0.0, detail="", eta_seconds=None, findings=[], result=None, started_at=None, finished_at=None,
)  # fmt: skip
_EXPORT_CREATE = ExportCreate(checkpoint_id=_ID, export=GgufFile(kind="gguf", file_type="q8_0"))
_EXPORT = Export(
    id=_ID, created_at=_NOW, created_by="local", checkpoint_id=_ID, run_id=_ID, run_name=_RUN.name, step=40, export=_EXPORT_CREATE.export,
    state="queued", queue_position=1, done=0.0, detail="", eta_seconds=None, findings=[], result=None, removed_at=None, started_at=None,
    finished_at=None,
)  # fmt: skip
_VIEW = SavedView(
    id=_ID, name="16 tokens are enough", note="With three seeds the intervals overlap.", query=f"experiment={_ID}&x=trained_tokens",
    created_by="local", created_at=_NOW, updated_at=_NOW,
)  # fmt: skip
_KEY = ApiKey(
    id="0123456789abcdef", name="Ada's laptop", role="operator", project_id="default", created_by="local", created_at=_NOW,
    expires_at=_NOW + timedelta(90), last_used_at=None, revoked_at=None,
)  # fmt: skip
_CHECKPOINT = Checkpoint(
    id=_ID, run_id=_ID, run_name=_RUN.name, experiment_name=_EXPERIMENT.name, step=40, num_bytes=449_000,
    manifest_sha256="0" * 64, accuracy=0.5, is_best=True, created_at=_NOW,
    files=[CheckpointFile(name="model.safetensors", num_bytes=449_000, sha256="0" * 64)],
)  # fmt: skip
_PROMPT_FILE = PromptFile(
    id=_ID, name="questions.csv", reference=f"upload:{'0' * 64}", sha256="0" * 64, num_rows=1, num_bytes=40,
    map=PromptMap(prompt="question", answer="result"), system_message=None, first=[{"prompt": "2+3=", "answer": "5"}], num_runs=0,
    created_at=_NOW, created_by="local",
)  # fmt: skip
_ADDRESS = f"{PREFIX}/{_ID}"
_SIGNATURE = f"?expires=1767324245&signature={'0' * 64}"
_FLOPS = FlopLedger(rollout=1e12, teacher=2e12, student_forward=1e12, student_backward=2e12)

_ALERT = Alert(
    id=_ID, run_id=_ID, run_name=_RUN.name, rule="accuracy", severity="warning", step=40, time=_NOW, dismissed_at=None, dismissed_by=None,
    message="Step 40: the full-length accuracy is 0.310, its best was 0.520 (limit 0.1 below).",
)  # fmt: skip
_WEBHOOK = Webhook(
    id=_ID, name="Slack, #training", host="hooks.slack.com", created_by="local", created_at=_NOW, num_pending=0
)

REQUESTS: dict[str, Any] = {
    "create_experiment": ExperimentCreate(
        name=_EXPERIMENT.name, note="Where does accuracy fall?", base=_SPEC, variants=_ARMS, seeds=[0, 1]
    ),
    "create_preflight": _SPEC,
    "estimate_run": _SPEC,
    "validate_spec": {"name": "prefix 8", "num_steps": 0},
    "create_analysis": _ANALYSIS_SPEC,
    "create_question": _QUESTION,
    "create_export": _EXPORT_CREATE,
    "validate_question": {"run_id": _ID, "prompt": "k3 k0 c3 c2 c3 4 N13 |", "speakers": []},
    "create_key": KeyCreate(name=_KEY.name, role=_KEY.role, valid_days=90),
    "cancel_run": Cancel(checkpoint=True),
    "retry_run": Retry(from_scratch=False),
    "clone_run": Clone(name="prefix 16", changes={"prefix.tokens": 16}),
    "patch_run": RunPatch(priority=10),
    "drain_worker": Drain(requeue=True),
    "put_alert_rules": AlertRules(accuracy_drop=0.05),
    "create_webhook": WebhookCreate(name=_WEBHOOK.name, url="https://hooks.slack.com/services/T0/B0/X0"),
    "create_view": SavedViewWrite(name=_VIEW.name, note=_VIEW.note, query=_VIEW.query),
    "update_view": SavedViewWrite(name=_VIEW.name, note="Five seeds now: they still do.", query=_VIEW.query),
}
"""By operation."""

RESPONSES: dict[str, Any] = {
    "create_experiment": _EXPERIMENT,
    "create_view": _VIEW,
    "update_view": _VIEW,
    "remove_view": _VIEW,
    "create_preflight": Preflight(id=_ID, state="queued", findings=[], facts={}),
    "estimate_run": Estimate(
        flops=_FLOPS,
        full_length_flops=_FLOPS,
        saving=28.0,
        memory_bytes={"student": 449_000},
        memory_total_bytes=449_000,
        seconds=PhaseSeconds(low=20.0, high=40.0),
        horizons=[8],
        horizon_steps=[0],
        assumptions=["No rollout ends early."],
    ),
    "validate_spec": [Finding(field="num_steps", message="num_steps is 0 but must be at least 1; raise it.")],
    "create_analysis": _ANALYSIS,
    "cancel_analysis": _ANALYSIS.model_copy(update={"state": "cancelled", "finished_at": _NOW}),
    "create_question": _ASKED,
    "validate_question": [Finding(field="speakers", message="speakers has 0 entries but needs 1; add some.")],
    "cancel_question": _ASKED.model_copy(update={"state": "cancelled", "queue_position": None, "finished_at": _NOW}),
    "create_export": _EXPORT,
    "cancel_export": _EXPORT.model_copy(update={"state": "cancelled", "queue_position": None, "finished_at": _NOW}),
    "remove_export": _EXPORT.model_copy(
        update={"state": "succeeded", "queue_position": None, "removed_at": _NOW, "finished_at": _NOW}
    ),
    "create_export_link": Link(
        archive_url=f"{PREFIX}/exports/{_ID}/archive{_SIGNATURE}",
        file_urls={
            "prefix-8-step-40-q8_0.gguf": f"{PREFIX}/exports/{_ID}/files/prefix-8-step-40-q8_0.gguf{_SIGNATURE}"
        },
        expires_at=_NOW,
    ),
    "create_key": CreatedKey(**_KEY.model_dump(), key="incipit_0123456789abcdef_…"),
    "look_at_prompts": PromptLook(
        columns=["question", "result"], first=[{"question": "2+3=", "result": "5"}], guess={"prompt": "question"}
    ),
    "upload_prompts": _PROMPT_FILE,
    "delete_prompt_file": _PROMPT_FILE,
    "dismiss_alert": _ALERT.model_copy(update={"dismissed_at": _NOW, "dismissed_by": "local"}),
    "put_alert_rules": AlertRules(accuracy_drop=0.05),
    "create_webhook": CreatedWebhook(**_WEBHOOK.model_dump(), secret="whsec_…"),
    "delete_webhook": _WEBHOOK,
    "test_webhook": Delivery(
        alert_id=_ID,
        run_name=None,
        rule="test",
        time=_NOW,
        state="pending",
        attempts=0,
        status=None,
        error="",
        next_at=_NOW,
        sent_at=None,
    ),
    "rotate_webhook_secret": CreatedWebhook(**_WEBHOOK.model_dump(), secret="whsec_…"),
    "revoke_key": _KEY.model_copy(update={"revoked_at": _NOW}),
    "cancel_run": _RUN.model_copy(update={"state": "cancelled", "queue_position": None, "finished_at": _NOW}),
    "pause_run": _RUN.model_copy(update={"state": "paused", "desired_state": "pause", "queue_position": None}),
    "resume_run": _RUN,
    "retry_run": _RUN,
    "clone_run": _RUN,
    "patch_run": _RUN.model_copy(update={"priority": 10, "row_version": 1}),
    "drain_worker": _WORKER.model_copy(update={"drain": "draining", "drain_requeues": True}),
    "resume_worker": _WORKER,
    "pin_checkpoint": _CHECKPOINT.model_copy(update={"pinned": True}),
    "unpin_checkpoint": _CHECKPOINT,
    "create_checkpoint_link": Link(
        archive_url=f"{_ADDRESS}/archive{_SIGNATURE}",
        file_urls={"model.safetensors": f"{_ADDRESS}/files/model.safetensors{_SIGNATURE}"},
        expires_at=_NOW,
    ),
}
"""By operation: what each that changes something answers when it has."""


def as_json(example: Any) -> Any:
    """An example as plain JSON values; of a request only what it says, not the defaults."""
    is_request = any(example is one for one in REQUESTS.values())
    return TypeAdapter(Any).dump_python(example, mode="json", exclude_unset=is_request)
