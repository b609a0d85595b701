"""Where a training step's time goes, and how near each phase comes to what this machine can do at all.

    incipit models fetch smollm2
    python -m benchmarks.step_profile [--pairs random smollm2] [--batches 4] [--tokens 32 128] [--dtypes float32 bfloat16]
                                      [--rounds 3] [--json]

The roofline of a phase is the time that its matrix products take at the measured matrix rate of its type, or the time that its
bytes take at the measured copy bandwidth, whichever is longer. One thread; CPU seconds, medians. Target: 60 % of it.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers.utils import logging

from benchmarks.pairs import PAIRS, Pair, case_parser, opened_pair
from benchmarks.peer_side import Case, incipit_spec
from engine import decode_rows
from engine import student as student_module
from engine.language_model import LanguageModel, load_language_model
from engine.rollout import RolloutRequest
from engine.sampler import Sampler
from engine.student import Student

TARGET = 0.6
WARM_UP = 1  # rounds that are not counted
PHASES = ("prefill", "decode", "teacher", "student forward", "head and divergence", "backward", "optimizer")
_CPU = torch.device("cpu")


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """The fewest CPU seconds of some tries."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOPs per second of a large product."""
    matrix = torch.randn(2048, 2048).to(dtype)
    return 2 * 2048**3 / seconds_of(lambda: matrix @ matrix, 5)


def copy_bandwidth() -> float:
    """Bytes per second, read and written ones together, of a copy that no cache holds."""
    source = torch.randn(64_000_000)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / seconds_of(lambda: target.copy_(source), 5)


class PhaseTimes:
    """CPU seconds by phase. While it is entered, the engine's own functions are timed."""

    def __init__(self, teacher: LanguageModel) -> None:
        self.teacher = teacher
        self.seconds: dict[str, float] = defaultdict(float)
        self._kept: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> PhaseTimes:
        self._time(decode_rows.DecodeRows, "__init__", lambda *_: "prefill")
        self._time(decode_rows.DecodeRows, "run", lambda *_: "decode")
        self._time(student_module, "fused_divergence", lambda *_: "head and divergence")
        self._time(Student, "apply", lambda *_: "optimizer")
        self._time(Student, "update", lambda *_: "update")
        self._time(Sampler, "sample", lambda *_: "sampling")
        self._time(LanguageModel, "hidden", lambda model, *_: "teacher" if model is self.teacher else "student hidden")
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, function in self._kept:
            setattr(owner, name, function)

    def by_phase(self) -> dict[str, float]:
        """Seconds of each of PHASES: what a phase holds of another is taken off it."""
        of = self.seconds
        # The prefill is a forward pass of the student, too; copies of weights for decoding belong to decoding.
        forward = of["student hidden"] - of["hidden in prefill"]
        decode = of["sampling"] - of["prefill"]
        known = of["teacher"] + forward + of["head and divergence"] + of["optimizer"]
        update = (of["teacher"], forward, of["head and divergence"], of["update"] - known, of["optimizer"])
        return dict(zip(PHASES, (of["prefill"], decode, *update), strict=True))

    def _time(self, owner: Any, name: str, phase_of: Callable[..., str]) -> None:
        function = getattr(owner, name)
        self._kept.append((owner, name, function))

        def timed(*args: Any, **kwargs: Any) -> Any:
            began, before = time.process_time(), self.seconds["student hidden"]
            result = function(*args, **kwargs)
            phase = phase_of(*args)
            self.seconds[phase] += time.process_time() - began
            if phase == "prefill":
                self.seconds["hidden in prefill"] += self.seconds["student hidden"] - before
            return result

        setattr(owner, name, timed)


