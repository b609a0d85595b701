"""Control, worker slots and preflights, on both databases."""

import sys
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest
from sqlalchemy import func, select, update

from backend.database import Database
from backend.queries import leases
from backend.queries.claims import extend_leases, reap, renew_lease
from backend.queries.preflights import create_preflight, preflight
from backend.queries.workers import workers
from backend.resources import WorkerCapabilities
from backend.tables import ControlLease, Preflight, Run, Worker
from engine.findings import Finding
from tests import databases
from tests.worker.runs import claim, queue_runs, set_columns, short_spec

_PAST = datetime(2020, 1, 1, tzinfo=UTC)


def test_one_process_is_in_control_until_it_dies_or_lets_go(database: Database) -> None:
    def holds(owner: str, dead: str = "") -> bool:
        with database.write() as session:
            return leases.hold_control(session, owner, lambda name: name == dead)

    assert holds("a")
    assert not holds("b")
    assert holds("a")
    assert holds("b", dead="a"), "a dead process does not keep control for its lease"
    assert not holds("a")
    with database.write() as session:
        session.execute(update(ControlLease).values(lease_until=_PAST))
    assert holds("a")
    with database.write() as session:
        leases.release_control(session, "a")
    assert holds("b")


def test_a_preflight_has_one_worker_and_one_answer(database: Database) -> None:
    with database.write() as session:
        asked = create_preflight(session, short_spec())
    with database.write() as session:
        claimed = leases.claim_preflight(session, "a")
        assert leases.claim_preflight(session, "b") is None
    assert claimed is not None
    finding = Finding(field="student.path", message="It is not there.")
    with database.write() as session:
        leases.end_preflight(session, claimed, findings=[finding], facts={"device": "cpu"}, is_answered=True)
        found = preflight(session, asked.id)
    assert found is not None
    assert (found.state, found.findings, found.facts) == ("done", [finding], {"device": "cpu"})


def test_a_preflight_that_nobody_took_ends_with_a_sentence(database: Database) -> None:
    with database.write() as session:
        waiting, fresh = create_preflight(session, short_spec()), create_preflight(session, short_spec())
        session.execute(update(Preflight).where(Preflight.id == waiting.id).values(created_at=_PAST))
    with database.write() as session:
        assert leases.give_up_preflights(session, waiting_seconds=120) == 1
        given_up, left = preflight(session, waiting.id), preflight(session, fresh.id)
    assert given_up is not None
    assert left is not None
    assert (given_up.state, left.state) == ("failed", "queued")
    assert "within 120 s" in given_up.findings[0].message


def test_an_answer_that_comes_after_giving_up_is_not_stored(database: Database) -> None:
    with database.write() as session:
        asked = create_preflight(session, short_spec())
    with database.write() as session:
        late = leases.claim_preflight(session, "a")
        session.execute(update(Preflight).values(lease_until=_PAST))
    with database.write() as session:
        leases.give_up_preflights(session, waiting_seconds=120)
    assert late is not None
    with database.write() as session:
        leases.end_preflight(session, late, findings=[], facts={}, is_answered=True)
        found = preflight(session, asked.id)
    assert found is not None
    assert found.state == "failed"


def test_the_doorbell_rings_again_only_for_due_work_that_nobody_was_told_of_lately(database: Database) -> None:
    first, second = queue_runs(database, short_spec(), short_spec())
    with database.write() as session:
        assert leases.unclaimed(session, silent_seconds=60) == ([first, second], [])
        leases.note_rung(session, [first], [])
        assert leases.unclaimed(session, silent_seconds=60) == ([second], [])
    claim(database)
    with database.write() as session:
        assert leases.unclaimed(session, silent_seconds=0) == ([second], [])


def test_after_a_jump_of_the_clock_every_holder_gets_a_full_lease(database: Database) -> None:
    queue_runs(database, short_spec())
    claimed = claim(database)
    set_columns(database, claimed.run_id, lease_until=_PAST)
    with database.write() as session:
        extend_leases(session)
        assert reap(session, lambda owner: False) == []


def test_a_heartbeat_renews_what_its_worker_has(database: Database) -> None:
    for free in (900, 400):
        with database.write() as session:
            leases.keep_worker(
                session, "w", host="h", boot_id="", pid=1, pid_started=0.0, slot="cpu0",
                capabilities=WorkerCapabilities(device="cpu", memory_total_bytes=1000, memory_available_bytes=free),
            )  # fmt: skip
    with database.read() as session:
        (told,) = workers(session)
    assert told.is_connected
    assert (told.capabilities.memory_total_bytes, told.capabilities.memory_available_bytes) == (1000, 400)


class _ShiftedClock(datetime):
    """The wall clock of a host that is off."""

    shift: ClassVar[timedelta] = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.shift


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_host_whose_clock_is_off_by_an_hour_neither_loses_nor_takes_a_run(
    hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL, whose hosts differ: every module that could ask the host's clock does so in vain."""
    with databases.postgres_copy() as url:
        database = Database(url)
        (run_id,) = queue_runs(database, short_spec())
        monkeypatch.setattr(_ShiftedClock, "shift", timedelta(hours=hours))
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in ("backend", "worker") and getattr(module, "datetime", None) is datetime:
                monkeypatch.setattr(module, "datetime", _ShiftedClock)
        claimed = claim(database)
        with database.write() as session:
            renew_lease(session, run_id, claimed.fence)
            leases.keep_worker(
                session,
                "w",
                host="h",
                boot_id="",
                pid=1,
                pid_started=0.0,
                slot="cpu0",
                capabilities=WorkerCapabilities(),
            )
            assert leases.hold_control(session, "a", lambda owner: False)
            asked = create_preflight(session, short_spec())
        with database.write() as session:
            until, now = session.execute(select(Run.lease_until, func.clock_timestamp()).where(Run.id == run_id)).one()
            assert 50 < (until - now).total_seconds() <= 60
            assert reap(session, lambda owner: False) == []
            assert leases.give_up_preflights(session, waiting_seconds=120) == 0, asked
            leases.forget_silent_workers(session)
            (told,) = workers(session)
            assert not leases.hold_control(session, "b", lambda owner: False)
        assert told.is_connected
        assert told.clock_offset_seconds == pytest.approx(3600 * hours, abs=5)
        monkeypatch.setattr(_ShiftedClock, "shift", timedelta())
        set_columns(database, run_id, lease_until=datetime.now(UTC) - timedelta(seconds=6))
        monkeypatch.setattr(_ShiftedClock, "shift", timedelta(hours=hours))
        with database.write() as session:
            assert reap(session, lambda owner: False) == [run_id], (
                "a lease that is over is over whatever the host thinks"
            )
        monkeypatch.undo()
        database.close()


def test_silent_workers_are_forgotten_after_an_hour(database: Database) -> None:
    def announce(worker_id: str) -> None:
        with database.write() as session:
            leases.keep_worker(
                session,
                worker_id,
                host="h",
                boot_id="",
                pid=1,
                pid_started=0.0,
                slot="cpu0",
                capabilities=WorkerCapabilities(),
            )

    announce("silent")
    with database.write() as session:
        session.execute(update(Worker).values(heartbeat_at=_PAST))
    announce("heard")
    with database.write() as session:
        leases.forget_silent_workers(session)
        assert [worker.id for worker in session.query(Worker)] == ["heard"]
        leases.remove_worker(session, "heard")
        assert session.query(Worker).count() == 0
