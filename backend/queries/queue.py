"""Which queued run comes next for a worker: what it can take, the most urgent first, and among equals whose turn it is.

The rule of turns: of equally urgent runs those of the project come first that has the fewest at work; when several have as few,
the one that a worker served longest ago. Inside the project the same holds for the people in it, and of one person's runs the
oldest comes first. So nobody waits behind another's thousand runs, and everybody who waits is served in turn.
"""

from collections.abc import Collection
from functools import lru_cache
from importlib.metadata import version
from typing import Any, NamedTuple

from pydantic import ValidationError
from sqlalchemy import (
    CTE,
    BindParameter,
    ColumnElement,
    Integer,
    Select,
    and_,
    bindparam,
    func,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.orm import Session, aliased

from backend.columns import UtcDateTime
from backend.database import now_of
from backend.resources import WorkerCapabilities
from backend.run_states import HELD_STATES
from backend.tables import Run, RunLabel
from engine.spec import RunSpec

# Those who claim on PostgreSQL stand in line: what one takes changes whose turn is next. SQLite has one writer anyway.
_CLAIM_LOCK = 0x1C2
_LINE_SECONDS = 25  # below the limit of a statement; a claim takes some 10 ms


class QueuedRun(NamedTuple):
    """A run that is about to be claimed."""

    id: str
    spec: RunSpec
    attempt: int
    """Attempts without progress before this one."""
    max_attempts: int
    first_fence: int


def next_run(session: Session, worker: WorkerCapabilities, *, host: str, unreadable: set[str]) -> QueuedRun | None:
    """The run that the worker on `host` is to take, its row locked; None when there is none.

    Runs whose spec this version cannot read stay in the queue with the reason, are added to `unreadable` and not looked at
    again. The caller claims the run in the same transaction and commits: others wait for that.
    """
    if not has_claimable_run(session, worker, beside=unreadable):
        return None  # asked first, so that idle workers do not stand in line
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text(f"SET LOCAL lock_timeout = '{_LINE_SECONDS}s'"))
        session.execute(select(func.pg_advisory_xact_lock(_CLAIM_LOCK)))
    passed = set(unreadable)
    columns = (Run.id, Run.spec, Run.attempt, Run.max_attempts, Run.first_fence)
    while (run_id := _whose_turn(session, worker, passed)) is not None:
        passed.add(run_id)
        is_queued = and_(Run.id == run_id, Run.state == "queued", Run.desired_state == "run")
        try:
            row = session.execute(select(*columns).where(is_queued).with_for_update(skip_locked=True)).one_or_none()
            if row is not None:  # else somebody is about to change it
                return QueuedRun(*row)
        except ValidationError as error:
            unreadable.add(run_id)
            session.execute(update(Run).where(Run.id == run_id).values(refusal=_refusal(host, error)))
    return None


def _refusal(host: str, error: ValidationError) -> str:
    place = ".".join(str(part) for part in error.errors()[0]["loc"])[:100]
    return (
        f"The worker on {host} (Incipit {version('incipit')}) cannot read the run's spec at {place!r}, so it is older than the API; "
        "install the API's version of Incipit on the workers."
    )


def has_claimable_run(session: Session, worker: WorkerCapabilities, *, beside: Collection[str] = ()) -> bool:
    """Whether a claim by this worker would find a run now."""
    return session.scalar(_statements(*_key(session, worker)).most_urgent, _values(session, beside)) is not None


def _whose_turn(session: Session, worker: WorkerCapabilities, beside: Collection[str]) -> str | None:
    """The id of the run that comes next."""
    statements, values = _statements(*_key(session, worker)), _values(session, beside)
    priority = session.scalar(statements.most_urgent, values)
    return None if priority is None else session.scalar(statements.turn, {**values, "priority": priority})


class _Statements(NamedTuple):
    """With `beside`, on SQLite `now`, and for the second one `priority` to be given."""

    most_urgent: Select[int]
    """The highest priority of what can be claimed."""
    turn: Select[str]
    """Whose turn it is at that priority."""


@lru_cache(maxsize=64)
def _statements(dialect: str, key: str) -> _Statements:
    """Built once for each kind of worker: that takes longer than to execute them."""
    now = bindparam("now", type_=UtcDateTime()) if dialect == "sqlite" else func.statement_timestamp()
    is_due = or_(Run.not_before.is_(None), Run.not_before <= now)
    is_other = Run.id.not_in(bindparam("beside", expanding=True))
    is_wanted = and_(Run.state == "queued", Run.desired_state == "run", is_due, is_other)
    claimable = and_(is_wanted, fits(WorkerCapabilities.model_validate_json(key)))
    return _Statements(
        most_urgent=select(Run.priority).where(claimable).order_by(Run.priority.desc()).limit(1),
        turn=_turn(claimable, bindparam("priority", type_=Integer())),
    )


