"""Settings that contradict each other, and a database of another version, are refused at the start in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import text

from backend import migrate
from backend.database import Database
from incipit.stack import LocalStack, StackError
from tests import databases
from worker.schema import NEWEST_REVISION, OtherSchema, refuse_other_schema
from worker.settings import WorkerSettings

_ROOT = Path(__file__).parents[2]


def _started(module: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module], env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("module", ["worker", "worker.control"])
def test_whoever_ends_a_worker_must_wait_longer_than_the_worker_for_its_engine(home: Path, module: str) -> None:
    databases.sqlite_copy(home)
    told = _started(module, INCIPIT_STOP_SECONDS="170", INCIPIT_TERMINATE_SECONDS="15")
    assert told.returncode == 78
    assert told.stderr.count("\n") == 1
    for words in ("STOP_SECONDS (170)", "TERMINATE_SECONDS (15)", "are 195 s", "INCIPIT_GRACE_SECONDS (180)", "raise"):
        assert words in told.stderr


@pytest.mark.parametrize("module", ["worker", "worker.control"])
def test_a_list_that_is_none_is_one_sentence(home: Path, module: str) -> None:
    databases.sqlite_copy(home)
    told = _started(module, INCIPIT_WEBHOOK_NETWORKS="10.1.0.0/16")
    assert (told.returncode, told.stderr.count("\n")) == (78, 1)
    assert told.stderr.startswith("incipit: INCIPIT_WEBHOOK_NETWORKS is '10.1.0.0/16', which is no JSON list of texts;")


def test_a_stack_is_refused_before_anything_starts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_STOP_SECONDS", "170")
    with pytest.raises(StackError, match="INCIPIT_GRACE_SECONDS"), LocalStack(home, with_dashboard=False):
        pass
    assert list(home.iterdir()) == []


def test_the_default_grace_is_that_of_the_compose_file_and_a_bit_less_is_too_little() -> None:
    settings = WorkerSettings()
    assert f"stop_grace_period: {settings.grace_seconds:.0f}s" in (_ROOT / "docker-compose.yml").read_text()
    longest = settings.longest_stop_seconds
    assert longest == settings.stop_seconds + settings.terminate_seconds + 10
    assert WorkerSettings(grace_seconds=longest + 0.1).longest_stop_seconds == longest
    with pytest.raises(ValueError, match="raise the third"):
        WorkerSettings(grace_seconds=longest)


def test_a_worker_knows_the_newest_schema_and_refuses_every_other(database: Database) -> None:
    assert migrate.head() == NEWEST_REVISION
    with database.write() as session:
        refuse_other_schema(session)
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
        with pytest.raises(OtherSchema, match="has schema 0001 but this worker needs"):
            refuse_other_schema(session)


def test_a_database_without_tables_is_of_another_version_too(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'empty.sqlite3'}")
    with pytest.raises(OtherSchema, match="has schema none"), database.read() as session:
        refuse_other_schema(session)
    database.close()


def test_a_worker_with_a_python_for_vllm_is_labelled_so(tmp_path: Path) -> None:
    assert WorkerSettings(worker_labels="lab", vllm_python=Path(sys.executable)).labels == ["lab", "vllm"]
    assert WorkerSettings(worker_labels="lab").labels == ["lab"]
    with pytest.raises(
        ValidationError, match=r"INCIPIT_VLLM_PYTHON is .*nothing, which is no program that this user may run"
    ):
        WorkerSettings(vllm_python=tmp_path / "nothing")
