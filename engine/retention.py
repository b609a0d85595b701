"""Which checkpoints a run keeps, as a pure function. It imports without torch: engine and worker both ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from engine.frozen import Frozen
from engine.spec import CheckpointSpec


class Kept(Frozen):
    """A checkpoint that is on disk, as far as keeping it depends on it."""

    step: int
    attempt: int
    """Its fence. What a later attempt writes is newer, whatever its step: it began from what was whole."""
    score: tuple[float, float] | None = None
    """Its full-length evaluation, larger is better; None when there was none."""
    is_best: bool = False
    """Whether its student is the best of the run: the report opens it at the end."""
    is_pinned: bool = False


C = TypeVar("C", bound=Kept)


def dropped(checkpoints: Sequence[C], spec: CheckpointSpec) -> list[C]:
    """Those that no rule of the spec keeps, oldest first; a pinned one and the best one never are among them."""
    oldest_first = sorted(checkpoints, key=lambda one: (one.attempt, one.step))
    kept = oldest_first[-spec.keep_last :]
    scored = [one for one in oldest_first if one.is_best or one.score is not None]
    kept += sorted(scored, key=lambda one: (one.is_best, one.score or (), one.step), reverse=True)[: spec.keep_best]
    if spec.keep_every_steps is not None:
        kept += [one for one in oldest_first if one.step % spec.keep_every_steps == 0]
    return [one for one in oldest_first if not one.is_pinned and not one.is_best and one not in kept]
