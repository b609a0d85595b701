"""The database as the people of one project see it: rows of other projects do not exist there.

The limit is added to every statement of the session, so a query that forgets it shows nothing more; a statement to which
it cannot be added is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from sqlalchemy import Executable, Select, event, select
from sqlalchemy.orm import ORMExecuteState, Session, with_loader_criteria
from sqlalchemy.orm.util import LoaderCriteriaOption

import backend.access_records
import backend.alert_records
import backend.prompt_file_records
import backend.records  # noqa: F401  # their tables belong to the mapping that is searched
from backend.access import ALL_PROJECTS
from backend.database import Database
from backend.tables import Run, Table

EVERY_PROJECT = {"every_project": True}
"""Execution options of a statement that counts across projects and shows nothing of them."""


class ProjectDatabase:
    """Opens sessions that see, change and remove only what belongs to a project, or everything for `*`."""

    def __init__(self, database: Database, project_id: str) -> None:
        self._database = database
        self._project_id = project_id

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that only reads, see Database.read."""
        with self._database.read() as session:
            _limit(session, self._project_id)
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that commits at the end of the block, see Database.write."""
        with self._database.write() as session:
            _limit(session, self._project_id)
            yield session


def _limit(session: Session, project_id: str) -> None:
    if project_id == ALL_PROJECTS:
        return

    @event.listens_for(session, "do_orm_execute")
    def _add_limits(state: ORMExecuteState) -> None:
        assert state.is_orm_statement or _names_no_table(state.statement), "without mapped classes it has no limit"
        if not state.is_insert and not state.execution_options.get("every_project", False):
            state.statement = state.statement.options(*_limits(project_id))


def _names_no_table(statement: Executable) -> bool:
    """Whether it asks only for what is nobody's, such as the time."""
    return isinstance(statement, Select) and not statement.get_final_froms()


@lru_cache(maxsize=256)
def _limits(project_id: str) -> tuple[LoaderCriteriaOption, ...]:
    """A condition for every table with a project, and for every table of what runs have recorded.

    As functions, which SQLAlchemy also calls with aliases: a plain condition would name the table beside its alias.
    """
    runs = select(Run.id).where(Run.project_id == project_id)
    limits = []
    for mapper in Table.registry.mappers:
        table = mapper.class_
        if "project_id" in mapper.columns:
            limits.append(with_loader_criteria(table, lambda one: one.project_id == project_id, include_aliases=True))
        elif "run_id" in mapper.columns and mapper.columns["run_id"].foreign_keys:
            limits.append(with_loader_criteria(table, lambda one: one.run_id.in_(runs), include_aliases=True))
    return tuple(limits)
