"""Traced rollouts."""

from typing import Literal, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.records import Rollout as RolloutRow
from backend.schemas import Rollout, RolloutPage
from backend.tables import Run

Order = Literal["most_divergent", "least_divergent", "prompt"]

_ORDERS = {
    "most_divergent": (RolloutRow.mean_reverse_kl.desc(), RolloutRow.id),
    "least_divergent": (RolloutRow.mean_reverse_kl, RolloutRow.id),
    "prompt": (RolloutRow.prompt_index, RolloutRow.id),
}


class TraceLocation(NamedTuple):
    """Where the tokens of a rollout are: a row of a file in the attempt's folder."""

    fence: int
    path: str
    row: int


def rollouts(session: Session, run_id: str, *, step: int | None, order: Order) -> RolloutPage:
    """The traced rollouts of a step, of the newest traced one if none is named."""
    of_run = select(RolloutRow.step).where(RolloutRow.run_id == run_id).distinct().order_by(RolloutRow.step)
    steps = list(session.scalars(of_run))
    shown = step if step is not None else (steps[-1] if steps else None)
    query = select(RolloutRow).where(RolloutRow.run_id == run_id, RolloutRow.step == shown).order_by(*_ORDERS[order])
    return RolloutPage(items=[_record(row) for row in session.scalars(query)], steps=steps)


def rollout(session: Session, id: str) -> tuple[Rollout, TraceLocation] | None:
    """One rollout, and where its tokens are."""
    row = session.get(RolloutRow, id)
    return None if row is None else (_record(row), TraceLocation(row.fence, row.path, row.row))


def p99_reverse_kl(session: Session, run_id: str) -> float:
    """99th percentile, over the rollouts of a run, of each one's largest reverse KL, in nats (nearest rank)."""
    of_run = RolloutRow.run_id == run_id
    # Of n values the nearest rank is the one with n // 100 larger ones; the database sorts, for a long run has 10,000s.
    num_larger = (session.scalar(select(func.count()).select_from(RolloutRow).where(of_run)) or 0) // 100
    descending = select(RolloutRow.max_reverse_kl).where(of_run).order_by(RolloutRow.max_reverse_kl.desc())
    return session.scalars(descending.offset(num_larger).limit(1)).one()


def trained_start(session: Session, rollout: Rollout) -> int:
    """The first position of a full-length rollout at which its run applies the loss; its length when there is none."""
    spec = session.scalars(select(Run.spec).where(Run.id == rollout.run_id)).one()
    return spec.loss_region.span(min(rollout.num_tokens, rollout.horizon)).start


def _record(row: RolloutRow) -> Rollout:
    return Rollout.model_validate({name: getattr(row, name) for name in Rollout.model_fields})
