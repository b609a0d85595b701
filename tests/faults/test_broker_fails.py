"""Faults 7 to 12: the broker dies, freezes, forgets and lies. It carries doorbells; what is to be done is in the database."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Exchange, Producer
from sqlalchemy import select

from backend.doorbell import QUEUE, RUN_TASK
from backend.ids import new_id
from backend.records import Attempt
from backend.settings import Settings
from incipit.stack.broker import broker_url
from tests.backend import test_lost_answers as lost
from tests.faults.installation import Installation, until
from tests.faults.trial import Trial
from tests.worker.runs import queue_runs, short_spec

pytestmark = pytest.mark.timeout(300)

_MANY_RUNS_SECONDS = 1500.0  # ten times what an idle machine needs
_BRIEF = short_spec(num_steps=6, checkpoints={"every_steps": 6})


def _num_attempts(installation: Installation, run_ids: list[str]) -> list[int]:
    return [installation.num_attempts(run_id) for run_id in run_ids]


def _kill_broker(installation: Installation) -> None:
    assert installation.broker.pid is not None
    os.kill(installation.broker.pid, signal.SIGKILL)


@pytest.mark.fault(7, "broker killed, all messages lost", "kill -9 and its append-only file removed, 20 runs queued")
def test_07_a_broker_that_forgets_all_messages(fault: Trial, installation: Installation) -> None:
    """The control process rings again for what is in the database: all runs are worked on, each by one attempt."""
    installation.worker.stop(seconds=30)
    run_ids = installation.submit(*[_BRIEF] * 20)
    with installation.broker_client() as client:
        until(lambda: client.llen(QUEUE) >= 20, "20 messages")
    fault.inject()
    _kill_broker(installation)
    until(lambda: installation.broker.exit_code() is not None, "the broker's end")
    shutil.rmtree(installation.home / "broker" / "appendonlydir")
    installation.mend()
    with installation.broker_client() as client:
        assert client.llen(QUEUE) < 20, "they are gone"
    until(lambda: sum(_num_attempts(installation, run_ids)) > 0, "the first claim", 60)
    fault.recovered()
    installation.await_end(*run_ids, seconds=_MANY_RUNS_SECONDS)
    assert _num_attempts(installation, run_ids) == [1] * 20
    fault.check(installation, *run_ids)


@pytest.fixture
def base() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(short_spec().model_dump_json())
    return document


@pytest.mark.fault(8, "broker frozen while people submit", "SIGSTOP during 40 submissions")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_08_a_frozen_broker_delays_no_submission(fault: Trial, settings: Settings, base: dict[str, Any]) -> None:
    """Each is answered with 201, 95 % of them within 300 ms."""
    with lost.running_broker(settings.home) as socket:
        fault.record.tried += 40
        lost.submit_to_a_silent_broker(settings, socket, base, "frozen")


@pytest.mark.fault(9, "broker restarted again and again", "20 times kill -9 at random moments of 50 runs")
@pytest.mark.timeout(1800)
def test_09_twenty_restarts_of_the_broker(fault: Trial, installation: Installation) -> None:
    """Workers find it again each time; all runs succeed, each by one attempt."""
    run_ids = installation.submit(*[_BRIEF] * 50)
    moments = random.Random(9)
    for _ in range(20):
        time.sleep(moments.uniform(0.1, 8.0))
        fault.inject()
        _kill_broker(installation)
        time.sleep(moments.uniform(0.0, 0.3))
        installation.mend()
        fault.recovered()
    (last,) = installation.submit(_BRIEF)
    installation.await_end(*run_ids, last, seconds=_MANY_RUNS_SECONDS)
    assert _num_attempts(installation, [*run_ids, last]) == [1] * 51
    fault.check(installation, *run_ids, last)


@pytest.mark.fault(10, "broker emptied in the middle of a run", "FLUSHALL")
def test_10_a_flushed_broker(fault: Trial, installation: Installation) -> None:
    """The run goes on as if nothing had happened; a run whose message was lost is worked on all the same."""
    (run_id,) = installation.submit(short_spec(num_steps=200))
    installation.await_steps(run_id, 5)
    (silent,) = queue_runs(installation.database, _BRIEF)
    fault.inject()
    with installation.broker_client() as client:
        client.flushall()
    until(lambda: installation.num_attempts(silent) == 1, "a claim of the run without a message", 60)
    fault.recovered()
    installation.await_end(run_id, silent)
    assert _num_attempts(installation, [run_id, silent]) == [1, 1]
    fault.check(installation, run_id, silent)


@pytest.mark.fault(11, "one doorbell delivered a hundred times", "100 messages")
def test_11_a_hundred_copies_of_one_doorbell(fault: Trial, installation: Installation) -> None:
    """The run has one attempt."""
    (run_id,) = queue_runs(installation.database, short_spec(num_steps=60))
    for _ in range(100):
        installation.doorbell.ring_run(run_id)
        fault.record.tried += 1
    installation.await_end(run_id)
    with installation.broker_client() as client:
        until(lambda: client.llen(QUEUE) == 0, "the last of the messages")
    assert installation.num_attempts(run_id) == 1
    fault.check(installation, run_id)


@pytest.mark.fault(12, "forged messages", "unknown and old ids, unknown tasks, odd arguments, no JSON, a pickle")
def test_12_forged_messages_do_nothing(fault: Trial, installation: Installation, tmp_path: Path) -> None:
    """No run is claimed, no code of a message is run, and the worker works on the next real run."""
    (old,) = installation.submit(_BRIEF)
    installation.await_end(old)
    address = broker_url(installation.socket)
    app = Celery("forger", broker=address, set_as_current=False)
    touched = tmp_path / "touched"
    forged: list[tuple[str, list[object]]] = [
        (RUN_TASK, [new_id()]), (RUN_TASK, [old]), (RUN_TASK, []), (RUN_TASK, [{"id": old}, 1, None]),
        (RUN_TASK, ["'; DROP TABLE runs; --"]), ("worker.preflight", [new_id()]), ("os.system", [f"touch {touched}"]),
    ]  # fmt: skip
    for task, arguments in forged:
        app.send_task(task, args=arguments, queue=QUEUE, ignore_result=True)
    code = f"cos\nsystem\n(S'touch {touched}'\ntR.".encode()  # what unpickling would run
    with Connection(address) as connection:
        producer = Producer(connection.channel(), Exchange(QUEUE), routing_key=QUEUE)
        for body, kind in ((code, "application/x-python-serialize"), (b"{", "application/json"), (b"\x00", "text/x")):
            headers = {"task": RUN_TASK, "id": new_id()}
            producer.publish(body, content_type=kind, content_encoding="binary", headers=headers)
    app.close()
    fault.record.tried += len(forged) + 3
    with installation.broker_client() as client:
        until(lambda: client.llen(QUEUE) == 0, "the last of the messages")
    (after,) = installation.submit(_BRIEF)
    installation.await_end(after)
    assert not touched.exists()
    with installation.database.read() as session:
        assert len(session.scalars(select(Attempt).where(Attempt.run_id.in_([old, after]))).all()) == 2
    fault.check(installation, old, after)
