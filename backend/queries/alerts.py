"""Alerts and rules as people see and change them. The caller commits."""

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from backend.alert_records import Alert as Row
from backend.alert_records import AlertRuleSet
from backend.alerts import SEVERITY, Alert, AlertRules
from backend.database import now_of
from backend.tables import Run

# A test alert is of no run, and so not among them.
_ALERTS = select(Row, Run.name).join(Run, Run.id == Row.run_id)


def alerts(session: Session, *, is_open: bool, before: str | None, limit: int) -> list[Alert]:
    """Alerts, newest first, those behind id `before`; only those that nobody has dismissed if `is_open`."""
    query = _ALERTS.order_by(Row.id.desc()).limit(limit)
    if is_open:
        query = query.where(Row.dismissed_at.is_(None))
    if before is not None:
        query = query.where(Row.id < before)
    return [_told(row, name) for row, name in session.execute(query).all()]


def num_open(session: Session) -> int:
    """Alerts that nobody has dismissed."""
    return session.scalar(select(func.count(Row.id)).where(Row.dismissed_at.is_(None))) or 0


def dismiss(session: Session, id: str, by: str) -> Alert | None:
    """Take an alert out of the open ones, for everybody; whoever did so first is named."""
    session.execute(
        update(Row)
        .where(Row.id == id, Row.dismissed_at.is_(None))
        .values(dismissed_at=now_of(session), dismissed_by=by)
    )
    found = session.execute(_ALERTS.where(Row.id == id)).one_or_none()
    return None if found is None else _told(*found)


def set_rules(session: Session, project_id: str, rules: AlertRules) -> None:
    """Replace the rules of a project."""
    session.merge(AlertRuleSet(project_id=project_id, rules=rules))


def _told(row: Row, run_name: str) -> Alert:
    return Alert.model_validate(
        {
            "id": row.id, "run_id": row.run_id, "run_name": run_name, "rule": row.rule, "severity": SEVERITY[row.rule],  # type: ignore[index]
            "message": row.message, "step": row.step, "time": row.time, "dismissed_at": row.dismissed_at,
            "dismissed_by": row.dismissed_by,
        }
    )  # fmt: skip
