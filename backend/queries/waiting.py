"""What queued runs need of a worker, and why those wait that no connected worker can take."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.needs import RunNeeds, why_it_waits
from backend.queries.workers import candidates
from backend.tables import Run, RunLabel

_COLUMNS = tuple(name for name in RunNeeds.model_fields if name != "labels")


def needs_of_runs(session: Session, run_ids: Sequence[str]) -> dict[str, RunNeeds]:
    """The needs of runs by id."""
    labels: dict[str, list[str]] = {}
    named = select(RunLabel.run_id, RunLabel.label).where(RunLabel.run_id.in_(run_ids)).order_by(RunLabel.label)
    for run_id, label in session.execute(named):
        labels.setdefault(run_id, []).append(label)
    query = select(Run.id, *(getattr(Run, name) for name in _COLUMNS)).where(Run.id.in_(run_ids))
    return {
        row.id: RunNeeds(labels=labels.get(row.id, []), **{name: getattr(row, name) for name in _COLUMNS})
        for row in session.execute(query)
    }


def reasons(session: Session, run_ids: Sequence[str]) -> dict[str, str]:
    """Why queued runs wait, for those of them that no connected worker can take."""
    if not run_ids:
        return {}
    workers = candidates(session)
    known: dict[str, str | None] = {}  # thousands of runs have the same few needs
    found = {}
    for run_id, needs in needs_of_runs(session, run_ids).items():
        key = needs.model_dump_json()
        if key not in known:
            known[key] = why_it_waits(needs, workers)
        if (reason := known[key]) is not None:
            found[run_id] = reason
    refused = select(Run.id, Run.refusal).where(Run.id.in_(run_ids), Run.refusal.is_not(None))
    return {**{row.id: row.refusal for row in session.execute(refused)}, **found}
