"""Which teacher stands behind an address: what a server says of itself, and what it answers to a fixed text, seen again by later runs."""

from __future__ import annotations

import hashlib
import logging
import uuid

from engine.frozen import Frozen
from engine.locations import incipit_home

# Of the same weights in bfloat16 a value moves by up to 0.06 nats with what else a server computes, and few of them move.
_MOST_MEAN_GAP = 0.05
_log = logging.getLogger("engine")


class _Seen(Frozen):
    """What a teacher answered when it was seen first."""

    logprobs: list[float]


def teacher_identity(described: str, logprobs: list[float]) -> str:
    """A name for the weights that give these log-probabilities (nats, of a fixed text) under this description.

    It is the name of the first teacher seen here (INCIPIT_HOME/cache/teachers) with the same description whose log-probabilities
    differ by at most 0.05 nats on average, a new one when there is none. So a server that computes the same a bit differently each time
    keeps its name: a hash of rounded values would change wherever one lies at an edge. It tells apart all teachers that are
    served under another name or path, and those behind the same ones that differ by more; not two that are closer, as
    checkpoints of one training a few steps apart may be: serve each under a name of its own.
    """
    folder = incipit_home() / "cache" / "teachers" / hashlib.sha256(described.encode()).hexdigest()
    # Always the first in the same order, as two runs at the same time may have written two records of one teacher.
    for path in sorted(folder.glob("*.json")):
        try:
            seen = _Seen.model_validate_json(path.read_text())
        except (OSError, ValueError):  # half-written by a machine that lost power
            continue
        if _mean_gap(seen.logprobs, logprobs) <= _MOST_MEAN_GAP:
            return path.stem
    name = hashlib.sha256(f"{described} {logprobs}".encode()).hexdigest()
    staged = folder / f"{name}.{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staged.write_text(_Seen(logprobs=logprobs).model_dump_json())
        staged.replace(folder / f"{name}.json")
    except OSError as error:
        _log.warning("Nothing could be kept in %s: %s", folder, error)
    return name


def _mean_gap(seen: list[float], found: list[float]) -> float:
    """Mean absolute difference; infinite where they do not belong to the same positions."""
    if not found or len(seen) != len(found):
        return float("inf")
    return sum(abs(one - other) for one, other in zip(seen, found, strict=True)) / len(found)
