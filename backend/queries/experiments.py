"""Experiments: created whole, with all their runs, or not at all."""

from sqlalchemy import Integer, case, func, insert, select
from sqlalchemy.orm import Session

from backend.access import LOCAL, Principal
from backend.database import now_of
from backend.expansion import PlannedRun
from backend.ids import new_id
from backend.needs import RunNeeds
from backend.queries.prompt_files import note_uses
from backend.records import Event
from backend.run_states import ACTIVE_STATES
from backend.schemas import Experiment
from backend.tables import Experiment as ExperimentRow
from backend.tables import Run as RunRow
from backend.tables import RunLabel
from backend.words import objective_in_words, prefix_in_words

_ACTIVE = func.coalesce(func.sum(case((RunRow.state.in_(ACTIVE_STATES), 1), else_=0)), 0).cast(Integer)
_EXPERIMENTS = (
    select(
        ExperimentRow.id,
        ExperimentRow.name,
        ExperimentRow.note,
        ExperimentRow.created_at,
        func.count(RunRow.id).label("num_runs"),
        _ACTIVE.label("num_active"),
    )
    .join(RunRow, RunRow.experiment_id == ExperimentRow.id, isouter=True)
    .group_by(ExperimentRow.id)
    .order_by(ExperimentRow.id.desc())
)


def create_experiment(
    session: Session, name: str, note: str, planned: list[PlannedRun], *, owner: Principal = LOCAL
) -> tuple[str, list[str]]:
    """Store an experiment with its runs, all queued; returns its id and theirs."""
    experiment = ExperimentRow(
        id=new_id(),
        name=name,
        note=note,
        project_id=owner.home_project,
        created_by=owner.id,
        created_at=now_of(session),
    )
    session.add(experiment)
    session.flush()
    return experiment.id, add_runs(session, experiment.id, planned, owner=owner)


def add_runs(session: Session, experiment_id: str, planned: list[PlannedRun], *, owner: Principal = LOCAL) -> list[str]:
    """Queue runs of an experiment, in its project; their ids. Refusal (422) when a spec names an upload that is not there."""
    now = now_of(session)
    project = session.execute(select(ExperimentRow.project_id).where(ExperimentRow.id == experiment_id)).scalar_one()
    origin = {"project_id": project, "created_by": owner.id, "created_at": now}
    rows = [_row(run, experiment_id) | origin for run in planned]
    session.execute(insert(RunRow), rows)
    labels = [
        {"run_id": row["id"], "label": label}
        for row, run in zip(rows, planned, strict=True)
        for label in (run.needs.labels if run.needs else ())
    ]
    if labels:
        session.execute(insert(RunLabel), labels)
    payload = {"state": "queued", "reason": "Submitted.", "actor": "person"}
    first = {"seq": 1, "time": now, "kind": "state", "fence": 0, "payload": payload}
    session.execute(insert(Event), [first | {"run_id": row["id"]} for row in rows])
    note_uses(session, project, [(str(row["id"]), run.spec) for row, run in zip(rows, planned, strict=True)])
    return [str(row["id"]) for row in rows]


def experiments(session: Session, *, before: str | None, limit: int) -> list[Experiment]:
    """Experiments, newest first, those behind id `before`."""
    query = _EXPERIMENTS.limit(limit)
    if before is not None:
        query = query.where(ExperimentRow.id < before)
    return [Experiment.model_validate(dict(row)) for row in session.execute(query).mappings()]


def experiment(session: Session, id: str) -> Experiment | None:
    """One experiment."""
    row = session.execute(_EXPERIMENTS.where(ExperimentRow.id == id)).mappings().one_or_none()
    return None if row is None else Experiment.model_validate(dict(row))


def _row(run: PlannedRun, experiment_id: str) -> dict[str, object]:
    needs = run.needs or RunNeeds.stated(run.spec)
    return {
        **needs.model_dump(exclude={"labels"}),
        "id": new_id(),
        "experiment_id": experiment_id,
        "spec": run.spec,
        "name": run.spec.name,
        "variant": run.variant,
        "note": run.note,
        "seed": run.spec.seed,
        "num_steps": run.spec.num_steps,
        "student": run.spec.student.path,
        "teacher": run.spec.teacher.path,
        "prefix": prefix_in_words(run.spec),
        "divergence": objective_in_words(run.spec),
    }
