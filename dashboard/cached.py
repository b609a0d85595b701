"""The API through Streamlit's caches: ten tabs of one person cost one request a second. The only place where both meet."""

import os
from collections.abc import Sequence
from typing import Any, get_args

import streamlit as st

from backend.access import Principal
from backend.alerts import AlertPage
from backend.divergence import DivergenceGrid, DivergentTokens, PositionQuantiles, PrefixAid
from backend.estimates import Estimate
from backend.playground import AnswerDetail, QuestionSummary
from backend.prompt_files import PromptFile
from backend.resources import RunResources
from backend.run_states import ENDED_STATES, RunState
from backend.saved_views import SavedView
from backend.schemas import (
    Checkpoint,
    Evaluation,
    Experiment,
    Health,
    Metric,
    Positions,
    Preset,
    RolloutDetail,
    RolloutPage,
    Run,
    RunSummary,
    StoredEvent,
    Worker,
)
from dashboard import sign_in
from dashboard.api_client import ApiClient, Document
from engine.findings import Finding
from engine.trace_profile import TraceMetric

_MAX_LISTED_RUNS = 1000
_EVENT_PAGE = 200
_MAX_EVENT_PAGES = 40
_BY_IDENTITY: dict[type | str, Any] = {ApiClient: lambda client: client.identity}


# Most of what a run has recorded stays as it is until an event tells of more, see Run.last_seq: the page of a run at work asks
# for the run each 2 s and for little else.
def _recorded(run: Run) -> tuple[str, str, int]:
    return run.id, run.state, _last_seq(run)


_BY_HISTORY: dict[type | str, Any] = {**_BY_IDENTITY, Run: _recorded}
_BY_STATE: dict[type | str, Any] = {**_BY_IDENTITY, Run: lambda run: (run.id, run.state)}


def api() -> ApiClient:
    """The API as the person of this session may use it; its links lead to INCIPIT_PUBLIC_API_URL."""
    return _client(sign_in.api_url(), sign_in.credential())


@st.cache_resource(show_spinner=False, max_entries=64)
def _client(base_url: str, token: str | None) -> ApiClient:
    return ApiClient(base_url, token=token, public_url=os.environ.get("INCIPIT_PUBLIC_API_URL"))


@st.cache_data(ttl=3, max_entries=16, show_spinner=False, hash_funcs=_BY_IDENTITY)
def health(client: ApiClient) -> Health:
    return client.health()


@st.cache_data(ttl=60, max_entries=16, show_spinner=False, hash_funcs=_BY_IDENTITY)
def me(client: ApiClient) -> Principal:
    return client.me()


@st.cache_data(ttl=3, max_entries=16, show_spinner=False, hash_funcs=_BY_IDENTITY)
def workers(client: ApiClient) -> list[Worker]:
    return client.workers()


@st.cache_data(ttl=2, max_entries=16, show_spinner=False, hash_funcs=_BY_IDENTITY)
def experiments(client: ApiClient) -> list[Experiment]:
    return client.experiments()


@st.cache_data(ttl=2, max_entries=64, show_spinner=False, hash_funcs=_BY_IDENTITY)
def experiment(client: ApiClient, experiment_id: str) -> Experiment:
    return client.experiment(experiment_id)


@st.cache_data(ttl=1, max_entries=64, show_spinner=False, hash_funcs=_BY_IDENTITY)
def experiment_runs(client: ApiClient, experiment_id: str) -> list[RunSummary]:
    return client.experiment_runs(experiment_id)


@st.cache_data(ttl=1, max_entries=64, show_spinner=False, hash_funcs=_BY_IDENTITY)
def runs(client: ApiClient, states: Sequence[RunState] = ()) -> list[RunSummary]:
    """The newest runs, at most 1,000: of all, or of those in one of these states."""
    return _runs_in(client, states, _MAX_LISTED_RUNS)


def is_cut(listed: Sequence[RunSummary]) -> bool:
    """Whether there may be older runs than those that `runs` has listed."""
    return len(listed) >= _MAX_LISTED_RUNS