def rooflines(
    student: Student,
    teacher: LanguageModel,
    prompts: list[list[int]],
    tokens: int,
    size: int,
    rate: float,
    bandwidth: float,
) -> dict[str, float]:
    """Seconds that each phase takes at least. Widths are padded ones, products of the head at completion tokens alone."""
    shape, rows = student.model.shape, len(prompts)
    prompt_width = max(map(len, prompts))
    width = prompt_width + tokens
    flops = {
        "prefill": shape.padded_forward(rows, prompt_width, rows),
        "teacher": teacher.shape.padded_forward(rows, width, 0),
        "student forward": shape.padded_forward(rows, width, 0),
        "head and divergence": 2.0 * rows * tokens * (3 * shape.head_parameters + teacher.shape.head_parameters),
        "backward": 2 * shape.padded_forward(rows, width, 0),
    }
    found = {phase: amount / rate for phase, amount in flops.items()}
    weights = (shape.run_parameters + shape.head_parameters) * size
    cached = 2 * rows * shape.kv_width * 4  # keys and values of a position, float32
    found["decode"] = sum(
        max(shape.decode_step(rows, context) / rate, (weights + cached * context) / bandwidth)
        for context in range(prompt_width + 1, width)
    )
    # Weights, gradients and both moments are read and three of them written; the norm reads the gradients once more.
    found["optimizer"] = 8 * 4 * student.num_trained_parameters / bandwidth
    return {phase: found[phase] for phase in PHASES}


def profiled(
    pair: Pair, dtype: Any, batch: int, tokens: int, rounds: int, rate: float, bandwidth: float
) -> dict[str, Any]:
    """Median seconds of each phase, and its roofline's share of them."""
    spec = incipit_spec(Case(pair, batch, tokens, dtype))
    teacher = load_language_model(spec.teacher, "teacher", _CPU, dtype)
    teacher.module.requires_grad_(False)
    model = replace(load_language_model(spec.student, "student", _CPU, dtype), eos_token_ids=frozenset())
    student = Student(model, spec)
    taken, least = [], []
    for step in range(WARM_UP + rounds):
        prompts = pair.prompts_of_step(step, batch)
        requests = [RolloutRequest(i, prompt, 1, step) for i, prompt in enumerate(prompts)]
        with PhaseTimes(teacher) as times:
            student.update(Sampler(model, 0, 1.0).sample(requests, tokens), teacher, step % spec.num_steps)
        taken.append(times.by_phase())
        least.append(rooflines(student, teacher, prompts, tokens, 2 if dtype == "bfloat16" else 4, rate, bandwidth))
    phases = {}
    total = 0.0
    for phase in PHASES:
        seconds = statistics.median(one[phase] for one in taken[WARM_UP:])
        roofline = statistics.median(one[phase] for one in least[WARM_UP:])
        phases[phase] = {"seconds": seconds, "roofline_seconds": roofline, "reached": roofline / seconds}
        total += seconds
    return {"dtype": dtype, "batch": batch, "tokens": tokens, "step_seconds": total, "phases": phases}


def main() -> int:
    parser = case_parser(__doc__, batches=[4], tokens=[32, 128])
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=["smollm2"])
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        cases = itertools.product(arguments.pairs, arguments.dtypes, arguments.batches, arguments.tokens)
        for name, dtype, batch, tokens in cases:
            try:
                pair = opened_pair(name, Path(folder))
            except FileNotFoundError as error:
                print(error, file=sys.stderr)
                return 1
            rate, bandwidth = matrix_rate(getattr(torch, dtype)), copy_bandwidth()
            machine = {"pair": name, "matrix_rate": rate, "copy_bandwidth": bandwidth}
            results.append(machine | profiled(pair, dtype, batch, tokens, arguments.rounds, rate, bandwidth))
            if not arguments.json:
                show(results[-1])
    if arguments.json:
        print(json.dumps({"rounds": arguments.rounds, "target": TARGET, "results": results}))
    return 0


def show(one: dict[str, Any]) -> None:
    print(
        f"{one['pair']}, {one['dtype']}, batch {one['batch']}, {one['tokens']} tokens: {one['step_seconds']:.2f} CPU s; "
        f"matrix rate {one['matrix_rate'] / 1e9:.0f} GFLOP/s, copy bandwidth {one['copy_bandwidth'] / 1e9:.1f} GB/s"
    )
    for phase, values in one["phases"].items():
        print(
            f"  {phase:20} {values['seconds']:7.2f} s  {values['seconds'] / one['step_seconds']:4.0%} of the step, "
            f"{values['reached']:4.0%} of its roofline",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
