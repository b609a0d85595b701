"""The database: sessions that read and sessions that write, on SQLite and PostgreSQL alike."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from backend.columns import storable

_BUSY_TIMEOUT_MS = 10_000
# A request that waits longer for a lock has met a fault, not a queue.
_LOCK_SECONDS = 5.0
_STATEMENT_SECONDS = 30.0
_NETWORK_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "fuse.sshfs", "9p"})


class Database:
    """Opens sessions. `url` is SQLAlchemy's; a missing SQLite file is made, its tables are not (see migrate)."""

    def __init__(
        self,
        url: str,
        *,
        checkpoints_wal: bool = False,
        statement_seconds: float = _STATEMENT_SECONDS,
        lock_seconds: float = _LOCK_SECONDS,
    ) -> None:
        """`statement_seconds` and `lock_seconds` are limits on PostgreSQL, which then cancels the statement."""
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        if self.is_sqlite:
            _refuse_network_filesystem(make_url(url).database)
        if self.is_sqlite:
            self.engine = _sqlite_engine(url, checkpoints_wal)
        else:
            self.engine = _postgres_engine(url, statement_seconds, lock_seconds)
        self._write_engine = self.engine.execution_options(begins_immediate=True)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads; what it sees does not change while it is open on SQLite."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that commits at the end of the block and rolls back on an exception.

        On SQLite the write lock is taken at the first statement: a read before a write cannot fail as busy.
        """
        with Session(self._write_engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def now_of(session: Session) -> datetime:
    """The database's clock, which leases are measured by: a worker's own clock may be wrong."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    moment: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return moment


def now_in_sql(session: Session) -> Any:
    """The same for a column of a statement, without asking first."""
    return datetime.now(UTC) if session.get_bind().dialect.name == "sqlite" else func.clock_timestamp()


def _sqlite_engine(url: str, checkpoints_wal: bool) -> Engine:
    engine = create_engine(
        url,
        json_serializer=_to_json,
        connect_args={"check_same_thread": False, "timeout": _BUSY_TIMEOUT_MS / 1000},
        pool_size=10,
        max_overflow=40,
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:  # of the driver, whose types are its own
        connection.isolation_level = None  # we say BEGIN ourselves, below
        for pragma in (
            f"busy_timeout={_BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "temp_store=MEMORY",
            # Old versions can corrupt the file when several processes checkpoint (sqlite.org/wal.html#walresetbug).
            f"wal_autocheckpoint={1000 if checkpoints_wal else 0}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("begins_immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _postgres_engine(url: str, statement_seconds: float, lock_seconds: float) -> Engine:
    limits = {"lock_timeout": lock_seconds, "statement_timeout": statement_seconds}
    options = " ".join(f"-c {name}={round(1000 * seconds)}" for name, seconds in limits.items())
    return create_engine(
        url,
        json_serializer=_to_json,
        # Statements take milliseconds: to compile one, which PostgreSQL does when it expects many rows, takes longer.
        connect_args={"options": f"{options} -c timezone=UTC -c jit=off", "connect_timeout": 5},
        pool_size=10,
        max_overflow=40,
        pool_pre_ping=True,
    )


def _to_json(value: object) -> str:
    # The text of a model may hold what cannot be stored, see storable(); json escapes NUL whatever ensure_ascii says.
    text = json.dumps(value, allow_nan=False, ensure_ascii=False).replace("\\u0000", "\\u2400")
    return storable(text)


def _refuse_network_filesystem(path: str | None) -> None:
    """A WAL needs memory that all its processes share, which a network filesystem does not give."""
    mounts = Path("/proc/mounts")
    if not path or not mounts.exists():
        return
    folder = Path(path).resolve().parent
    fields = [line.split() for line in mounts.read_text().splitlines()]
    holding = [(point, kind) for _, point, kind, *_ in fields if folder.is_relative_to(point)]
    point, kind = max(holding, key=lambda mount: len(mount[0]), default=("/", ""))
    if kind in _NETWORK_FILESYSTEMS:
        raise ValueError(
            f"The database {path} lies on {point}, a {kind} filesystem, where SQLite loses data; "
            "set INCIPIT_HOME to a local disk or INCIPIT_DATABASE_URL to a PostgreSQL server."
        )
