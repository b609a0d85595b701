"""What a run asks of a worker, from its spec: its device, and the memory that the estimate says at its submission."""

from collections.abc import Sequence

from backend.estimate import model_of, prompt_tokens_of
from backend.needs import Needs, RunNeeds
from backend.problems import Refusal
from engine.adapter_spec import NoAdapter
from engine.memory import MEMORY_ERROR, longest_horizon, memory
from engine.memory_choice import least
from engine.parallelism_spec import FullySharded
from engine.spec import RunSpec


def needs_of(specs: Sequence[RunSpec], wanted: Needs) -> list[RunNeeds]:
    """The needs of each run that is about to be queued; specs that differ by name and seed alone are looked at once."""
    known: dict[str, RunNeeds] = {}
    found = []
    for spec in specs:
        key = spec.model_dump_json(exclude={"name", "seed"})
        if key not in known:
            known[key] = _needs_of(spec, wanted)
        found.append(known[key])
    return found


def _needs_of(spec: RunSpec, wanted: Needs) -> RunNeeds:
    of_memory = {
        f"{place}_memory_bytes": _memory_bytes(spec, device) if wanted.memory_bytes is None else wanted.memory_bytes
        for place, device in (("cpu", "cpu"), ("gpu", "cuda"))
    }
    stated = RunNeeds.stated(spec)
    return stated.model_copy(update={**of_memory, "labels": sorted({*stated.labels, *wanted.labels})})


def _memory_bytes(spec: RunSpec, device: str) -> int | None:
    """What the run needs on a device at the very least: with all that is `auto` at its least, and the estimate's error taken off.

    None where it never runs there, where its models cannot be looked at on this machine, or where each of several processes has
    a part of them, which the estimate does not know.
    """
    if spec.device not in ("auto", device) or isinstance(spec.parallelism, FullySharded):
        return None
    try:
        student = model_of(spec.student, "student.path", spec.adapter)
        teacher = model_of(spec.teacher, "teacher.path", NoAdapter())
        prompt_tokens, _ = prompt_tokens_of(spec)
    except Refusal:
        return None
    precisions = ("bfloat16", "float32") if spec.precision == "auto" else (spec.precision,)
    horizon = longest_horizon(spec)
    there = [spec.model_copy(update={"device": device, "precision": precision}) for precision in precisions]
    totals = [memory(one, student, teacher, prompt_tokens, horizon, least(one)).total for one in there]
    return int(min(totals) / (1 + MEMORY_ERROR))
