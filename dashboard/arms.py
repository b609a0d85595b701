"""The arms of an experiment as the form takes them: seeds and prefix lengths as short lists of text."""

from collections.abc import Sequence
from typing import Any

from backend.schemas import Variant

FULL = "full"


def seeds_of(text: str) -> list[int]:
    """Seeds from text such as `0, 1, 2` or `0-4`; raises ValueError with a sentence for people."""
    seeds: list[int] = []
    for part in text.replace(",", " ").split():
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"Seeds has {part!r}; write whole numbers such as 0, 1, 2 or a range such as 0-4.")
        seeds += range(int(first), int(last) + 1) if dash else [int(first)]
        if len(seeds) > 50:
            raise ValueError(f"Seeds names {len(seeds)} seeds but at most 50 are allowed; use fewer.")
    if not seeds:
        raise ValueError("Seeds is empty; give at least one, such as 0.")
    return seeds


def prefix_arms(text: str) -> list[Variant]:
    """One arm per prefix length from text such as `8, 16, full`; raises ValueError with a sentence for people."""
    arms: list[Variant] = []
    for part in text.replace(",", " ").split():
        if part == FULL:
            changes: dict[str, object] = {"prefix": {"kind": "full"}, "anchoring": {"kind": "none"}}
            arms.append(Variant(name=FULL, changes=changes))
        elif part.isdecimal() and int(part) > 0:
            arms.append(
                Variant(name=f"prefix {int(part)}", changes={"prefix": {"kind": "constant", "tokens": int(part)}})
            )
        else:
            raise ValueError(
                f"Prefix lengths has {part!r}; write lengths in tokens such as 8, 16, 32, or the word full."
            )
    if len(arms) < 2:
        raise ValueError("Prefix lengths needs at least two to compare, such as 8, 16, full.")
    return arms


def experiment_document(
    *, name: str, note: str, base: dict[str, Any], arms: Sequence[Variant], seeds: Sequence[int]
) -> dict[str, Any]:
    """The body that creates an experiment."""
    variants = [arm.model_dump(mode="json") for arm in arms]
    return {"name": name, "note": note, "base": {**base, "seed": seeds[0]}, "variants": variants, "seeds": list(seeds)}
