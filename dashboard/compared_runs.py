"""Which runs Compare begins with, where an experiment has more than can be shown at once."""

from collections.abc import Sequence

from backend.schemas import RunSummary

_FULL = "full"  # a prefix schedule that trains to the full length, in the words of backend/words.py


def first_compared(runs: Sequence[RunSummary], most: int) -> list[str]:
    """Ids of at most so many runs, in their order: whole variants, that at full length before all others.

    A variant with some of its seeds missing has another mean, and without the full length no saving can be stated.
    """
    variants: dict[str, list[str]] = {}
    for run in sorted(runs, key=lambda run: run.prefix != _FULL):
        variants.setdefault(run.variant or run.name, []).append(run.id)
    chosen: set[str] = set()
    for ids in variants.values():
        if len(chosen) + len(ids) <= most:
            chosen.update(ids)
    if not chosen and runs:  # each variant alone is too much
        chosen.update(next(iter(variants.values()))[:most])
    return [run.id for run in runs if run.id in chosen]