def unfinished_runs(client: ApiClient) -> list[RunSummary]:
    """All runs that wait, work or are paused: the next one of a long queue is among the oldest."""
    listed = runs(client)
    return _unfinished(client) if is_cut(listed) else [run for run in listed if run.state not in ENDED_STATES]


@st.cache_data(ttl=3, max_entries=16, show_spinner=False, hash_funcs=_BY_IDENTITY)
def _unfinished(client: ApiClient) -> list[RunSummary]:
    return _runs_in(client, [state for state in get_args(RunState) if state not in ENDED_STATES])


def ended_runs(client: ApiClient) -> list[RunSummary]:
    """The newest runs that have ended, at most 1,000."""
    listed = runs(client)
    return (
        runs(client, sorted(ENDED_STATES)) if is_cut(listed) else [run for run in listed if run.state in ENDED_STATES]
    )


def _runs_in(client: ApiClient, states: Sequence[RunState], most: int | None = None) -> list[RunSummary]:
    """Newest first, page by page; all that there are, if no number is given."""
    found: list[RunSummary] = []
    cursor: str | None = None
    while most is None or len(found) < most:
        page = client.runs(states=states, cursor=cursor, limit=200)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


@st.cache_data(ttl=1, max_entries=128, show_spinner=False, hash_funcs=_BY_IDENTITY)
def run(client: ApiClient, run_id: str) -> Run:
    return client.run(run_id)


@st.cache_data(ttl=10, max_entries=256, show_spinner=False, hash_funcs=_BY_STATE)
def _last_seq(run: Run) -> int:
    """That of the run, which counts as unchanged for some seconds: a small run has an event at each look at it."""
    return run.last_seq


@st.cache_data(ttl=5, max_entries=64, show_spinner=False, hash_funcs=_BY_STATE)
def metrics(client: ApiClient, run: Run) -> list[Metric]:
    return client.metrics(run.id)


@st.cache_data(ttl=600, max_entries=64, show_spinner=False, hash_funcs=_BY_HISTORY)
def events(client: ApiClient, run: Run, kinds: Sequence[str] = ()) -> list[StoredEvent]:
    """The whole history, or that of some kinds, in at most 40 pages."""
    found: list[StoredEvent] = []
    for _ in range(_MAX_EVENT_PAGES):
        page = client.events(run.id, after_seq=found[-1].seq if found else 0, kinds=kinds, limit=_EVENT_PAGE)
        found += page.items
        if len(page.items) < _EVENT_PAGE:
            break
    return found


def notable(client: ApiClient, run: Run, kind: str) -> list[StoredEvent]:
    """The run's estimate, its warnings, its evaluations (`estimated`, `warning`, `evaluation`), oldest first: one request for all."""
    return [one for one in events(client, run, ("estimated", "warning", "evaluation")) if one.kind == kind]


@st.cache_data(ttl=600, max_entries=128, show_spinner=False, hash_funcs=_BY_HISTORY)
def evaluations(client: ApiClient, run: Run) -> list[Evaluation]:
    return client.evaluations(run.id)


@st.cache_data(ttl=600, max_entries=64, show_spinner=False, hash_funcs=_BY_HISTORY)
def checkpoints_of(client: ApiClient, run: Run) -> list[Checkpoint]:
    """Those of one run, as its page needs them: a pin set meanwhile is not seen."""
    return client.checkpoints(run_id=run.id)


@st.cache_data(ttl=4, max_entries=64, show_spinner=False, hash_funcs=_BY_IDENTITY)
def positions(client: ApiClient, run_id: str, source: str | None = None) -> list[Positions]:
    """Curves of one source, or of all."""
    return client.positions(run_id, source)


@st.cache_data(ttl=2, max_entries=64, show_spinner=False, hash_funcs=_BY_IDENTITY)
def rollouts(client: ApiClient, run_id: str, step: int | None = None) -> RolloutPage:
    return client.rollouts(run_id, step=step)


@st.cache_data(ttl=600, max_entries=16, show_spinner=False, hash_funcs=_BY_IDENTITY)
def rollout(client: ApiClient, rollout_id: str) -> RolloutDetail:
    return client.rollout(rollout_id)


