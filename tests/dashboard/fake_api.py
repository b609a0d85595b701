"""A stand-in for the API, as a process of its own: `python fake_api.py PORT`. Its bodies are the API's own models.

The first part of the path chooses the scene: /busy (an experiment at work), /empty, /broken (every call fails), /odd
(answers of another version).
"""

import sys
from datetime import timedelta
from typing import Annotated, Any, Literal, get_args

import fake_alerts
import fake_analyses
import fake_divergence
import fake_exports
import fake_playground
import fake_records as records
import fake_resources
import fake_traces as traces
import fake_views
import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from backend import analyses, estimates, schemas
from backend.access import Principal, Role
from backend.prompt_files import PromptFile, PromptLook
from backend.routes.wishes import RunPatch
from backend.routes.workers import Drain
from engine.analysis_spec import AnalysisSpec
from engine.findings import Finding, findings_of
from engine.flops import FlopLedger
from engine.spec import RunSpec

busy, empty = FastAPI(), FastAPI()
_P = "/api/v1"


class _Problem(Exception):
    def __init__(self, status: int, detail: str, findings: list[Finding] | None = None) -> None:
        self.body = schemas.Problem(
            type="about:blank", title="Problem", status=status, detail=detail, instance="/", errors=findings or []
        )


@busy.exception_handler(_Problem)
@empty.exception_handler(_Problem)
def _problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, _Problem)
    return JSONResponse(error.body.model_dump(), status_code=error.body.status, media_type="application/problem+json")


def _known(run_id: str) -> str:
    if run_id not in records.ARM_OF:
        raise _Problem(404, f"There is no run {run_id!r}.")
    return run_id


@busy.get("/readyz")
def ready() -> schemas.Health:
    return schemas.Health(status="ok", database="sqlite 3.50.4", broker="up", workers=1, version="0.1.0", warnings=[])


@empty.get("/readyz")
def ready_without_workers() -> schemas.Health:
    said = ["No worker was heard of within the last minute; start one with `incipit up`."]
    return schemas.Health(
        status="degraded", database="sqlite 3.50.4", broker="up", workers=0, version="0.1.0", warnings=said
    )


def _experiment(name: str, note: str, num_runs: int, num_active: int) -> schemas.Experiment:
    numbers = {"num_runs": num_runs, "num_active": num_active}
    return schemas.Experiment(id="e-demo", name=name, note=note, created_at=records.NOW, **numbers)


@busy.get(_P + "/experiments")
def experiments() -> list[schemas.Experiment]:
    return [_experiment("tiny plan", "How short may the prefix be?", 8, 2)]


@busy.post(_P + "/experiments")
@empty.post(_P + "/experiments")
async def create(request: Request) -> schemas.Experiment:
    document = await request.json()
    try:
        wanted = schemas.ExperimentCreate.model_validate(document)
    except ValidationError as error:
        raise _Problem(422, "The experiment cannot be created.", findings_of(error, document)) from None
    number = max(1, len(wanted.variants)) * len(wanted.seeds)
    return _experiment(wanted.name, "", number, number)


@busy.get(_P + "/experiments/{experiment_id}/runs")
def experiment_runs() -> list[schemas.RunSummary]:
    return [records.summary(run_id) for run_id in records.LISTED]


@busy.get(_P + "/runs")
def runs() -> schemas.RunPage:
    return schemas.RunPage(items=[records.summary(run_id) for run_id in records.LISTED], next_cursor=None)


@busy.get(_P + "/runs/{run_id}")
def run(run_id: str) -> schemas.Run:
    return records.run(_known(run_id))


@busy.post(_P + "/runs/{run_id}/cancel")
def cancel(run_id: str) -> schemas.Run:
    return records.run(_known(run_id)).model_copy(update={"state": "cancelling", "desired_state": "cancel"})


@busy.post(_P + "/runs/{run_id}/pause")
def pause(run_id: str) -> schemas.Run:
    return records.run(_known(run_id)).model_copy(update={"state": "pausing", "desired_state": "pause"})


@busy.post(_P + "/runs/{run_id}/resume")
@busy.post(_P + "/runs/{run_id}/retry")
def again(run_id: str) -> schemas.Run:
    return records.run(_known(run_id)).model_copy(update={"state": "queued"})


