"""Alerts are raised with what they are about, once each, on both databases."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from backend.access import LOCAL
from backend.alert_records import Alert, WebhookDelivery
from backend.alerts import AlertRules, WebhookCreate
from backend.database import Database
from backend.limits import Limits
from backend.queries.alerts import set_rules
from backend.queries.claims import Claim, Ending, end_attempt
from backend.queries.raising import raise_standstills
from backend.queries.webhooks import add_webhook
from engine.events import Evaluated, RunEvent, Warned
from tests.worker.runs import claim, queue_runs, set_columns, short_spec, write_events
from tests.worker.sample_events import TIME, evaluation_event, start_events, step_event
from worker.recorder import Recorder


@pytest.fixture
def claimed(database: Database) -> Claim:
    queue_runs(database, short_spec())
    return claim(database)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def alarm(step: int, code: str = "alarm_repetition") -> Warned:
    return Warned(time=TIME, code=code, message=f"Step {step}: too much.", step=step)


def evaluations(*accuracy: float, reverse_kl: float = 0.5) -> list[RunEvent]:
    made = [evaluation_event(2 * at, value, is_best=False) for at, value in enumerate(accuracy, 1)]
    assert all(isinstance(one, Evaluated) for one in made)
    return [one.model_copy(update={"metrics": {**one.metrics, "reverse_kl": reverse_kl}}) for one in made]  # type: ignore[union-attr]


def record(database: Database, claimed: Claim, run_folder: Path, *events: RunEvent) -> None:
    write_events(run_folder, claimed.fence, [*start_events(claimed.fence), step_event(1), *events])
    recorder = Recorder(database, claimed, run_folder)
    while recorder.advance():
        pass


def raised(database: Database) -> list[tuple[str, int | None]]:
    with database.read() as session:
        return [(one.rule, one.step) for one in session.scalars(select(Alert).order_by(Alert.time, Alert.id))]


def test_a_warning_of_the_engine_is_told_once_per_episode(database: Database, claimed: Claim, run_folder: Path) -> None:
    # The same alarm of the same step: a resumed attempt did the step again.
    record(
        database,
        claimed,
        run_folder,
        alarm(4),
        alarm(4),
        alarm(9),
        alarm(9, "sentinel_eos_rate"),
        alarm(9, "model_pair"),
    )
    assert raised(database) == [("health", 4), ("health", 9), ("health", 9)]


def test_accuracy_and_divergence_are_told_when_they_become_bad(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    record(database, claimed, run_folder, *evaluations(0.5, 0.45, 0.4, 0.3, 0.5, 0.39))
    assert raised(database) == [("accuracy", 6), ("accuracy", 12)]


def test_a_divergence_that_has_tripled_is_told(database: Database, claimed: Claim, run_folder: Path) -> None:
    first, second, third = evaluations(0.5, 0.5, 0.5)
    assert isinstance(second, Evaluated)
    assert isinstance(third, Evaluated)
    tripled = [one.model_copy(update={"metrics": {**one.metrics, "reverse_kl": 1.5}}) for one in (second, third)]
    record(database, claimed, run_folder, first, *tripled)
    assert raised(database) == [("divergence", 4)]
    with database.read() as session:
        (told,) = session.scalars(select(Alert.message))
    assert told == "Step 4: the full-length reverse KL is 1.5 nats per token, 3 times its best (0.5; limit 3)."


def test_a_divergence_that_was_none_is_told_without_a_ratio(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    """A student that is its teacher's copy begins so; the step has to be recorded all the same."""
    (same,), (apart, _) = evaluations(0.5, reverse_kl=0.0), evaluations(0.5, 0.5)
    assert isinstance(apart, Evaluated)
    record(database, claimed, run_folder, same, apart.model_copy(update={"step": 4}))
    assert raised(database) == [("divergence", 4)]
    with database.read() as session:
        (told,) = session.scalars(select(Alert.message))
    assert "its best was 0" in told


def test_rules_can_be_switched_off(database: Database, claimed: Claim, run_folder: Path) -> None:
    rules = AlertRules(
        health=False, accuracy_drop=None, divergence_factor=None, finished=False, failed=False, no_progress_minutes=None
    )
    with database.write() as session:
        set_rules(session, "default", rules)
    record(database, claimed, run_folder, alarm(4), *evaluations(0.5, 0.1))
    set_columns(database, claimed.run_id, progressed_at=datetime(2020, 1, 1, tzinfo=UTC))
    with database.write() as session:
        raise_standstills(session)
        end_attempt(
            session, claimed, Ending("failed", "It broke.", failure_kind="nan_loss", failure_message="It broke.")
        )
    assert raised(database) == []


def test_an_ending_is_told_in_the_transaction_that_ends_the_run(database: Database, claimed: Claim) -> None:
    with database.write() as session:
        add_webhook(
            session, WebhookCreate(name="a", url="https://x.org"), owner=LOCAL, may_be_local=False, limits=Limits()
        )
    with suppress(RuntimeError), database.write() as session:
        end_attempt(session, claimed, Ending("succeeded", "Finished."))
        raise RuntimeError
    assert raised(database) == []
    with database.write() as session:
        end_attempt(
            session, claimed, Ending("failed", "The loss is not finite.", failure_kind="nan_loss", failure_message="x")
        )
    assert raised(database) == [("failed", 0)]
    with database.read() as session:
        (message,) = session.scalars(select(Alert.message))
        (delivery,) = session.scalars(select(WebhookDelivery))
    assert message == "The loss is not finite."
    assert (delivery.state, delivery.attempts) == ("pending", 0)


def test_a_run_that_stands_still_is_told_once_until_it_moves(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    record(database, claimed, run_folder)

    def look(minutes: float) -> int:
        moment = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=minutes)
        set_columns(database, claimed.run_id, progressed_at=moment)
        for _ in range(2):
            with database.write() as session:
                raise_standstills(session)
        return len(raised(database))

    assert look(29) == 0
    assert look(31) == 1
    assert look(45) == 2
    with database.read() as session:
        messages = list(session.scalars(select(Alert.message).order_by(Alert.id)))
    assert messages[0] == "The run has recorded nothing for 31 minutes (limit 30); see its log and its worker."
