"""What the traced rollouts of a run say together, as the API tells of it."""

from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Frozen
from engine.trace_profile import TraceMetric

MAX_POSITION_BINS = 64
MAX_STEP_BINS = 60
"""Of a map that a browser draws at once: 64 x 60 cells."""


class GridRow(Frozen):
    """The cells of one or more traced steps that follow each other."""

    first_step: int
    last_step: int
    horizon: int
    """Of the last step: what was trained of a rollout ends there."""
    mean: list[float | None]
    """By position bin, over all tokens in it; None where no rollout reaches it."""
    n: list[int]
    """Rollouts that reach the bin, summed over the steps."""


class DivergenceGrid(Frozen):
    """A quantity by completion position and step."""

    metric: TraceMetric
    bin_tokens: int
    """Positions in a bin; 0 when nothing is traced."""
    starts: list[int]
    """First position of each bin, counted from 0."""
    rows: list[GridRow]
    num_steps: int
    """Traced steps of the run."""
    num_steps_read: int
    """How many of them are in the rows: all up to 240, else every second, third, … of them."""


class PositionQuantiles(Frozen):
    """A quantity by completion position at one step, over its traced rollouts."""

    metric: TraceMetric
    step: int | None
    """None when the run has no traces."""
    steps: list[int]
    """Steps that can be asked for."""
    subject: Literal["student", "base", "teacher"] | None
    horizon: int
    bin_tokens: int
    starts: list[int]
    mean: list[float]
    p10: list[float]
    p50: list[float]
    p90: list[float]
    n: list[int]
    """Rollouts that reach the bin."""


class DivergentToken(Frozen):
    """A token type: an entry of the vocabulary as the student sampled it."""

    token_id: int
    text: str
    count: int
    mean: float
    """Mean reverse KL where it was sampled, in nats."""
    share: float
    """Its share of the reverse KL of all tokens."""


class DivergentTokens(Frozen):
    """The token types that hold most of the reverse KL, over all traced steps or at one."""

    items: list[DivergentToken]
    num_tokens: int
    """Tokens behind the shares."""
    num_steps: int
    num_steps_read: int
    """As in DivergenceGrid. Of each step the 100 strongest types are kept: rarer ones may be counted at some steps only."""


class AidCurve(Frozen):
    """One step by completion position, in bins of PrefixAid.bin_tokens."""

    step: int
    subject: Literal["student", "base", "teacher"]
    horizon: int
    num_rollouts: int
    nats_per_rollout: float
    """Reverse KL, summed over a rollout, on average."""
    n: list[int]
    """Rollouts that reach the bin."""
    reverse_kl: list[float]
    """Mean, in nats."""
    teacher_entropy: list[float]
    """Mean, in nats."""
    overlap_mass: list[float]
    """Mean probability that both models share among the stored candidates: a lower bound of the whole overlap."""
    cumulative_share: list[float]
    """Share of the reverse KL of all tokens that lies up to the end of the bin."""


class PrefixAid(Frozen):
    """How long should the prefix be? Figures for a person who decides, from the run's traced rollouts."""

    bin_tokens: int
    starts: list[int]
    curves: list[AidCurve]
    """The first traced step and the one asked for; one when they are the same, none without traces."""
    weak_from: int | None
    """First position from which the first step's mean reverse KL, smoothed, stays below half of its start value."""
    sentences: list[str]
    """What the figures say, computed from them."""


PositionBins = Annotated[int, Field(ge=1, le=MAX_POSITION_BINS)]
StepBins = Annotated[int, Field(ge=1, le=MAX_STEP_BINS)]
