"""`incipit backup` while runs are at work, and `incipit restore`: the same runs, whole checkpoints, and training goes on."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from typer.testing import CliRunner

from backend import migrate
from backend.app import create_app
from backend.database import Database
from backend.queries.claims import reap
from backend.settings import Settings
from incipit.backup import database_copy
from incipit.backup.manifest import BackupFile, BackupManifest, sha256_of
from incipit.cli import app
from tests import databases
from tests.access import SIGNED_IN, TOKEN
from tests.worker.runs import claim, queue_runs, recorded_steps, run_row, set_columns, short_spec
from worker.settings import WorkerSettings
from worker.slots import Slot
from worker.supervisor import Supervisor
from worker.workplace import Workplace

_NUM_STEPS = 150


@pytest.fixture(autouse=True)
def installation(home: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands find the database, and PostgreSQL's programs."""
    assert home
    monkeypatch.setenv("INCIPIT_DATABASE_URL", database_url)
    monkeypatch.setenv("PATH", str(databases.postgres_programs()), prepend=":")


@pytest.fixture
def empty_url(database_url: str, tmp_path: Path) -> Iterator[str]:
    """Another database of the same kind, without tables."""
    with ExitStack() as opened:
        is_sqlite = database_url.startswith("sqlite")
        yield (
            f"sqlite:///{tmp_path / 'other.sqlite3'}" if is_sqlite else opened.enter_context(databases.empty_postgres())
        )


