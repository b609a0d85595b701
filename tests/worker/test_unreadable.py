"""A spec of a later version that waits in the queue does not stop an earlier worker, on both databases."""

from sqlalchemy import JSON, type_coerce, update
from sqlalchemy.dialects.postgresql import JSONB

from backend.access import LOCAL
from backend.database import Database
from backend.queries.analyses import claim_analysis, has_claimable_analysis, queued
from backend.queries.leases import claim_preflight
from backend.queries.preflights import create_preflight
from backend.tables import Analysis, Preflight
from engine.analysis_spec import AnalysisSpec
from tests.worker.runs import OWNER, short_spec


def make_unreadable(database: Database, table: type[Analysis] | type[Preflight], id: str, document: object) -> None:
    """Put a spec of a later version into a row."""
    core = table.__table__
    later = type_coerce({"invented_later": 1, "document": document}, JSON().with_variant(JSONB(), "postgresql"))
    with database.write() as session:
        session.execute(update(core).where(core.c.id == id).values(spec=later))  # type: ignore[arg-type]  # a Table


def test_an_analysis_of_a_later_version_is_left_to_a_worker_that_can_read_it(database: Database) -> None:
    spec = AnalysisSpec(run=short_spec())
    with database.write() as session:
        later, known = (queued(session, spec, "a kind", LOCAL).id for _ in range(2))
    make_unreadable(database, Analysis, later, spec.model_dump(mode="json"))
    unreadable: set[str] = set()
    with database.write() as session:
        claimed = claim_analysis(session, OWNER, unreadable=unreadable)
    assert claimed is not None
    assert (claimed.analysis_id, claimed.spec, unreadable) == (known, spec, {later})
    with database.write() as session:
        assert claim_analysis(session, OWNER, unreadable=unreadable) is None
        assert has_claimable_analysis(session), "for a worker of its version"
        assert not has_claimable_analysis(session, beside=unreadable)


def test_a_preflight_of_a_later_version_is_left_to_a_worker_that_can_read_it(database: Database) -> None:
    with database.write() as session:
        later, known = (create_preflight(session, short_spec()).id for _ in range(2))
    make_unreadable(database, Preflight, later, short_spec().model_dump(mode="json"))
    unreadable: set[str] = set()
    with database.write() as session:
        claimed = claim_preflight(session, OWNER, unreadable=unreadable)
    assert claimed is not None
    assert (claimed.preflight_id, unreadable) == (known, {later})
    with database.write() as session:
        assert claim_preflight(session, OWNER, unreadable=unreadable) is None
