"""The arms of an experiment as the form takes them: seeds and prefix lengths as short lists of text."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from backend.schemas import Variant

FULL = "full"
_MAX_ARMS = 200  # of one experiment, as the API has it
_MAX_SEEDS = 50  # as the API has it
_MAX_NAME = 128


def seeds_of(text: str) -> list[int]:
    """Seeds from text such as `0, 1, 2` or `0-4`; raises ValueError with a sentence for people."""
    ranges: list[range] = []
    for part in text.replace(",", " ").split():
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"Seeds has {part!r}; write whole numbers such as 0, 1, 2 or a range such as 0-4.")
        low, high = int(first), int(last or first)
        if high < low:
            raise ValueError(f"Seeds has {part!r}, whose last seed is below its first; write {high}-{low}.")
        ranges.append(range(low, high + 1))
    # Counted without making the seeds: a range of some letters may name more of them than the memory holds.
    num_seeds = sum(one.stop - one.start for one in ranges)
    if num_seeds > _MAX_SEEDS:
        raise ValueError(f"Seeds names {num_seeds} seeds but at most {_MAX_SEEDS} are allowed; use fewer.")
    if not ranges:
        raise ValueError("Seeds is empty; give at least one, such as 0.")
    return [seed for one in ranges for seed in one]


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


def grid_arms(values: Mapping[str, str]) -> list[Variant]:
    """One arm per combination of the fields' values, which are texts such as `1e-3, 3e-4`; raises ValueError with a sentence."""
    if not values:
        raise ValueError("No field to vary is chosen; choose one at least, such as prefix.tokens.")
    parsed = {path: _values(path, text) for path, text in values.items()}
    num_arms = math.prod(map(len, parsed.values()))
    if num_arms > _MAX_ARMS:
        raise ValueError(f"These values make {num_arms} arms but at most {_MAX_ARMS} are allowed; use fewer values.")
    arms = []
    for combination in itertools.product(*(one.items() for one in parsed.values())):
        chosen = dict(zip(parsed, combination, strict=True))
        name = ", ".join(f"{path.rpartition('.')[2].replace('_', ' ')} {text}" for path, (text, _) in chosen.items())
        arms.append(Variant(name=name[:_MAX_NAME], changes={path: value for path, (_, value) in chosen.items()}))
    return arms


def _values(path: str, text: str) -> dict[str, object]:
    """What was typed, with what it means: a number, true, false, null, or a word."""
    typed = [part.strip() for part in text.split(",") if part.strip()]
    if not typed:
        raise ValueError(f"{path} has no values; write some, separated by commas.")
    doubles = [part for part, count in Counter(typed).items() if count > 1]
    if doubles:
        raise ValueError(f"{path} has {doubles[0]!r} twice; write each value once.")
    meant = {part: _meaning(part) for part in typed}
    for part, value in meant.items():
        # Written as JSON it would be null, which some fields take for something else.
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(
                f"{path} has {part!r}, but a number must be finite and below 1.8e308 in size; write such a one."
            )
    return meant


def _meaning(typed: str) -> object:
    try:
        meant: object = json.loads(typed, parse_constant=str)
    except ValueError:
        return typed
    return typed if isinstance(meant, dict | list) else meant


def experiment_document(
    *, name: str, note: str, base: dict[str, Any], arms: Sequence[Variant], seeds: Sequence[int]
) -> dict[str, Any]:
    """The body that creates an experiment."""
    variants = [arm.model_dump(mode="json") for arm in arms]
    return {"name": name, "note": note, "base": {**base, "seed": seeds[0]}, "variants": variants, "seeds": list(seeds)}