def _said(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == status, (done.output, done.exception)
    return done.output


def _place(database: Database, home: Path) -> Workplace:
    return Workplace(database, home, home / "runs", WorkerSettings(retry_seconds=0), lambda: False, engine_server=None)


def _work(place: Workplace) -> None:
    Supervisor(claim(place.database), Slot(0, None), place).work()


def _answers(url: str, home: Path, run_id: str) -> tuple[object, ...]:
    """What the API of an installation tells of a run, and its newest checkpoint as it is downloaded."""
    settings = Settings(home=home, database_url=url, broker_url="redis://127.0.0.1:1/0", local_token=SecretStr(TOKEN))
    with TestClient(create_app(settings), base_url="http://127.0.0.1", headers=SIGNED_IN) as client:
        run, metrics, events, checkpoints = (
            client.get(f"/api/v1/runs/{run_id}{part}").raise_for_status().json()
            for part in ("", "/metrics?key=loss", "/events", "/checkpoints")
        )
        archive = client.get(f"/api/v1/checkpoints/{checkpoints[0]['id']}/archive").raise_for_status().content
    return run, metrics, events, checkpoints, archive


@pytest.mark.timeout(200)
@pytest.mark.parametrize("database_url", [pytest.param("sqlite", marks=pytest.mark.full), "postgresql"], indirect=True)
def test_a_restored_installation_shows_the_same_runs_and_trains_on(
    home: Path, database_url: str, database: Database, empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (done,) = queue_runs(database, short_spec())
    _work(_place(database, home))
    (at_work,) = queue_runs(database, short_spec(num_steps=_NUM_STEPS, checkpoints={"every_steps": 3}))
    worker = threading.Thread(target=_work, args=[_place(database, home)])
    worker.start()
    while run_row(database, at_work).last_step < 6:
        assert worker.is_alive()
        time.sleep(0.02)
    Settings(home=home).signing_secret()
    backup = tmp_path / "backup"
    assert f"{backup}: 2 runs" in _said("backup", str(backup))
    was_at = run_row(database, at_work).last_step
    worker.join()
    assert was_at < _NUM_STEPS, "the run was at work all the time"
    told = _answers(database_url, home, done)
    secret = (home / "signing_secret").read_bytes()

    other = tmp_path / "other"
    monkeypatch.setenv("INCIPIT_DATABASE_URL", empty_url)
    monkeypatch.setenv("INCIPIT_HOME", str(other))
    assert "is restored and verified: 2 runs" in _said("restore", str(backup))
    assert _answers(empty_url, other, done) == told
    assert (other / "signing_secret").read_bytes() == secret, "links stay valid"
    restored = Database(empty_url)
    assert run_row(restored, at_work).last_step <= was_at
    set_columns(restored, at_work, lease_until=datetime.now(UTC) - timedelta(hours=1))
    with restored.write() as session:
        assert reap(session, lambda _: True, start_seconds=1800, retry_seconds=0) == [at_work]
    _work(_place(restored, other))
    assert run_row(restored, at_work).state == "succeeded"
    assert recorded_steps(restored, at_work) == list(range(1, _NUM_STEPS + 1)), "each step once"
    restored.close()


@pytest.fixture
def backup(home: Path, database: Database, tmp_path: Path) -> Path:
    """A backup of an installation with a queued run and a file."""
    queue_runs(database, short_spec())
    (home / "prompts").mkdir()
    (home / "prompts" / "x.jsonl").write_text('{"prompt": "1+1"}\n')
    (home / "logs").mkdir(exist_ok=True)
    (home / "logs" / "api.log").write_text("x")
    _said("backup", str(tmp_path / "backup"))
    return tmp_path / "backup"


def test_a_backup_is_private_has_what_is_kept_and_nothing_else(backup: Path) -> None:
    found = sorted(path.relative_to(backup).as_posix() for path in backup.rglob("*") if path.is_file())
    assert found == ["backup.json", "database", "files/prompts/x.jsonl"]
    assert {path.stat().st_mode & 0o077 for path in [backup, *backup.rglob("*")]} == {0}
    assert "is whole: 1 runs, 0 checkpoints" in _said("restore", "--check", str(backup))


def test_what_is_there_is_never_overwritten(backup: Path, empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "exists and is not overwritten" in _said("backup", str(backup), status=1)
    assert "prompts exists and is not overwritten" in _said("restore", str(backup), status=1)
    monkeypatch.setenv("INCIPIT_HOME", str(backup.parent / "other"))
    assert "not overwritten" in _said("restore", str(backup), status=1)
    monkeypatch.setenv("INCIPIT_DATABASE_URL", empty_url)
    _said("restore", str(backup))
    assert (backup.parent / "other" / "prompts" / "x.jsonl").read_text() == '{"prompt": "1+1"}\n'


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("database", "database is not what was backed up; use another backup"),
        ("files/prompts/x.jsonl", "x.jsonl is not what was backed up; use another backup"),
        ("backup.json", "is none that this version reads"),
    ],
)
def test_a_damaged_backup_is_refused_before_anything_is_changed(
    backup: Path, empty_url: str, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    content = bytearray((backup / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (backup / name).write_bytes(content)
    monkeypatch.setenv("INCIPIT_HOME", str(backup.parent / "other"))
    monkeypatch.setenv("INCIPIT_DATABASE_URL", empty_url)
    assert sentence in _said("restore", str(backup), status=1)
    assert not (backup.parent / "other").exists()
    assert sentence in _said("restore", "--check", str(backup), status=1)


def test_a_backup_of_another_version_or_kind_or_half_of_one_is_refused(
    backup: Path, empty_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(backup, half := backup.parent / "half", ignore=lambda *_: ["backup.json"])
    assert "has no backup.json and is no complete backup" in _said("restore", str(half), status=1)
    assert "lies in" in _said("backup", str(home / "here"), status=1)
    monkeypatch.setenv("INCIPIT_HOME", str(backup.parent / "other"))
    made = BackupManifest.model_validate_json((backup / "backup.json").read_bytes())
    newer = made.model_copy(update={"schema_revision": "9999", "version": "9.9"})
    (backup / "backup.json").write_text(newer.model_dump_json())
    monkeypatch.setenv("INCIPIT_DATABASE_URL", empty_url)
    assert "install Incipit 9.9" in _said("restore", str(backup), status=1)
    (backup / "backup.json").write_text(made.model_dump_json())
    other_kind = "sqlite:////tmp/none" if made.database == "postgresql" else "postgresql+psycopg://127.0.0.1:1/none"
    monkeypatch.setenv("INCIPIT_DATABASE_URL", other_kind)
    assert f"The backup is of {made.database}, but" in _said("restore", str(backup), status=1)


def test_an_older_schema_is_backed_up_by_its_own_version_and_migrated_when_it_is_restored(
    backup: Path, database_url: str, empty_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    migrate.downgrade(database_url, "0012")
    assert "has schema 0012 but this version needs" in _said("backup", str(tmp_path / "second"), status=1)
    made = BackupManifest.model_validate_json((backup / "backup.json").read_bytes())
    (backup / "database").unlink()
    # What that version counted are its own tables.
    monkeypatch.setattr(database_copy, "inventory", lambda session: session)
    revision, _ = database_copy.dumped(database_url, backup / "database")
    assert revision == "0012"
    path = backup / "database"
    file = BackupFile(name="database", num_bytes=path.stat().st_size, sha256=sha256_of(path))
    rows = {"runs": 1, "experiments": 1}
    older = made.model_copy(update={"schema_revision": revision, "num_rows": rows, "files": [file, *made.files[1:]]})
    (backup / "backup.json").write_text(older.model_dump_json())
    monkeypatch.setenv("INCIPIT_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("INCIPIT_DATABASE_URL", empty_url)
    assert "is restored and verified: 1 runs" in _said("restore", str(backup))
    restored = Database(empty_url)
    migrate.require_head(restored)
    restored.close()
