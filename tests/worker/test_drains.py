"""A worker process whose slots are drained: what it still takes, and what it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

from backend.database import Database
from tests import databases
from tests.worker.runs import queue_runs, run_row, short_spec

# As Celery's child would, without a broker: heartbeat, then work until nothing is left. The run ends in its first second:
# there is no such model.
_CODE = """
import json
from sqlalchemy import select
from backend.queries.drains import drain, resume
from backend.queries.workers import workers
from backend.tables import Run
from worker import app

def drained(*indices):
    with app._workplace().database.write() as session:
        for slot in app.slots:
            (drain(session, app._worker_id(slot), requeue=False) if slot.index in indices else resume(session, app._worker_id(slot)))

def states():
    app._work()
    with app._workplace().database.read() as session:
        return list(session.scalars(select(Run.state).order_by(Run.id)))

app._heartbeat()
found = {}
drained(0, 1)
found["both"] = states()
drained(0)
found["first"] = states()
with app._workplace().database.read() as session:
    found["workers"] = [one.model_dump(mode="json") for one in workers(session)]
print(json.dumps(found))
"""


def test_a_drained_slot_takes_nothing_while_the_other_works_on_what_fits_it(home: Path) -> None:
    url = databases.sqlite_copy(home)
    database = Database(url)
    nowhere = {"path": "/nowhere/at/all"}
    run_ids = queue_runs(database, short_spec(student=nowhere, device="cuda"), short_spec(student=nowhere))
    environment = {
        **os.environ, "INCIPIT_HOME": str(home), "INCIPIT_DATABASE_URL": url, "INCIPIT_SLOTS": "2", "CUDA_VISIBLE_DEVICES": "",
        "INCIPIT_ENGINE_SERVER": "false", "INCIPIT_BROKER_URL": "redis://127.0.0.1:1/0", "INCIPIT_WORKER_LABELS": "lab, a100",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", _CODE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["both"] == ["queued"] * 2
    assert found["first"] == ["queued", "failed"], "nobody has the GPU of the first"
    assert run_row(database, run_ids[1]).failure_kind == "bad_model"
    assert sorted(one["drain"] for one in found["workers"]) == ["drained", "no"]
    told = found["workers"][0]["capabilities"]
    assert (told["device"], told["num_gpus"], told["labels"]) == ("cpu", 0, ["a100", "lab"])
    assert (told["spec_version"], told["event_version"], sorted(told["versions"])) == (1, 1, ["incipit", "torch"])
    database.close()


# The first slot's child was killed by the kernel, the second's is at work.
_LEFT_BEHIND = """
import json
from sqlalchemy import select
from backend.queries.drains import drain
from backend.queries.leases import set_worker_run
from backend.queries.workers import workers
from worker import app
from worker.slots import free_slot

app._heartbeat()
with app._workplace().database.write() as session:
    for slot in app.slots:
        set_worker_run(session, app._worker_id(slot), "a run")
        drain(session, app._worker_id(slot), requeue=False)
with free_slot([app.slots[1]], app.settings.home / "slots") as held:
    assert held is app.slots[1]
    app._heartbeat()
    with free_slot([app.slots[0]], app.settings.home / "slots") as let_go:
        assert let_go is app.slots[0]
with app._workplace().database.read() as session:
    print(json.dumps({one.slot: one.drain for one in workers(session)}))
"""


def test_a_slot_whose_child_was_killed_is_free_at_the_next_heartbeat(home: Path) -> None:
    url = databases.sqlite_copy(home)
    environment = {
        **os.environ, "INCIPIT_HOME": str(home), "INCIPIT_DATABASE_URL": url, "INCIPIT_SLOTS": "2", "CUDA_VISIBLE_DEVICES": "",
        "INCIPIT_ENGINE_SERVER": "false", "INCIPIT_BROKER_URL": "redis://127.0.0.1:1/0",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", _LEFT_BEHIND], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"cpu0": "drained", "cpu1": "draining"}
