"""What the API says of the cost of a run before it starts; backend/estimate.py computes it."""

from engine.flops import FlopLedger
from engine.frozen import Frozen


class PhaseSeconds(Frozen):
    low: float
    high: float


class Estimate(Frozen):
    """What a run will cost, computed before it starts."""

    flops: FlopLedger
    """By phase, if no rollout ends before its horizon."""
    is_most: bool = False
    """Whether the run may end sooner, by early stopping or its sentinel, so that FLOPs and time are the most that it takes."""
    flops_at_fastest_growth: FlopLedger | None = None
    """The same if an adaptive prefix grows as fast as it may; None for the schedules that are known beforehand."""
    full_length_flops: FlopLedger
    """The same run with every step at full length."""
    saving: float
    """full-length training FLOPs / this run's training FLOPs."""
    memory_bytes: dict[str, int]
    """By part, see engine/memory.py; on a CPU with the libraries (process) and what the C library keeps (allocator)."""
    memory_total_bytes: int
    """At the busiest moment: less than the sum of the parts, since cache and activations are not there at once."""
    memory_least_bytes: int | None = None
    """The same where the worker's memory is short and the `auto` of micro_batch_rollouts and gradient_checkpointing takes the
    least; None in records of earlier versions."""
    seconds: PhaseSeconds | None
    """Range from earlier runs on this installation; None when there is none to go by."""
    horizons: list[int]
    """Horizon at each of at most 200 evenly spaced steps; of an adaptive prefix the shortest, that it never grows."""
    longest_horizons: list[int] = []
    """Horizon of an adaptive prefix that grows as fast as it may, at the same steps; empty for the other schedules."""
    horizon_steps: list[int]
    assumptions: list[str]
    """In words, shown beside the figures."""
