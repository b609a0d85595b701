"""What runs need and workers have, on both databases: the claim takes what the words say, and no more."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from backend.database import Database
from backend.expansion import PlannedRun
from backend.memory_needs import needs_of
from backend.needs import Candidate, Needs, RunNeeds, can_take, why_it_waits
from backend.queries.claims import Claim, claim_run
from backend.queries.experiments import create_experiment
from backend.queries.leases import keep_worker
from backend.queries.queue import has_claimable_run
from backend.queries.runs import RunFilter, run, runs
from backend.queries.waiting import needs_of_runs
from backend.resources import WorkerCapabilities
from backend.tables import Experiment, Run
from engine.memory import MEMORY_ERROR
from tests.worker.runs import OWNER, queue_runs, run_row, short_spec

_GB = 10**9
_SIZES = st.none() | st.sampled_from([4 * _GB, 8 * _GB, 16 * _GB])
_LABELS = st.lists(st.sampled_from(["a100", "lab", "eu"]), unique=True).map(sorted)
_NEEDS = st.builds(
    RunNeeds, device=st.sampled_from(["auto", "cpu", "cuda"]), num_gpus=st.integers(0, 3), cpu_memory_bytes=_SIZES,
    num_processes=st.integers(1, 4),
    gpu_memory_bytes=_SIZES, labels=_LABELS, spec_version=st.integers(1, 2), event_version=st.integers(0, 2),
)  # fmt: skip
_WORKERS = st.builds(
    WorkerCapabilities, device=st.sampled_from([None, "cpu", "cuda"]), num_gpus=st.integers(0, 3), memory_total_bytes=_SIZES,
    cores=st.sampled_from([None, 1, 2, 4]),
    gpu_memory_total_bytes=_SIZES, labels=_LABELS, spec_version=st.none() | st.integers(1, 2), event_version=st.none() | st.integers(0, 2),
)  # fmt: skip


def queue(database: Database, *needs: RunNeeds) -> list[str]:
    """Queued runs that need this; their ids."""
    with database.write() as session:
        planned = [PlannedRun(variant="", note="", spec=short_spec(), needs=one) for one in needs]
        return create_experiment(session, "a question", "", planned)[1]


def claimed_by(database: Database, worker: WorkerCapabilities, unreadable: set[str] | None = None) -> Claim | None:
    with database.write() as session:
        return claim_run(session, owner=OWNER, host="here", boot_id="", worker=worker, unreadable=unreadable)


def announce(database: Database, id: str = "w", **capabilities: Any) -> None:
    """A worker that is heard of now."""
    with database.write() as session:
        told = WorkerCapabilities.model_validate(capabilities)
        keep_worker(session, id, host="lab", boot_id="", pid=1, pid_started=0.0, slot="cpu0", capabilities=told)


def why(database: Database, run_id: str) -> str | None:
    """What the list of runs says of one, and its own page."""
    with database.read() as session:
        (line,) = [one for one in runs(session, RunFilter()) if one.id == run_id]
        page = run(session, run_id)
    assert page is not None
    assert page.waits_because == line.waits_because
    return page.waits_because


@given(needs=st.lists(_NEEDS, min_size=1, max_size=4), worker=_WORKERS)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_claim_takes_just_the_runs_that_the_worker_can_take(
    database: Database, needs: list[RunNeeds], worker: WorkerCapabilities
) -> None:
    with database.write() as session:
        session.execute(delete(Experiment))
    ids = queue(database, *needs)
    with database.read() as session:
        assert needs_of_runs(session, ids) == dict(zip(ids, needs, strict=True))
        assert has_claimable_run(session, worker) == any(can_take(one, worker) for one in needs)
    taken = set()
    while (claimed := claimed_by(database, worker)) is not None:
        taken.add(claimed.run_id)
    assert taken == {id for id, one in zip(ids, needs, strict=True) if can_take(one, worker)}
    for one in needs:
        here = Candidate(place="lab, cpu0", capabilities=worker, is_draining=False)
        assert (why_it_waits(one, [here]) is None) == can_take(one, worker)
        drained = why_it_waits(one, [here.model_copy(update={"is_draining": True})])
        assert drained is not None


def test_a_run_that_no_connected_worker_can_take_says_why_with_value_limit_and_remedy(database: Database) -> None:
    big = RunNeeds.stated(short_spec()).model_copy(update={"cpu_memory_bytes": 40 * _GB})
    cuda = RunNeeds.stated(short_spec(device="cuda"))
    tagged = big.model_copy(update={"cpu_memory_bytes": None, "labels": ["a100", "lab"]})
    newer = RunNeeds.stated(short_spec()).model_copy(update={"spec_version": 7})
    plain = RunNeeds.stated(short_spec())
    ids = queue(database, big, cuda, tagged, newer, plain)
    assert "No worker is connected; start one: `incipit up`" in (why(database, ids[4]) or "")
    announce(database, device="cpu", memory_total_bytes=16 * _GB, labels=["lab"], spec_version=1, event_version=1,
             versions={"incipit": "0.1.0"})  # fmt: skip
    said = [why(database, id) or "" for id in ids]
    assert "needs at least 40.00 GB of memory" in said[0]
    assert "(lab, cpu0) has 16.00 GB; start a worker on a larger machine" in said[0]
    assert "needs 1 GPU (device cuda), but none of the connected workers has a GPU; start" in said[1]
    assert "a worker with a100 and lab" in said[2]
    assert "(their labels are lab); start one with INCIPIT_WORKER_LABELS=a100,lab" in said[2]
    assert "knows spec version 7" in said[3]
    assert "(lab, cpu0, Incipit 0.1.0) knows 1 and 1; install" in said[3]
    assert said[4] == ""
    announce(database, "larger", device="cpu", memory_total_bytes=64 * _GB)
    assert why(database, ids[0]) is None


def test_a_run_with_vllm_inside_waits_for_a_worker_that_has_it(database: Database) -> None:
    (waiting,) = queue(database, RunNeeds.stated(short_spec(rollouts={"kind": "vllm_colocated"})))
    announce(database, device="cpu", memory_total_bytes=16 * _GB, labels=["lab"])
    said = why(database, waiting) or ""
    assert (
        "no connected worker that could take it has the label vllm (their labels are lab); start one with INCIPIT_VLLM_PYTHON"
        in said
    )
    announce(database, "other", device="cpu", memory_total_bytes=16 * _GB, labels=["lab", "vllm"])
    assert why(database, waiting) is None
    asked = needs_of([short_spec(rollouts={"kind": "vllm_colocated"})], Needs(labels=["lab"]))[0]
    assert asked.labels == ["lab", "vllm"]


def test_a_run_of_more_processes_than_cores_waits_for_a_larger_machine(database: Database) -> None:
    spec = short_spec(prompts_per_step=8, parallelism={"kind": "data_parallel", "num_processes": 8})
    (waiting,) = queue(database, RunNeeds.stated(spec))
    announce(database, device="cpu", memory_total_bytes=16 * _GB, cores=2)
    said = why(database, waiting) or ""
    assert (
        "has 8 processes (parallelism.num_processes), but the connected workers that could take it have 2 cores at most"
        in said
    )
    announce(database, "larger", device="cpu", memory_total_bytes=16 * _GB, cores=16)
    assert why(database, waiting) is None


def test_a_small_worker_leaves_a_large_run_and_takes_the_next(database: Database) -> None:
    large, small = queue(
        database,
        RunNeeds.stated(short_spec()).model_copy(update={"cpu_memory_bytes": 40 * _GB}),
        RunNeeds.stated(short_spec()).model_copy(update={"cpu_memory_bytes": 2 * _GB}),
    )
    worker = WorkerCapabilities(device="cpu", memory_total_bytes=8 * _GB)
    first, second = claimed_by(database, worker), claimed_by(database, worker)
    assert first is not None
    assert first.run_id == small
    assert second is None
    assert run_row(database, large).state == "queued"


def test_the_estimate_of_a_submission_is_what_a_worker_must_have() -> None:
    (auto,) = needs_of([short_spec()], Needs())
    assert auto.cpu_memory_bytes is not None
    assert auto.gpu_memory_bytes is not None
    assert 0.2 * _GB < auto.cpu_memory_bytes < 0.6 * _GB / (1 + MEMORY_ERROR)
    assert auto.gpu_memory_bytes < auto.cpu_memory_bytes, "the process itself lies in the machine's memory"
    (cpu,) = needs_of([short_spec(device="cpu")], Needs(labels=["b", "a"]))
    assert (cpu.gpu_memory_bytes, cpu.num_gpus, cpu.labels) == (None, 0, ["a", "b"])
    (unknown,) = needs_of([short_spec(student={"path": "/nowhere"})], Needs())
    assert (unknown.cpu_memory_bytes, unknown.gpu_memory_bytes) == (None, None)
    assert can_take(unknown, WorkerCapabilities(device="cpu", memory_total_bytes=1))
    (whole,) = needs_of([short_spec(parallelism={"kind": "data_parallel"})], Needs())
    assert (whole.gpu_memory_bytes, whole.num_gpus) == (auto.gpu_memory_bytes, 2)
    (parts,) = needs_of([short_spec(parallelism={"kind": "fully_sharded"})], Needs())
    assert (parts.cpu_memory_bytes, parts.gpu_memory_bytes, parts.num_gpus) == (None, None, 2)
    (told,) = needs_of([short_spec()], Needs(memory_bytes=0))
    assert can_take(told, WorkerCapabilities(device="cpu", memory_total_bytes=1))


def test_runs_that_differ_by_seed_alone_are_estimated_once() -> None:
    first, second, other = needs_of([short_spec(), short_spec(seed=1), short_spec(max_completion_tokens=32)], Needs())
    assert first is second
    assert first != other


def test_a_spec_of_a_later_version_stays_in_the_queue_and_does_not_stop_the_others(database: Database) -> None:
    later, known = queue_runs(database, short_spec(), short_spec())
    with database.write() as session:
        document = short_spec().model_dump(mode="json") | {"invented_later": 1}
        raw = Run.__table__.c.spec
        session.execute(update(Run.__table__).where(Run.__table__.c.id == later).values({raw: _Raw(document)}))
    announce(database, device="cpu")
    unreadable: set[str] = set()
    claimed = claimed_by(database, WorkerCapabilities(), unreadable)
    assert claimed is not None
    assert claimed.run_id == known
    assert unreadable == {later}
    with database.read() as session:
        row = session.execute(select(Run.state, Run.refusal).where(Run.id == later)).one()
        assert not has_claimable_run(session, WorkerCapabilities(), beside=unreadable)
    assert row.state == "queued"
    assert "The worker on here (Incipit 0.1.0) cannot read the run's spec at 'invented_later'" in (row.refusal or "")


class _Raw:
    """A document that passes for a spec on its way into the database."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    def model_dump(self, mode: str) -> dict[str, Any]:
        assert mode == "json"
        return self.document


def test_attempts_of_a_newer_version_are_not_continued_by_an_older_worker(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    with database.write() as session:
        session.execute(update(Run).values(event_version=2))
    assert claimed_by(database, WorkerCapabilities(spec_version=1, event_version=1)) is None
    claimed = claimed_by(database, WorkerCapabilities(spec_version=1, event_version=2))
    assert claimed is not None
    assert claimed.run_id == run_id
