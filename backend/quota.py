"""How many runs one person may have in the queue."""

from sqlalchemy.orm import Session

from backend.access import Principal
from backend.limits import Limits
from backend.problems import Refusal
from backend.queries.runs import num_queued_by


def require_room(session: Session, owner: Principal, adding: int, limits: Limits) -> None:
    """Refusal (409) when runs that are about to be queued are more than their owner may have there."""
    waiting = num_queued_by(session, owner.id)
    if waiting + adding > limits.queued_runs:
        raise Refusal(
            409,
            f"You have {waiting} runs in the queue and this adds {adding}, but at most {limits.queued_runs} may wait; "
            "wait until some have started, or cancel some.",
        )