@busy.patch(_P + "/runs/{run_id}")
def patch(run_id: str, body: RunPatch) -> schemas.Run:
    return records.run(_known(run_id)).model_copy(update={"priority": body.priority})


@busy.get(_P + "/runs/{run_id}/metrics")
def metrics(run_id: str) -> list[schemas.Metric]:
    return records.metrics(_known(run_id))


@busy.get(_P + "/runs/{run_id}/events")
def events(after_seq: int = 0, kind: Annotated[list[str] | None, Query()] = None) -> schemas.EventPage:
    alarm: dict[str, object] = {
        "code": "alarm_cap_hits", "message": "Step 40: 12% of full-length completions end by themselves, the limit is 40%.",
        "step": 40, "value": 0.12, "limit": 0.4, "advice": "Switch anchoring on or lengthen the prefix.",
    }  # fmt: skip
    told: list[tuple[str, dict[str, object]]] = [
        ("claimed", {"worker": "host-1"}), ("started", {"device": "cpu", "precision": "float32"}), ("phase", {"phase": "training"}),
        ("estimated", records.ESTIMATED), ("evaluation", {"subject": "base", "step": 0}),
        ("evaluation", {"subject": "student", "step": 40, "executed": records.EXECUTED.model_dump()}),
        ("warning", {"code": "model_pair", "message": f"The student ends its texts with another id {traces.HOSTILE}"}),
        ("state", {"state": "succeeded", "reason": "Stopped early at step 120: accuracy reached 0.97, the target is 0.95."}),
        *[("warning", alarm)] * 2,  # told again by an attempt that did the step again
    ]  # fmt: skip
    items = [
        schemas.StoredEvent(seq=at, time=records.NOW + timedelta(seconds=at), kind=kind, attempt=1, payload=payload)
        for at, (kind, payload) in enumerate(told, start=1)
    ]
    wanted = [one for one in items if one.seq > after_seq and (not kind or one.kind in kind)]
    return schemas.EventPage(items=wanted, last_seq=wanted[-1].seq if wanted else after_seq)


@busy.get(_P + "/runs/{run_id}/evaluations")
def evaluations(run_id: str) -> list[schemas.Evaluation]:
    return records.evaluations(_known(run_id))


@busy.get(_P + "/runs/{run_id}/positions")
def positions(run_id: str, source: str | None = None) -> list[schemas.Positions]:
    return [one for one in records.positions(_known(run_id)) if source in (None, one.source)]


@busy.get(_P + "/runs/{run_id}/rollouts")
def rollouts(run_id: str, step: int | None = None) -> schemas.RolloutPage:
    if records.steps_done(_known(run_id)) == 0:
        return schemas.RolloutPage(items=[], steps=[])
    steps = list(range(0, records.steps_done(run_id) + 1, 20))
    chosen = steps[-1] if step is None else step
    fields = schemas.Rollout.model_fields
    made = [traces.rollout(run_id, chosen, row) for row in range(4)]
    items = [schemas.Rollout.model_validate({name: value for name, value in one if name in fields}) for one in made]
    return schemas.RolloutPage(items=sorted(items, key=lambda one: -one.mean_reverse_kl), steps=steps)


@busy.get(_P + "/rollouts/{rollout_id}")
def rollout(rollout_id: str) -> schemas.RolloutDetail:
    run_id, step, row = rollout_id.rsplit(".", 2)
    return traces.rollout(_known(run_id), int(step), int(row))


busy.include_router(fake_divergence.router)
busy.include_router(fake_views.router)
busy.include_router(fake_resources.router)
_pinned: set[str] = set()


def _checkpoint(run_id: str, step: int) -> schemas.Checkpoint:
    names = {
        "model.safetensors": 449_312,
        "config.json": 712,
        "tokenizer.json": 4_180,
        "trainer/optimizer.safetensors": 897_640,
    }
    files = [schemas.CheckpointFile(name=name, num_bytes=size, sha256=f"{size:064x}") for name, size in names.items()]
    return schemas.Checkpoint(
        id=f"{run_id}.{step}", run_id=run_id, run_name=records.ARM_OF[run_id][1], experiment_name="tiny plan", step=step,
        num_bytes=sum(names.values()), manifest_sha256="9f" * 32, accuracy=records.ARM_OF[run_id][4],
        is_best=step == records.steps_done(run_id), pinned=f"{run_id}.{step}" in _pinned,
        created_at=records.NOW - timedelta(minutes=5), files=files,
    )  # fmt: skip


