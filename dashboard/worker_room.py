"""Whether a run fits the memory of the connected workers, and how long they take for many: pure functions, in words."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from backend.estimates import Estimate
from backend.schemas import Worker
from dashboard import notices
from dashboard.quantities import bytes_text, range_text, share_text
from engine.memory import MEMORY_ERROR

_NUM_PARTS = 3
_ADVICE = {
    "student_weights": "train an adapter in place of all weights",
    "optimizer": "train an adapter in place of all weights",
    "gradients": "train an adapter in place of all weights",
    "low_precision_copy": "train an adapter in place of all weights",
    "student_copy": "set *overlap* to false",
    "vllm": "lower *rollouts cache gb* or let the engine sample",
    "teacher_weights": "set *precision* to bfloat16, on a GPU *teacher offload* to always, or take a smaller teacher",
    "teacher_pass": "halve *micro-batch rollouts* (the result stays the same)",
    "activations": "halve *micro-batch rollouts* or set *gradient checkpointing* to always (the result stays the same)",
    "divergence": "halve *micro-batch rollouts* (the result stays the same)",
    "cache": "halve *prompts per step* and the evaluation's *number of prompts*, or shorten *max completion tokens*",
    "sampling": "halve *prompts per step* and the evaluation's *number of prompts*",
}
_OTHER_ADVICE = "take smaller models"

Verdict = Literal["fits", "unknown", "doubtful", "too large"]
VERDICTS: tuple[Verdict, ...] = ("fits", "unknown", "doubtful", "too large")
"""From the best to the worst."""


@dataclass(frozen=True)
class Fit:
    verdict: Verdict
    sentence: str
    """In Markdown."""
    room_bytes: int | None = None
    """What the roomiest connected worker has; None where that is not known."""


@dataclass(frozen=True)
class Room:
    """The memory that a connected worker has for a run."""

    place: str
    num_bytes: int
    free_bytes: int | None
    """At its last heartbeat; None of a GPU, where workers do not tell."""
    num_sharing: int
    """Slots that take their runs' memory from it, this one included."""


def connected(workers: Sequence[Worker]) -> list[Worker]:
    """Those that take runs now, one at a time each."""
    return [one for one in workers if one.is_connected]


def on_their_device(document: Mapping[str, Any], workers: Sequence[Worker]) -> dict[str, Any]:
    """The spec with what `device: auto` will be: a GPU as soon as a connected worker has one."""
    has_gpu = any(one.capabilities.device == "cuda" for one in connected(workers))
    is_open = document.get("device", "auto") == "auto"
    return dict(document) | ({"device": "cuda"} if is_open and has_gpu else {})


def fit(estimate: Estimate, document: Mapping[str, Any], workers: Sequence[Worker], *, num_runs: int = 1) -> Fit:
    """The estimate of a spec from `on_their_device` against the roomiest connected worker, as one of `num_runs` in the queue."""
    if not connected(workers):
        return Fit(
            "unknown",
            "No worker is connected: runs wait until one starts (`incipit up` on this machine, `python -m worker` on others).",
        )
    needs_gpu = document.get("device") == "cuda"
    if needs_gpu and not any(one.capabilities.device == "cuda" for one in connected(workers)):
        return Fit(
            "too large", "The spec asks for the device cuda, but no connected worker has a GPU; set *device* to auto."
        )
    rooms = sorted(_rooms(workers, of_gpu=needs_gpu), key=lambda room: room.num_bytes)
    if not rooms:
        return Fit("unknown", "The connected workers have not said how much memory they have.")
    return _fit_of(estimate, rooms, num_runs)


def _rooms(workers: Sequence[Worker], *, of_gpu: bool) -> list[Room]:
    shares: dict[tuple[str, str], list[Worker]] = {}
    for one in connected(workers):
        if not of_gpu or one.capabilities.device == "cuda":
            shares.setdefault((one.host, one.slot if of_gpu else ""), []).append(one)
    rooms = []
    for (host, gpu), sharing in shares.items():
        told = sharing[0].capabilities
        size = told.gpu_memory_total_bytes if of_gpu else told.memory_total_bytes
        if size is not None:
            place = notices.plain(f"{host}, {gpu}" if gpu else host)
            rooms.append(Room(place, size, None if of_gpu else told.memory_available_bytes, len(sharing)))
    return rooms


