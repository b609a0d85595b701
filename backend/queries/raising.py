"""Raises alerts: in the transaction that records what they are about, once each, with a delivery for every webhook.

The caller commits, and has written the run's row before.
"""

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from backend.alert_records import Alert, AlertRuleSet, Webhook, WebhookDelivery
from backend.alerts import AlertRules, Rule
from backend.database import now_of
from backend.ids import new_id
from backend.queries.runs import project_of
from backend.records import Evaluation
from backend.tables import Run
from engine.events import Evaluated, Warned

_OF_HEALTH = ("alarm_", "sentinel_")


def rules_of(session: Session, project_id: str) -> AlertRules:
    """The rules of a project, which are the usual ones until somebody changes them."""
    stored = session.scalar(select(AlertRuleSet.rules).where(AlertRuleSet.project_id == project_id))
    return stored or AlertRules()


def raise_ending(session: Session, run_id: str, rule: Rule, occurrence: str, message: str) -> None:
    """A run has finished or failed."""
    project_id, step = session.execute(select(Run.project_id, Run.last_step).where(Run.id == run_id)).one()
    if getattr(rules_of(session, project_id), rule):
        _raise(session, project_id, run_id, rule, occurrence, message, step=step)


def raise_warning(session: Session, run_id: str, event: Warned) -> None:
    """A run has warned of itself; an attempt that does the step again warns again, and is not heard."""
    if not event.code.startswith(_OF_HEALTH):
        return
    project_id = project_of(session, run_id)
    if rules_of(session, project_id).health:
        occurrence = f"{event.code[:64]}:{event.step}"
        _raise(session, project_id, run_id, "health", occurrence, event.message, step=event.step)


def raise_evaluation(session: Session, run_id: str, event: Evaluated) -> None:
    """A full-length evaluation of the student on the dev prompts is much worse than the best before it.

    Told when it becomes so, not at each evaluation at which it still is.
    """
    project_id = project_of(session, run_id)
    rules = rules_of(session, project_id)
    earlier = session.execute(
        select(Evaluation.metrics)
        .where(Evaluation.run_id == run_id, Evaluation.subject == "student", Evaluation.split == "dev", Evaluation.step < event.step)
        .order_by(Evaluation.step)
    ).scalars()  # fmt: skip
    series = [*earlier, event.metrics]
    divergence = [value for one in series if (value := one.get("reverse_kl")) is not None]
    accuracy = [value for one in series if (value := one.get("accuracy")) is not None]
    factor, drop = rules.divergence_factor, rules.accuracy_drop
    if factor is not None and _is_new(divergence, lambda value, best: value >= factor * best and value > 0, min):
        value, best = divergence[-1], min(divergence)
        times = (
            f"{value / best:.3g} times its best ({best:.3g}"
            if best
            else "its best was 0 (where student and teacher agree"
        )
        told = (
            f"Step {event.step}: the full-length reverse KL is {value:.3g} nats per token, {times}; limit {factor:g})."
        )
        _raise(session, project_id, run_id, "divergence", str(event.step), told, step=event.step)
    if drop is not None and _is_new(accuracy, lambda value, best: value <= best - drop, max):
        value, best = accuracy[-1], max(accuracy)
        told = f"Step {event.step}: the full-length accuracy is {value:.3f}, its best was {best:.3f} (limit {drop:g} below)."
        _raise(session, project_id, run_id, "accuracy", str(event.step), told, step=event.step)


def raise_standstills(session: Session) -> None:
    """Runs at work that have recorded nothing for too long."""
    now = now_of(session)
    since = func.coalesce(Run.progressed_at, Run.ready_at, Run.started_at)
    query = select(Run.id, Run.project_id, Run.fence, Run.last_step, since).where(Run.state == "running")
    for run_id, project_id, fence, step, moment in session.execute(query).all():
        minutes = rules_of(session, project_id).no_progress_minutes
        if minutes is None or moment is None or now - moment < timedelta(minutes=minutes):
            continue
        silent = (now - moment).total_seconds() / 60
        told = f"The run has recorded nothing for {silent:.0f} minutes (limit {minutes}); see its log and its worker."
        _raise(session, project_id, run_id, "no_progress", f"{fence}:{moment.timestamp():.0f}", told, step=step)


def _is_new(
    values: list[float], is_bad: Callable[[float, float], bool], best_of: Callable[[list[float]], float]
) -> bool:
    """Whether the last value is bad beside the best before it, and the one before was not."""

    def bad(end: int) -> bool:
        before = values[: end - 1]
        return bool(before) and is_bad(values[end - 1], best_of(before))

    return bad(len(values)) and not bad(len(values) - 1)


def _raise(
    session: Session, project_id: str, run_id: str, rule: Rule, occurrence: str, message: str, *, step: int | None
) -> None:
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    now = now_of(session)
    row = {
        "id": new_id(), "project_id": project_id, "run_id": run_id, "rule": rule, "occurrence": occurrence[:80], "time": now, "step": step,
        "message": message,
    }  # fmt: skip
    added = session.execute(
        dialect.insert(Alert).values(row).on_conflict_do_nothing().returning(Alert.id)
    ).scalar_one_or_none()
    if added is None:
        return
    for webhook_id in session.scalars(select(Webhook.id).where(Webhook.project_id == project_id)).all():
        session.add(WebhookDelivery(alert_id=added, webhook_id=webhook_id, project_id=project_id, next_at=now))
    session.flush()
