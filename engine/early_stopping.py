"""When a run ends before its last step because its full-length evaluation says so. It imports without torch.

Horizon, learning rate and anchoring are those of the whole run, as if nothing ended early: a rule that looks at measurements must
not change what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from engine.evaluation_spec import FALLING, PrimaryMetric
from engine.frozen import Frozen


class NoEarlyStopping(Frozen):
    """All steps are done."""

    kind: Literal["none"] = "none"


class StopByEvaluation(Frozen):
    """Training ends when the full-length evaluation on dev prompts no longer improves, or is good enough; the run succeeds all the same."""

    kind: Literal["evaluation"] = "evaluation"
    metric: PrimaryMetric = "accuracy"
    """What is watched; of the divergences smaller is better."""
    patience: Annotated[int, Field(ge=1, le=10_000)] | None = 5
    """Evaluations in a row without an improvement after which training ends; empty waits for the target alone."""
    min_delta: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """By how much the metric must be better than its best so far to count as improved, in its own unit (a share, or nats)."""
    target: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Training ends as soon as the metric reaches this, a share of at most 1 or nats; empty for no target."""

    @model_validator(mode="after")
    def _something_ends_it(self) -> Self:
        if self.patience is None and self.target is None:
            problem = "patience and target are both empty, so that nothing would end training; set one of them, or kind to none."
            raise PydanticCustomError("contradiction", "{problem}", {"problem": problem})
        return self


EarlyStopping = Annotated[NoEarlyStopping | StopByEvaluation, Field(discriminator="kind")]


class EarlyStoppingState(Frozen):
    """What the rule remembers. It is part of every checkpoint, so that a resumed run ends at the same step."""

    best: float | None = None
    best_step: int | None = None
    num_without: int = 0
    """Evaluations since the best one."""
    reason: str = ""
    """Why training has to end, in a sentence; empty while it goes on."""


def after_evaluation(
    rule: StopByEvaluation, state: EarlyStoppingState, step: int, metrics: Mapping[str, float | None]
) -> EarlyStoppingState:
    """The state after a full-length evaluation of the student of `step` updates on the dev prompts."""
    value, name = metrics.get(rule.metric), rule.metric.replace("_", " ")
    sign = -1.0 if rule.metric in FALLING else 1.0
    if value is not None:
        gain = None if state.best is None else sign * (value - state.best)
        if gain is None or (gain > 0 and gain >= rule.min_delta):
            state = EarlyStoppingState(best=value, best_step=step)
        else:
            state = state.model_copy(update={"num_without": state.num_without + 1})
        if rule.target is not None and sign * (value - rule.target) >= 0:
            told = f"Stopped early at step {step}: {name} reached {value:.4g}, the target is {rule.target:.4g}."
            return state.model_copy(update={"reason": told})
    else:
        state = state.model_copy(update={"num_without": state.num_without + 1})
    if rule.patience is None or state.num_without < rule.patience:
        return state
    better = f"improved by {rule.min_delta:g}" if rule.min_delta else "improved"
    best = "never measured" if state.best is None else f"best {state.best:.4g} at step {state.best_step}"
    count = f"{rule.patience} evaluation{'' if rule.patience == 1 else 's in a row'}"
    return state.model_copy(
        update={"reason": f"Stopped early at step {step}: {name} has not {better} in {count} ({best})."}
    )
