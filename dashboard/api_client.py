"""The dashboard's only way to the rest of Incipit: `/api/v1` over HTTP, with typed results. No Streamlit in here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import quote

import httpx

from backend.access import Principal
from backend.analyses import Analysis
from backend.cursors import to_cursor
from backend.estimates import Estimate
from backend.schemas import (
    Checkpoint,
    Evaluation,
    EventPage,
    Experiment,
    Health,
    Link,
    Metric,
    Positions,
    Preflight,
    Preset,
    RolloutDetail,
    RolloutPage,
    Run,
    RunPage,
    RunSummary,
)
from dashboard.alert_calls import AlertCalls
from dashboard.api_transport import Document as Document
from dashboard.export_calls import ExportCalls
from dashboard.playground_calls import PlaygroundCalls
from dashboard.prompt_file_calls import PromptFileCalls
from dashboard.run_calls import RunCalls
from dashboard.sendable import unsendable
from dashboard.view_calls import ViewCalls
from dashboard.worker_calls import WorkerCalls
from engine.findings import Finding

_PAGE_ITEMS = 200  # what the API gives at once, see backend/limits.py


class ApiClient(AlertCalls, ExportCalls, PlaygroundCalls, PromptFileCalls, RunCalls, ViewCalls, WorkerCalls):
    """One per address and credential; safe to share between sessions. Every method raises ApiError."""

    def health(self) -> Health:
        return self._get("/readyz", Health)

    def me(self) -> Principal:
        """Who the credential belongs to."""
        return self._get("/api/v1/me", Principal)

    def experiments(self) -> list[Experiment]:
        return self._get("/api/v1/experiments", list[Experiment])

    def experiment(self, experiment_id: str) -> Experiment:
        return self._get(f"/api/v1/experiments/{quote(experiment_id, safe='')}", Experiment)

    def experiment_runs(self, experiment_id: str) -> list[RunSummary]:
        """In the order of the experiment's variants and seeds."""
        return self._get(f"/api/v1/experiments/{experiment_id}/runs", list[RunSummary])

    def create_experiment(self, experiment: Document, *, idempotency_key: str | None = None) -> Experiment:
        """Create an experiment and its runs from the fields of ExperimentCreate; the API judges them.

        A call with the key and document of an earlier one makes nothing new and returns the same.
        """
        return self._create("/api/v1/experiments", Experiment, experiment, idempotency_key)

    def runs(
        self,
        *,
        experiment_id: str | None = None,
        states: Sequence[str] = (),
        cursor: str | None = None,
        limit: int = 100,
    ) -> RunPage:
        """A page of runs, newest first."""
        wanted = {"experiment_id": experiment_id, "state": list(states), "cursor": cursor, "limit": limit}
        return self._get("/api/v1/runs", RunPage, wanted)

    def run(self, run_id: str) -> Run:
        return self._get(f"/api/v1/runs/{run_id}", Run)

    def cancel(self, run_id: str, *, checkpoint: bool) -> Run:
        """Ask a run to stop, with a checkpoint of the step it is at or without."""
        return self._post(f"/api/v1/runs/{run_id}/cancel", Run, {"checkpoint": checkpoint})

    def pause(self, run_id: str) -> Run:
        """Ask a run to write a checkpoint and leave its worker free."""
        return self._post(f"/api/v1/runs/{run_id}/pause", Run, None)

    def resume(self, run_id: str) -> Run:
        """Queue a paused run again."""
        return self._post(f"/api/v1/runs/{run_id}/resume", Run, None)

    def retry(self, run_id: str, *, from_scratch: bool) -> Run:
        """Queue a failed or cancelled run again, from its last checkpoint or from its first step."""
        return self._post(f"/api/v1/runs/{run_id}/retry", Run, {"from_scratch": from_scratch})

    def clone(
        self,
        run_id: str,
        changes: Document,
        *,
        name: str | None = None,
        seed: int | None = None,
        needs: Document | None = None,
    ) -> Run:
        """Queue a new run of the same experiment with the run's spec and these changes (dotted field to value)."""
        document = {"name": name, "changes": changes, "seed": seed, "needs": needs}
        return self._post(f"/api/v1/runs/{run_id}/clone", Run, document)

    def set_priority(self, run: Run, priority: int) -> Run:
        """Change how urgent a queued run is, unless somebody changed the run since it was read."""
        headers = {"If-Match": f'"{run.row_version}"'}
        return self._call("PATCH", f"/api/v1/runs/{run.id}", Run, tries=1, json={"priority": priority}, headers=headers)

    def metrics(self, run_id: str, keys: tuple[str, ...] = (), *, after_step: int = 0) -> list[Metric]:
        wanted = {"keys": ",".join(keys) or None, "after_step": after_step}
        return self._get(f"/api/v1/runs/{run_id}/metrics", list[Metric], wanted)

    def events(self, run_id: str, *, after_seq: int = 0, kinds: Sequence[str] = (), limit: int = 200) -> EventPage:
        """At most `limit` of the history behind a sequence number, oldest first. All kinds if none is named."""
        query = {"after_seq": after_seq, "kind": list(kinds), "limit": limit}
        return self._get(f"/api/v1/runs/{run_id}/events", EventPage, query)

    def evaluations(self, run_id: str) -> list[Evaluation]:
        return self._get(f"/api/v1/runs/{run_id}/evaluations", list[Evaluation])

    def positions(self, run_id: str, source: str | None = None) -> list[Positions]:
        """Curves by position of one source (training, student, base) or of all, in order of steps."""
        return self._get(f"/api/v1/runs/{run_id}/positions", list[Positions], {"source": source})

    def rollouts(self, run_id: str, *, step: int | None = None) -> RolloutPage:
        """Traced rollouts of a step (the newest traced one, if none is named), most divergent first."""
        return self._get(f"/api/v1/runs/{run_id}/rollouts", RolloutPage, {"step": step})

    def rollout(self, rollout_id: str) -> RolloutDetail:
        return self._get(f"/api/v1/rollouts/{rollout_id}", RolloutDetail)

    def checkpoints(self, *, run_id: str | None = None, limit: int = 200) -> list[Checkpoint]:
        """The newest checkpoints, page by page."""
        found: list[Checkpoint] = []
        while len(found) < limit:
            size = min(_PAGE_ITEMS, limit - len(found))
            wanted = {"run_id": run_id, "limit": size, "cursor": to_cursor(found[-1].id) if found else None}
            page = self._get("/api/v1/checkpoints", list[Checkpoint], wanted)
            found += page
            if len(page) < size:
                break
        return found

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        return self._get(f"/api/v1/checkpoints/{quote(checkpoint_id, safe='')}", Checkpoint)

    @contextmanager
    def checkpoint_file(self, checkpoint_id: str, name: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """A file of a checkpoint as a response that is still coming in: 200, or 206 to a Range among the headers."""
        with self._streamed(
            f"/api/v1/checkpoints/{quote(checkpoint_id, safe='')}/files/{quote(name)}", headers
        ) as response:
            yield response

    def pin_checkpoint(self, checkpoint_id: str, *, pinned: bool) -> Checkpoint:
        """Keep a checkpoint whatever its run's spec says, or let it go again."""
        return self._post(f"/api/v1/checkpoints/{checkpoint_id}/{'pin' if pinned else 'unpin'}", Checkpoint, None)

    def checkpoint_link(self, checkpoint_id: str) -> Link:
        """Signed addresses, made absolute so that a browser can follow them."""
        return self._link(f"/api/v1/checkpoints/{checkpoint_id}/link")

    def estimate(self, spec: Document) -> Estimate:
        return self._post("/api/v1/estimate", Estimate, spec)

    def validate(self, spec: Document) -> list[Finding]:
        """What is wrong with a spec by static rules; empty when nothing is."""
        finding = unsendable(spec)
        return self._post("/api/v1/spec/validate", list[Finding], spec) if finding is None else [finding]

    def spec_schema(self) -> Document:
        return self._schema("/api/v1/spec/schema")

    def presets(self) -> list[Preset]:
        return self._get("/api/v1/presets", list[Preset])

    def start_preflight(self, spec: Document) -> Preflight:
        return self._create("/api/v1/preflights", Preflight, spec)

    def preflight(self, preflight_id: str) -> Preflight:
        return self._get(f"/api/v1/preflights/{preflight_id}", Preflight)

    def analysis_schema(self) -> Document:
        """The JSON schema of an analysis."""
        return self._schema("/api/v1/analyses/schema")

    def start_analysis(self, spec: Document) -> Analysis:
        return self._create("/api/v1/analyses", Analysis, spec)

    def analyses(self) -> list[Analysis]:
        return self._get("/api/v1/analyses", list[Analysis])

    def analysis(self, analysis_id: str) -> Analysis:
        return self._get(f"/api/v1/analyses/{quote(analysis_id, safe='')}", Analysis)

    def cancel_analysis(self, analysis_id: str) -> Analysis:
        return self._post(f"/api/v1/analyses/{analysis_id}/cancel", Analysis, None)
