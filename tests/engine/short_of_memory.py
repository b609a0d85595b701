"""A process of its own that trains with little memory left: `python -m tests.engine.short_of_memory KIND FOLDER [MEBIBYTES]`.

The limit on its address space (RLIMIT_AS) is the kernel's own: what it refuses, torch's allocator reports as it would on a
machine without memory. Prints one JSON object.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.control import Control
from engine.errors import RunError
from engine.events import RunEvent, StepDone
from engine.journal import Journal
from engine.language_model import LanguageModel, load_language_model
from engine.model_spec import ModelSpec
from engine.rollout import Rollout
from engine.spec import RunSpec
from engine.student import Student
from engine.train import failure_of, train
from tests.engine.models import CPU, WORDS, tiny_spec, write_random_model

NUM_ROLLOUTS, NUM_TOKENS = 16, 120
# At this temperature the loss is near 1, where 1e-6 is more than the rounding of a float32.
SPEC = tiny_spec(optimizer={"learning_rate": 1e-3, "warmup_steps": 0, "eps": 1e-4}, sampling={"temperature": 10})


def leave(mebibytes: int) -> None:
    """Allow this process so much address space beyond what it has."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmSize:"):
            limit = int(line.split()[1]) * 1024 + mebibytes * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def leave_all() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def a_model(folder: Path, seed: int) -> LanguageModel:
    """Whose activations, some 330 kB a token, are what takes the memory."""
    write_random_model(folder, seed, hidden=256, layers=12)
    return load_language_model(ModelSpec(path=str(folder)), "student", CPU, "float32")


def long_rollouts() -> list[Rollout]:
    numbers = random.Random(0)
    return [
        Rollout(
            prompt_index=index,
            prompt_token_ids=[1, 5, 6, 7],
            completion_token_ids=[numbers.randrange(3, WORDS) for _ in range(NUM_TOKENS - index // 4)],
            completion_logprobs=[-1.0] * (NUM_TOKENS - index // 4),
            finish_reason="length",
        )
        for index in range(NUM_ROLLOUTS)
    ]


def one_update(folder: Path, mebibytes: int | None) -> dict[str, Any]:
    """An update of 16 rollouts, `mebibytes` left for it or all."""
    student = Student(a_model(folder / "student", 0), SPEC)
    teacher = a_model(folder / "teacher", 1)
    rollouts = long_rollouts()
    # What torch loads and allots once is there before the limit: one small update, at a rate of nothing.
    student.accumulate([replace(rollouts[0], completion_token_ids=[5], completion_logprobs=[-1.0])], teacher)
    student.apply(0.0, 0.0, 0)
    told = []
    student.on_shortage = lambda shortage: told.append(shortage)
    random_state = torch.get_rng_state()
    if mebibytes is not None:
        leave(mebibytes)
    try:
        done = student.update(rollouts, teacher, 1)
    except Exception as error:
        leave_all()
        failure = failure_of(error)
        return {"failure": failure.failure, "message": failure.message, "told": [one.in_words for one in told]}
    leave_all()
    return {
        "loss": done.loss,
        "grad_norm": done.grad_norm,
        "position_loss": done.position_loss,
        "position_count": done.position_count,
        "num_own_tokens": done.num_own_tokens,
        "flops": done.flops.training,
        "weights": digest(list(student.parameter_names)),
        "is_random_state_kept": torch.equal(random_state, torch.get_rng_state()),
        "micro_batch": student.plan.micro_batch_rollouts,
        "together": [one.num_together for one in told],
        "told": [one.in_words for one in told],
    }


def digest(weights: list[Tensor]) -> list[float]:
    """Some of all weights, enough to tell two students apart."""
    return [value for weight in weights for value in weight.detach().flatten()[:: max(1, weight.numel() // 7)].tolist()]


def a_run(folder: Path, document: str, mebibytes: int | None) -> dict[str, Any]:
    """A whole run, in which memory is short in the second step alone."""
    spec = RunSpec.model_validate_json(document)

    def listen(event: RunEvent) -> None:
        if mebibytes is not None and isinstance(event, StepDone):
            leave(mebibytes) if event.step == 1 else leave_all()

    with Journal(folder / "attempts" / "1" / "events.jsonl", listen) as journal:
        try:
            train(spec, folder, attempt=1, journal=journal, control=Control())
        except RunError as error:
            leave_all()
            return {"failure": error.failure, "message": error.message}
    return {"failure": None}


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, place, *rest = sys.argv[1:]
    if kind == "update":
        print(json.dumps(one_update(Path(place), int(rest[0]) if rest else None)))
    else:
        print(json.dumps(a_run(Path(place), rest[0], int(rest[1]) if rest[1:] else None)))
