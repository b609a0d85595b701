"""The states of a run; backend/queries/transitions.py says who may move it."""

from typing import Literal

RunState = Literal[
    "queued", "starting", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"
]
ACTIVE_STATES: frozenset[RunState] = frozenset({"queued", "starting", "running", "pausing", "cancelling"})
"""Waiting for a worker, or at work."""
HELD_STATES: frozenset[RunState] = ACTIVE_STATES - {"queued"}
"""A worker holds the run's lease."""
ENDED_STATES: frozenset[RunState] = frozenset({"succeeded", "failed", "cancelled"})
"""Nothing happens any more, unless a person retries a failed or cancelled run."""