def _key(session: Session, worker: WorkerCapabilities) -> tuple[str, str]:
    """The kind of database, and what of a worker matters here and does not change from minute to minute."""
    told = worker.model_dump_json(exclude={"memory_available_bytes", "versions"})
    return session.get_bind().dialect.name, told


def _values(session: Session, beside: Collection[str]) -> dict[str, Any]:
    values: dict[str, Any] = {"beside": list(beside)}
    return values | ({"now": now_of(session)} if session.get_bind().dialect.name == "sqlite" else {})


def fits(worker: WorkerCapabilities) -> ColumnElement[bool]:
    """`can_take` of backend/needs.py as a condition of a statement."""
    on_cpu = _at_most(Run.cpu_memory_bytes, worker.memory_total_bytes)
    if worker.cores is not None:
        on_cpu = and_(on_cpu, Run.num_processes <= worker.cores)
    if worker.device == "cuda":
        on_gpu = and_(Run.num_gpus <= worker.num_gpus, _at_most(Run.gpu_memory_bytes, worker.gpu_memory_total_bytes))
        has_room = or_(and_(Run.device == "cpu", on_cpu), and_(Run.device != "cpu", on_gpu))
    else:
        has_room = and_(Run.device != "cuda", on_cpu)
    is_known = [
        column <= version
        for column, version in ((Run.spec_version, worker.spec_version), (Run.event_version, worker.event_version))
        if version is not None
    ]
    other_label = RunLabel.label.not_in(worker.labels) if worker.labels else true()
    lacks_label = select(RunLabel.run_id).where(RunLabel.run_id == Run.id, other_label).exists()
    return and_(has_room, *is_known, ~lacks_label)


def _at_most(needed: Any, room: int | None) -> ColumnElement[bool]:
    return true() if room is None else or_(needed.is_(None), needed <= room)


def _turn(claimable: ColumnElement[bool], priority: BindParameter[int]) -> Select[str]:
    """The statement that gives the id of the run that comes next."""
    waiting = _oldest_of_each(claimable, priority)
    owner = (Run.project_id, Run.created_by)
    is_held = Run.state.in_(HELD_STATES)
    of_users = select(*owner, func.count().label("number")).where(is_held).group_by(*owner).cte("of_users")
    of_projects = (
        select(of_users.c.project_id, func.sum(of_users.c.number).label("number"))
        .group_by(of_users.c.project_id)
        .cte("of_projects")
    )
    served = aliased(Run)
    is_project, is_user = served.project_id == waiting.c.project_id, served.created_by == waiting.c.created_by
    project_served = select(func.max(served.claimed_at)).where(is_project).scalar_subquery()
    user_served = select(func.max(served.claimed_at)).where(is_project, is_user).scalar_subquery()
    same_project = of_projects.c.project_id == waiting.c.project_id
    same_user = and_(of_users.c.project_id == waiting.c.project_id, of_users.c.created_by == waiting.c.created_by)
    return (
        select(waiting.c.run_id)
        .where(waiting.c.run_id.is_not(None))
        .outerjoin(of_projects, same_project)
        .outerjoin(of_users, same_user)
        .order_by(
            func.coalesce(of_projects.c.number, 0),
            project_served.asc().nulls_first(),
            func.coalesce(of_users.c.number, 0),
            user_served.asc().nulls_first(),
            waiting.c.run_id,
        )
        .limit(1)
    )


def _oldest_of_each(claimable: ColumnElement[bool], priority: BindParameter[int]) -> CTE:
    """project_id, created_by, run_id: each owner's first run of that priority, None where the worker can take none of them.

    The owners are stepped through in the queue's index, from one to the next: ten thousand runs of forty people are forty looks.
    """
    is_waiting = and_(Run.state == "queued", Run.priority == priority)
    projects = select(func.min(Run.project_id).label("project_id")).where(is_waiting).cte("projects", recursive=True)
    next_project = select(func.min(Run.project_id)).where(is_waiting, Run.project_id > projects.c.project_id)
    projects = projects.union_all(select(next_project.scalar_subquery()).where(projects.c.project_id.is_not(None)))
    first_user = select(func.min(Run.created_by)).where(is_waiting, Run.project_id == projects.c.project_id)
    people = (
        select(projects.c.project_id, first_user.scalar_subquery().label("created_by"))
        .where(projects.c.project_id.is_not(None))
        .cte("people", recursive=True)
    )
    next_user = select(func.min(Run.created_by)).where(
        is_waiting, Run.project_id == people.c.project_id, Run.created_by > people.c.created_by
    )
    people = people.union_all(
        select(people.c.project_id, next_user.scalar_subquery()).where(people.c.created_by.is_not(None))
    )
    is_own = and_(Run.project_id == people.c.project_id, Run.created_by == people.c.created_by)
    oldest = select(Run.id).where(claimable, Run.priority == priority, is_own).order_by(Run.id).limit(1)
    return (
        select(people.c.project_id, people.c.created_by, oldest.scalar_subquery().label("run_id"))
        .where(people.c.created_by.is_not(None))
        .cte("waiting")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
