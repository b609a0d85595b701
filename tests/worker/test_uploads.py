"""Prompts from the upload to the trained run: the API stores them, a worker's engine finds and checks them."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from backend.database import Database
from backend.queries.claims import claim_run
from backend.queries.leases import claim_preflight
from backend.settings import Settings
from engine.locations import resolve
from engine.uploaded_prompts import upload_path
from tests import databases
from tests.access import SIGNED_IN
from tests.worker.runs import OWNER, run_row, short_spec
from worker.preflight import answer
from worker.settings import WorkerSettings
from worker.slots import Slot
from worker.supervisor import Supervisor
from worker.workplace import Workplace

TYPE = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: what is stored is tested on both in tests/backend/test_prompt_files.py."""
    return databases.sqlite_copy(home)


def test_a_run_trains_on_what_was_uploaded_and_on_nothing_else(
    settings: Settings, database: Database, home: Path
) -> None:
    place = Workplace(database, home, settings.run_dir, WorkerSettings(), lambda: False)
    csv = "question,result\n" + "".join(
        f'"{line.split(chr(34))[3]}",1\n'
        for line in Path(resolve("builtin:tiny/data/train.jsonl")).read_text().splitlines()[:8]
    )
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8000", headers=SIGNED_IN) as client:
        params = {"name": "mine.csv", "prompt": "question", "answer": "result"}
        stored = client.post("/api/v1/prompt-files", params=params, content=csv, headers=TYPE).json()
        spec = short_spec(prompts={"path": stored["reference"]}, num_steps=6).model_dump(mode="json")
        client.post("/api/v1/preflights", json=spec)
        with database.write() as session:
            asked = claim_preflight(session, OWNER)
        assert asked is not None
        answer(asked, [Slot(0, None)], place)
        preflight = client.get(f"/api/v1/preflights/{asked.preflight_id}").json()
        assert (preflight["findings"], preflight["facts"]["train_prompts"]) == ([], 8)
        first = preflight["facts"]["previews"][0]
        assert first["student"] == first["teacher"]
        assert first["place"].startswith("line 1 of 'upload:")
        made = client.post("/api/v1/experiments", json={"name": "q", "base": spec, "seeds": [0, 1]})
        assert made.status_code == 201
        finished, refused = (_worked(database, place) for _ in range(2))
        assert run_row(database, finished).state == "succeeded"
        assert run_row(database, refused).state == "failed"
        told = [(one["run_id"], one["rule"]) for one in client.get("/api/v1/alerts").json()["items"]]
        assert told == [(refused, "failed"), (finished, "finished")]
        assert "was changed on the disk since it was uploaded" in (run_row(database, refused).failure_message or "")


def _worked(database: Database, place: Workplace) -> str:
    """The next run, worked on to its end; behind it somebody changes the uploads on the disk."""
    with database.write() as session:
        claimed = claim_run(session, owner=OWNER, host="here", boot_id="0")
    assert claimed is not None
    Supervisor(claimed, Slot(0, None), place).work()
    with upload_path(place.home, claimed.spec.prompts.path.partition(":")[2]).open("a") as file:
        file.write("\n")
    return claimed.run_id