def _fit_of(estimate: Estimate, rooms: Sequence[Room], num_runs: int) -> Fit:
    """`rooms` has the roomiest last."""
    need, best, least = estimate.memory_total_bytes, rooms[-1], rooms[0]
    needed, has = f"about **{bytes_text(need)}**", f"**{bytes_text(best.num_bytes)}**"
    at_once = min(num_runs, best.num_sharing)
    error = share_text(MEMORY_ERROR)
    fewest = need if estimate.memory_least_bytes is None else estimate.memory_least_bytes
    if fewest * (1 + MEMORY_ERROR) <= best.num_bytes < need * (1 + MEMORY_ERROR):
        verdict: Verdict = "fits"
        sentence = (
            f"Fits with less at once: the run would take {needed} of memory, but the roomiest connected worker ({best.place}) "
            f"has {has}, so what is *auto* comes down to **{bytes_text(fewest)}** at the least; the result is the same."
        )
    elif need > best.num_bytes:
        verdict = "too large"
        sentence = (
            f"Needs {needed} of memory, but the roomiest connected worker ({best.place}) has {has}. {_remedy(estimate)} "
            f"The estimate is right within about {error}: {_what_then(fewest, best)}"
        )
    elif need * (1 + MEMORY_ERROR) > best.num_bytes:
        verdict = "doubtful"
        sentence = (
            f"Needs {needed} of memory and the roomiest connected worker ({best.place}) has {has}: within the estimate's "
            f"{error}, so it may not fit. {_remedy(estimate)}"
        )
    elif at_once * need > best.num_bytes:
        verdict = "doubtful"
        sentence = (
            f"{best.place} takes {at_once} runs at the same time, which need about **{bytes_text(at_once * need)}** of its {has}; "
            "start its worker with fewer slots (INCIPIT_SLOTS). " + _remedy(estimate)
        )
    elif need > least.num_bytes and fewest <= least.num_bytes * (1 + MEMORY_ERROR):
        verdict = "doubtful"
        sentence = (
            f"Needs {needed} of memory: {best.place} has {has}, but {least.place} has {bytes_text(least.num_bytes)} and may take "
            "it, since the estimate is no exact figure. Ask for a worker by a label, or: " + _remedy(estimate)
        )
    elif best.free_bytes is not None and need > best.free_bytes:
        verdict = "doubtful"
        sentence = (
            f"Needs {needed} of the {has} that the roomiest connected worker ({best.place}) has, but other programs leave only "
            f"{bytes_text(best.free_bytes)} at the moment; end them, or start when the runs at work have ended."
        )
    else:
        verdict = "fits"
        sentence = f"Fits: {needed} of the {has} that the roomiest connected worker ({best.place}) has."
    return Fit(verdict, sentence, best.num_bytes)


def _what_then(fewest: int, best: Room) -> str:
    if fewest > best.num_bytes * (1 + MEMORY_ERROR):
        return "the run would wait until a worker with as much is connected, unless you say what memory it needs."
    return "you can start all the same."


def _remedy(estimate: Estimate) -> str:
    """The biggest parts, and what makes the biggest that a field changes smaller."""
    parts = sorted(estimate.memory_bytes.items(), key=lambda part: -part[1])
    named = ", ".join(f"{name.replace('_', ' ')} {bytes_text(size)}" for name, size in parts[:_NUM_PARTS])
    advice = next((_ADVICE[name] for name, _ in parts if name in _ADVICE), _OTHER_ADVICE)
    return f"Biggest parts: {named}. To need less, {advice}."


def queue_seconds(durations: Sequence[float], num_workers: int) -> float:
    """Seconds until the last of these runs has ended, if each worker takes the next one as soon as it is free."""
    free_at = [0.0] * num_workers
    for duration in durations:
        heapq.heapreplace(free_at, free_at[0] + duration)
    return max(free_at)


def time_sentence(durations: Sequence[tuple[float, float]], num_workers: int) -> str:
    """How long these runs take, from their lowest and highest seconds in the order of the queue; in Markdown."""
    lows, highs = [low for low, _ in durations], [high for _, high in durations]
    in_a_row = range_text((sum(lows), sum(highs)))
    if num_workers == 0:
        return f"Time **{in_a_row}** one after the other; no worker is connected."
    if num_workers == 1:
        return f"Time **{in_a_row}** on the 1 connected worker, which takes one run at a time."
    together = range_text((queue_seconds(lows, num_workers), queue_seconds(highs, num_workers)))
    return (
        f"Time **{together}** on the {num_workers} connected workers, each one run at a time, if nothing else waits; "
        f"{in_a_row} one after the other."
    )