@busy.get(_P + "/checkpoints")
def checkpoints(run_id: str | None = None) -> list[schemas.Checkpoint]:
    owners = [one for one in ("r-p8", "r-mix8", "r-full") if run_id in (None, one)]
    return [
        _checkpoint(one, step) for one in owners for step in (records.steps_done(one), records.steps_done(one) - 40)
    ]


@busy.post(_P + "/checkpoints/{checkpoint_id}/link")
def link(checkpoint_id: str) -> schemas.Link:
    base = f"{_P}/downloads/{checkpoint_id}"
    urls = {file.name: f"{base}/{file.name}?signature=abc" for file in _checkpoint("r-p8", 120).files}
    return schemas.Link(
        archive_url=f"{base}.tar?signature=abc", file_urls=urls, expires_at=records.NOW + timedelta(minutes=10)
    )


@busy.post(_P + "/checkpoints/{checkpoint_id}/{action}")
def pin(checkpoint_id: str, action: Literal["pin", "unpin"]) -> schemas.Checkpoint:
    (_pinned.add if action == "pin" else _pinned.discard)(checkpoint_id)
    run_id, _, step = checkpoint_id.rpartition(".")
    return _checkpoint(run_id, int(step))


@busy.post(_P + "/estimate")
@empty.post(_P + "/estimate")
async def estimate(request: Request) -> estimates.Estimate:
    document = await request.json()
    try:
        spec = RunSpec.model_validate(document)
    except ValidationError as error:
        raise _Problem(422, "The spec cannot be estimated.", findings_of(error, document)) from None
    steps = list(range(0, spec.num_steps, max(1, spec.num_steps // 100)))
    previews = [spec.preview_at(step) for step in steps]
    parts = {
        "student_weights": 448_000,
        "optimizer": 896_000,
        "gradients": 448_000,
        "teacher_weights": 1_471_488,
        "divergence": 3_000_000,
    }
    return estimates.Estimate(
        flops=FlopLedger(rollout=8e9, teacher=21e9, student_forward=7e9, student_backward=14e9, evaluation=2.1e11),
        full_length_flops=FlopLedger(rollout=120e9, teacher=330e9, student_forward=106e9, student_backward=212e9, evaluation=2.1e11),
        saving=15.3, memory_bytes=parts, memory_total_bytes=sum(parts.values()), seconds=estimates.PhaseSeconds(low=8, high=14),
        horizons=[low for low, _ in previews], horizon_steps=steps,
        longest_horizons=[high for _, high in previews] if any(low != high for low, high in previews) else [],
        assumptions=["No rollout ends before its horizon."],
    )  # fmt: skip


@busy.post(_P + "/spec/validate")
@empty.post(_P + "/spec/validate")
async def validate(request: Request) -> list[Finding]:
    document = await request.json()
    try:
        RunSpec.model_validate(document)
    except ValidationError as error:
        return findings_of(error, document)
    return []


@busy.get(_P + "/spec/schema")
@empty.get(_P + "/spec/schema")
def schema() -> dict[str, Any]:
    return RunSpec.model_json_schema()


@busy.get(_P + "/presets")
@empty.get(_P + "/presets")
def presets() -> list[schemas.Preset]:
    variants = [schemas.Variant(name=arm[1], changes=arm[2]) for arm in records.ARMS[:4]]
    tiny = RunSpec.model_validate({**records.BASE, "prefix": records.PREFIX_8, "name": "prefix 8"})
    return [
        schemas.Preset(
            name="tiny", title="Tiny, on this machine", description="Trains on a CPU in seconds.", spec=tiny
        ),
        schemas.Preset(
            name="demo", title="The demo comparison", description="Full against prefixes.", spec=tiny, variants=variants
        ),
    ]


@busy.get(_P + "/prompt-files")
def prompt_files() -> list[PromptFile]:
    return [records.PROMPT_FILE]


@busy.post(_P + "/prompt-looks")
def look() -> PromptLook:
    return PromptLook(
        columns=["question", "result"], first=[{"question": "2+3=", "result": "5"}], guess={"prompt": "question"}
    )


@busy.post(_P + "/prompt-files", status_code=201)
def upload(name: str) -> PromptFile:
    if name.startswith("bad"):
        said = 'Line 17: column "question" is missing; found "q", "a"; choose the prompt column among them.'
        raise _Problem(422, said, [Finding(field="file", message=said)])
    return records.PROMPT_FILE


@busy.get(_P + "/me")
@empty.get(_P + "/me")
def me(request: Request) -> Principal:
    key = request.headers.get("authorization", "")
    role: Role = "viewer" if "viewer" in key else "admin"
    return Principal(id="local", role=role, project_id="lab" if "lab" in key else "*")


@busy.get(_P + "/workers")
def workers(request: Request) -> list[schemas.Worker]:
    hidden = {"run_id": None} if "lab" in request.headers.get("authorization", "") else {}
    return [fake_resources.WORKER.model_copy(update=hidden), fake_resources.VANISHED]


@busy.post(_P + "/workers/{worker_id}/drain")
def drain_worker(worker_id: str, body: Drain) -> schemas.Worker:
    if worker_id != fake_resources.WORKER.id:
        raise _Problem(409, f"This is not {fake_resources.WORKER.id} but {worker_id}.")
    drained = {"drain": "draining", "drain_requeues": body.requeue}
    return fake_resources.WORKER.model_copy(update=drained)


@busy.get(_P + "/analyses/schema")
@empty.get(_P + "/analyses/schema")
def analysis_schema() -> dict[str, Any]:
    return AnalysisSpec.model_json_schema()


@busy.post(_P + "/analyses")
def ask(body: analyses.AnalysisCreate) -> analyses.Analysis:
    return fake_analyses.analysis("queued", body.run, AnalysisSpec(run=body.run, analysis=body.analysis))


@busy.get(_P + "/analyses")
def list_analyses() -> list[analyses.Analysis]:
    return [fake_analyses.analysis(state, records.spec_of("r-p8")) for state in get_args(analyses.AnalysisState)]


@busy.get(_P + "/analyses/{analysis_id}")
def get_analysis(analysis_id: str) -> analyses.Analysis:
    return fake_analyses.analysis(analysis_id.removeprefix("a-"), records.spec_of("r-p8"))  # type: ignore[arg-type]


busy.include_router(fake_playground.router)
busy.include_router(fake_exports.router, prefix=_P)
busy.include_router(fake_alerts.router, prefix=_P)
empty.add_api_route(_P + "/alert-rules", fake_alerts.rules, methods=["GET"])
for path, kind in [
    ("/analyses", []),
    ("/playground/questions", []),
    ("/prompt-files", []),
    ("/webhooks", []),
    ("/alerts", {"items": [], "num_open": 0, "next_cursor": None}),
    ("/experiments", []),
    ("/runs", {"items": [], "next_cursor": None}),
    ("/workers", []),
    ("/checkpoints", []),
    ("/exports", []),
]:
    empty.add_api_route(_P + path, lambda body=kind: body, methods=["GET"])


@empty.get(_P + "/{anything:path}")
def missing(anything: str) -> None:
    raise _Problem(404, f"There is no {anything!r}.")


broken, odd, app = FastAPI(), FastAPI(), FastAPI()


@broken.api_route("/{anything:path}", methods=["GET", "POST"])
def fail() -> JSONResponse:
    body = schemas.Problem(
        type="about:blank", title="Internal error", status=500, detail="The database is locked.", instance="/"
    )
    return JSONResponse(body.model_dump(), status_code=500, media_type="application/problem+json")


@odd.api_route("/{anything:path}", methods=["GET", "POST"])
def another_version() -> dict[str, int]:
    return {"unexpected": 1}


for scene, stage in (("busy", busy), ("empty", empty), ("broken", broken), ("odd", odd)):
    app.mount(f"/{scene}", stage)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