@st.cache_data(ttl=5, max_entries=32, show_spinner=False, hash_funcs=_BY_IDENTITY)
def divergence_grid(client: ApiClient, run_id: str, metric: TraceMetric) -> DivergenceGrid:
    return client.divergence_grid(run_id, metric)


@st.cache_data(ttl=5, max_entries=32, show_spinner=False, hash_funcs=_BY_IDENTITY)
def divergence_positions(client: ApiClient, run_id: str, metric: TraceMetric, step: int) -> PositionQuantiles:
    return client.divergence_positions(run_id, metric, step)


@st.cache_data(ttl=5, max_entries=32, show_spinner=False, hash_funcs=_BY_IDENTITY)
def divergent_tokens(client: ApiClient, run_id: str, step: int | None) -> DivergentTokens:
    return client.divergent_tokens(run_id, step=step)


@st.cache_data(ttl=5, max_entries=32, show_spinner=False, hash_funcs=_BY_IDENTITY)
def prefix_aid(client: ApiClient, run_id: str, step: int) -> PrefixAid:
    return client.prefix_aid(run_id, step)


@st.cache_data(ttl=5, max_entries=16, show_spinner=False, hash_funcs=_BY_IDENTITY)
def saved_views(client: ApiClient) -> list[SavedView]:
    return client.saved_views()


@st.cache_data(ttl=5, max_entries=32, show_spinner=False, hash_funcs=_BY_IDENTITY)
def run_resources(client: ApiClient, run_id: str) -> RunResources:
    return client.run_resources(run_id)


@st.cache_data(ttl=2, max_entries=64, show_spinner=False, hash_funcs=_BY_IDENTITY)
def checkpoints(client: ApiClient, run_id: str | None = None) -> list[Checkpoint]:
    return client.checkpoints(run_id=run_id)


@st.cache_data(ttl=2, max_entries=64, show_spinner=False, hash_funcs=_BY_IDENTITY)
def checkpoint(client: ApiClient, checkpoint_id: str) -> Checkpoint:
    return client.checkpoint(checkpoint_id)


@st.cache_data(ttl=3, max_entries=32, show_spinner=False, hash_funcs=_BY_IDENTITY)
def alerts(client: ApiClient, *, is_open: bool = True, cursor: str | None = None) -> AlertPage:
    return client.alerts(is_open=is_open, cursor=cursor)


@st.cache_data(ttl=2, max_entries=16, show_spinner=False, hash_funcs=_BY_IDENTITY)
def prompt_files(client: ApiClient) -> list[PromptFile]:
    return client.prompt_files()


@st.cache_data(ttl=60, max_entries=16, show_spinner=False, hash_funcs=_BY_IDENTITY)
def presets(client: ApiClient) -> list[Preset]:
    return client.presets()


@st.cache_data(ttl=60, max_entries=64, show_spinner=False, hash_funcs=_BY_IDENTITY)
def findings(client: ApiClient, document: Document) -> list[Finding]:
    return client.validate(document)


@st.cache_data(ttl=60, max_entries=64, show_spinner=False, hash_funcs=_BY_IDENTITY)
def estimate(client: ApiClient, document: Document) -> Estimate:
    return client.estimate(document)


@st.cache_data(ttl=60, max_entries=16, show_spinner=False, hash_funcs=_BY_IDENTITY)
def spec_schema(client: ApiClient) -> Document:
    return client.spec_schema()


@st.cache_data(ttl=60, max_entries=16, show_spinner=False, hash_funcs=_BY_IDENTITY)
def analysis_schema(client: ApiClient) -> Document:
    return client.analysis_schema()


@st.cache_data(ttl=10, max_entries=64, show_spinner=False, hash_funcs=_BY_IDENTITY)
def question_findings(client: ApiClient, document: Document) -> list[Finding]:
    return client.question_findings(document)


@st.cache_data(ttl=1, max_entries=16, show_spinner=False, hash_funcs=_BY_IDENTITY)
def questions(client: ApiClient) -> list[QuestionSummary]:
    return client.questions()


@st.cache_data(ttl=600, max_entries=64, show_spinner=False, hash_funcs=_BY_IDENTITY)
def answer(client: ApiClient, question_id: str, row: int) -> AnswerDetail:
    return client.answer(question_id, row)
