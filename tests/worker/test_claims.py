"""Who holds a run, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from backend.database import Database
from backend.queries.claims import (
    Claim,
    Ending,
    LeaseLost,
    claim_run,
    end_attempt,
    hold,
    reap,
    renew_lease,
)
from backend.queries.queue import has_claimable_run
from backend.queries.retries import next_try
from backend.queries.transitions import transition
from backend.queries.wishes import ask_to_cancel, settle_queued
from backend.records import Attempt, Event
from backend.resources import WorkerCapabilities
from tests.worker.runs import OWNER, claim, queue_runs, run_row, set_columns, short_spec

_PAST = datetime(2020, 1, 1, tzinfo=UTC)


def _nobody_is_dead(_owner: str) -> bool:
    return False


def test_racing_workers_win_each_run_once(database_url: str, database: Database) -> None:
    run_ids = queue_runs(database, *[short_spec()] * 20)

    def work(number: int) -> list[str]:
        own = Database(database_url)
        won: list[str] = []
        while True:
            with own.write() as session:
                claimed = claim_run(session, owner=f"worker {number}", host="here", boot_id="")
            if claimed is None:
                own.close()
                return won
            won.append(claimed.run_id)

    with ThreadPoolExecutor(8) as pool:
        won = [run_id for ids in pool.map(work, range(8)) for run_id in ids]
    assert sorted(won) == run_ids
    assert {run_row(database, run_id).fence for run_id in run_ids} == {1}


def test_urgent_runs_come_first_then_old_ones(database: Database) -> None:
    first, second, urgent = queue_runs(database, *[short_spec()] * 3)
    set_columns(database, urgent, priority=5)
    assert [claim(database).run_id for _ in range(3)] == [urgent, first, second]


def test_a_run_that_is_not_due_or_not_wanted_is_not_claimed(database: Database) -> None:
    later, unwanted = queue_runs(database, short_spec(), short_spec())
    set_columns(database, later, not_before=datetime.now(UTC) + timedelta(hours=1))
    set_columns(database, unwanted, desired_state="cancel")
    with database.write() as session:
        assert not has_claimable_run(session, WorkerCapabilities())
        assert claim_run(session, owner=OWNER, host="here", boot_id="") is None
        settle_queued(session)
    assert run_row(database, unwanted).state == "cancelled"
    assert run_row(database, later).state == "queued"


def test_a_claim_raises_the_fence_and_opens_an_attempt(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    claimed = claim(database)
    run = run_row(database, run_id)
    assert (claimed.fence, run.fence, run.state, run.lease_owner) == (1, 1, "starting", OWNER)
    assert run.lease_until is not None
    assert 55 < (run.lease_until - datetime.now(UTC)).total_seconds() <= 60
    with database.read() as session:
        assert session.get_one(Attempt, (run_id, 1)).worker_id == OWNER


def test_whoever_lost_the_lease_changes_nothing(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    zombie = claim(database)
    set_columns(database, run_id, lease_until=_PAST)
    with database.write() as session:
        assert reap(session, _nobody_is_dead) == [run_id]
    claim(database)
    before = run_row(database, run_id)
    with database.write() as session:
        with pytest.raises(LeaseLost):
            renew_lease(session, run_id, zombie.fence)
        with pytest.raises(LeaseLost):
            hold(session, run_id, zombie.fence, last_step=99)
        with pytest.raises(LeaseLost):
            end_attempt(session, zombie, Ending("failed", "A zombie says so."))
    after = run_row(database, run_id)
    assert (after.state, after.fence, after.last_step) == (before.state, before.fence, 0)


def test_a_living_lease_is_left_alone(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    claimed = claim(database)
    with database.write() as session:
        renew_lease(session, run_id, claimed.fence)
        assert reap(session, _nobody_is_dead) == []


def test_a_lease_without_an_end_counts_as_over(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    claim(database)
    set_columns(database, run_id, lease_until=None)
    with database.write() as session:
        assert reap(session, _nobody_is_dead) == [run_id]
    run = run_row(database, run_id)
    assert (run.state, run.fence, run.lease_owner) == ("queued", 2, None)


def test_a_run_of_a_dead_process_is_taken_back_at_once(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    claim(database)
    with database.write() as session:
        assert reap(session, lambda owner: owner == OWNER) == [run_id]
        assert session.get_one(Attempt, (run_id, 1)).outcome == "lost"
        assert has_claimable_run(session, WorkerCapabilities()), "the first retry waits for nothing"


def test_a_lost_run_that_was_to_be_cancelled_is_cancelled(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    claim(database)
    set_columns(database, run_id, lease_until=None, desired_state="cancel")
    with database.write() as session:
        reap(session, _nobody_is_dead)
    assert run_row(database, run_id).state == "cancelled"


def test_three_lost_attempts_without_progress_fail_the_run_by_name(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    for _ in range(3):
        set_columns(database, run_id, not_before=None)
        claim(database)
        with database.write() as session:
            reap(session, lambda owner: True)
    run = run_row(database, run_id)
    assert (run.state, run.failure_kind) == ("failed", "worker_lost")
    assert run.failure_message is not None
    assert "3 times" in run.failure_message


def test_a_planned_shutdown_does_not_count_as_an_attempt(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    for _ in range(5):
        claimed = claim(database)
        assert claimed.attempt == 1
        with database.write() as session:
            end_attempt(session, claimed, Ending("queued", "The worker is shutting down.", counts=False))
    assert run_row(database, run_id).fence == 5


def test_a_crash_returns_to_the_queue_unless_the_run_is_unwanted(database: Database) -> None:
    wanted, unwanted = queue_runs(database, short_spec(), short_spec())
    claims = {claimed.run_id: claimed for claimed in (claim(database), claim(database))}
    set_columns(database, unwanted, desired_state="cancel")
    for claimed in claims.values():
        with database.write() as session:
            end_attempt(session, claimed, Ending("queued", "It crashed."))
    assert run_row(database, wanted).state == "queued"
    assert run_row(database, unwanted).state == "cancelled"


def test_a_failure_that_may_pass_waits_longer_each_time_says_until_when_and_is_not_tried_for_ever(
    database: Database,
) -> None:
    (run_id,) = queue_runs(database, short_spec())
    full = Ending("queued", "The disk is full.", 17, "disk_full", "The disk is full.")
    for attempt, seconds in ((1, 30), (2, 60)):
        claimed = claim(database)
        assert run_row(database, run_id).failure_kind is None, "what is at work has not failed"
        before = datetime.now(UTC)
        with database.write() as session:
            end_attempt(session, claimed, full)
        run = run_row(database, run_id)
        assert run.not_before is not None
        assert 0 <= (run.not_before - before).total_seconds() - seconds < 20
        assert (run.state, run.failure_kind, run.attempt) == ("queued", "disk_full", attempt)
        assert f"The disk is full. It goes on in {seconds} s, at " in (run.failure_message or "")
        assert f"(attempt {attempt + 1} of 3)" in (run.failure_message or "")
        set_columns(database, run_id, not_before=None)
    with database.write() as session:
        end_attempt(session, claim(database), full)
    run = run_row(database, run_id)
    assert (run.state, run.failure_kind, run.not_before) == ("failed", "disk_full", None)
    assert run.failure_message == "The disk is full. No new checkpoint came in 3 attempts in a row."


def test_the_third_attempt_is_not_the_last_when_it_has_committed_a_checkpoint(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    set_columns(database, run_id, attempt=2)
    claimed = claim(database)
    assert claimed.attempt == 3
    set_columns(database, run_id, attempt=1)  # as recording a checkpoint does
    with database.write() as session:
        end_attempt(session, claimed, Ending("queued", "It crashed.", 1, "engine_crashed", "It crashed."))
    assert run_row(database, run_id).state == "queued"


def test_retries_are_at_most_a_quarter_of_an_hour_apart() -> None:
    now = datetime.now(UTC)

    def seconds(attempt: int, *, is_innocent: bool = False) -> float:
        retry = next_try(now, attempt=attempt, max_attempts=99, base_seconds=30, is_innocent=is_innocent)
        assert retry is not None
        return (retry.not_before - now).total_seconds()

    assert [seconds(attempt) for attempt in range(1, 8)] == [30, 60, 120, 240, 480, 900, 900]
    assert [seconds(attempt, is_innocent=True) for attempt in (1, 2, 3)] == [0, 30, 60]


def test_the_history_has_no_gaps(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    for _ in range(3):
        claimed: Claim = claim(database)
        with database.write() as session:
            transition(session, run_id, "running", actor="holder", reason="ready", fence=claimed.fence)
            end_attempt(session, claimed, Ending("queued", "Again.", counts=False))
    with database.read() as session:
        events = session.query(Event).where(Event.run_id == run_id).order_by(Event.seq).all()
    assert [event.seq for event in events] == list(range(1, 11))
    assert [event.payload["state"] for event in events] == ["queued", *["starting", "running", "queued"] * 3]


def test_a_run_whose_engine_never_gets_ready_is_taken_back_although_its_worker_lives(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    for _ in range(3):
        set_columns(database, run_id, not_before=None)
        claimed = claim(database)
        with database.write() as session:
            assert reap(session, _nobody_is_dead, start_seconds=3600) == []
            renew_lease(session, run_id, claimed.fence)
            session.get_one(Attempt, (run_id, claimed.fence)).started_at = _PAST
        with database.write() as session:
            assert reap(session, _nobody_is_dead, start_seconds=3600) == [run_id]
    run = run_row(database, run_id)
    assert (run.state, run.failure_kind) == ("failed", "start_timeout")
    assert "INCIPIT_START_SECONDS" in (run.failure_message or "")


def test_a_run_that_its_living_worker_does_not_end_is_taken_after_three_minutes(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    claimed = claim(database)
    set_columns(database, run_id, desired_state="cancel", desired_at=datetime.now(UTC) - timedelta(seconds=170))
    with database.write() as session:
        assert reap(session, _nobody_is_dead) == []
    set_columns(database, run_id, desired_at=datetime.now(UTC) - timedelta(seconds=190))
    with database.write() as session:
        assert reap(session, _nobody_is_dead) == [run_id]
        with pytest.raises(LeaseLost):
            renew_lease(session, run_id, claimed.fence)
    assert run_row(database, run_id).state == "cancelled"


def test_a_last_checkpoint_may_take_longer_while_its_worker_keeps_the_lease(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    claimed = claim(database)
    with database.write() as session:
        ask_to_cancel(session, run_id, checkpoint=True)
    set_columns(database, run_id, desired_at=_PAST)
    with database.write() as session:
        assert reap(session, _nobody_is_dead) == []
        renew_lease(session, run_id, claimed.fence)
        ask_to_cancel(session, run_id, checkpoint=False)
    set_columns(database, run_id, desired_at=_PAST)
    with database.write() as session:
        assert reap(session, _nobody_is_dead) == [run_id], "who does not want to wait any more need not"


@pytest.mark.parametrize(("wish", "state"), [("run", "queued"), ("pause", "paused"), ("cancel", "cancelled")])
def test_an_attempt_that_leaves_its_run_unfinished_leaves_it_as_people_want_it_now(
    database: Database, wish: str, state: str
) -> None:
    for ending in (Ending("queued", "It crashed."), Ending("paused", "Paused.", counts=False)):
        (run_id,) = queue_runs(database, short_spec())
        claimed = claim(database)
        set_columns(database, run_id, desired_state=wish)
        with database.write() as session:
            end_attempt(session, claimed, ending)
        assert run_row(database, run_id).state == state
        set_columns(database, run_id, not_before=datetime.now(UTC) + timedelta(hours=1))


def test_a_lost_run_that_was_to_be_paused_is_paused(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    claim(database)
    set_columns(database, run_id, lease_until=None, desired_state="pause")
    with database.write() as session:
        assert reap(session, _nobody_is_dead) == [run_id]
    assert run_row(database, run_id).state == "paused"
