"""What the comparisons of our decode loop share: two ways in alternation, and one result for each case."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any, NamedTuple

from benchmarks.pairs import Pair


class Way(NamedTuple):
    """One of the two sides."""

    decode: Callable[[list[list[int]], int], None]
    """Continue prompts by so many tokens each."""
    cpu_seconds: Callable[[], float] = time.process_time
    """Of all its processes so far."""


class Seconds(NamedTuple):
    cpu: float
    wall: float


class Decoding(NamedTuple):
    """Median seconds of a way."""

    whole: Seconds
    alone: Seconds
    """Without the first token of each row, behind its prompt, which either way has to produce as well."""


def alternated(
    ways: Mapping[str, Way], pair: Pair, batch: int, tokens: int, *, rounds: int, warm_up: int
) -> dict[str, Decoding]:
    """Each way's medians of `rounds` rounds behind `warm_up` ones that are not counted."""
    taken: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for round_ in range(warm_up + rounds):
        prompts = pair.prompts_of_step(round_, batch)
        for count, (name, way) in product((1, tokens), ways.items()):
            cpu_began, wall_began = way.cpu_seconds(), time.perf_counter()
            way.decode(prompts, count)
            taken[name, count].append((way.cpu_seconds() - cpu_began, time.perf_counter() - wall_began))
    medians = {
        key: Seconds(*(statistics.median(values) for values in zip(*times[warm_up:], strict=True)))
        for key, times in taken.items()
    }
    return {
        name: Decoding(
            medians[name, tokens],
            Seconds(*(many - one for many, one in zip(medians[name, tokens], medians[name, 1], strict=True))),
        )
        for name in ways
    }


def print_results(
    results: Iterable[dict[str, Any]],
    in_words: Callable[[dict[str, Any]], str],
    arguments: argparse.Namespace,
    target: float,
) -> None:
    """A sentence for each result as soon as it is there, or all of them as JSON."""
    found = []
    for one in results:
        found.append(one)
        if not arguments.json:
            print(in_words(one), flush=True)
    if arguments.json:
        print(json.dumps({"rounds": arguments.rounds, "target": target, "results": found}))
