"""How much faster a training step is with Incipit's sampler than with `model.generate` doing the sampling.

    python -m benchmarks.step_rate [--horizons 8 32 224] [--rounds 12] [--json]

Both steps train the shipped student on the same prompts with the same update; only the sampling differs. They alternate
(A B A B …), so that a busy machine slows both; medians of CPU seconds are compared. Target: at least 2 times the rate.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from transformers.utils import logging

from engine.language_model import LanguageModel, load_language_model
from engine.model_spec import ModelSpec
from engine.prompts import prompts_of_step, read_prompts
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.spec import RunSpec
from engine.student import Student

TARGET = 2.0
WARM_UP = 2  # rounds that are not counted

SPEC = RunSpec.model_validate(
    {
        "name": "step rate",
        "student": {"path": "builtin:tiny/models/student-plan"},
        "teacher": {"path": "builtin:tiny/models/teacher"},
        "prompts": {"path": "builtin:tiny/data/train.jsonl"},
        "max_completion_tokens": 224,
        # So low that the student stays what it is: all steps have completions of the same length.
        "optimizer": {"learning_rate": 1e-9, "warmup_steps": 0},
        "evaluation": {"path": "builtin:tiny/data/dev.jsonl"},
    }
)


def sampled(model: LanguageModel, requests: list[RolloutRequest], horizon: int) -> list[Rollout]:
    """Rollouts by Incipit's sampler."""
    return Sampler(model, SPEC.seed, SPEC.sampling.temperature).sample(requests, horizon)


def generated(model: LanguageModel, requests: list[RolloutRequest], horizon: int) -> list[Rollout]:
    """The same by transformers' `generate`: tokens and their log-probabilities. No prompt of the tiny pair is padded."""
    prompts = torch.tensor([request.prompt_token_ids for request in requests])
    module: Any = model.module
    output = module.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=SPEC.sampling.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=horizon,
        return_dict_in_generate=True,
        output_scores=True,
    )
    logprobs = module.compute_transition_scores(output.sequences, output.scores, normalize_logits=True).tolist()
    rollouts = []
    for i, row in enumerate(output.sequences[:, prompts.shape[1] :].tolist()):
        end = next((at + 1 for at, token in enumerate(row) if token in model.eos_token_ids), None)
        reason: Literal["eos", "length"] = "length" if end is None else "eos"
        rollouts.append(
            Rollout(requests[i].prompt_index, requests[i].prompt_token_ids, row[:end], logprobs[i][:end], reason)
        )
    return rollouts


def measure(horizon: int, rounds: int) -> dict[str, float]:
    """Median seconds of a step either way, of its sampling alone, and the ratios."""
    cpu = torch.device("cpu")
    student = Student(load_language_model(SPEC.student, "student", cpu, "float32"), SPEC)
    teacher = load_language_model(ModelSpec(path=SPEC.teacher.path), "teacher", cpu, "float32")
    prompts = [student.model.tokenizer(row.prompt)["input_ids"] for row in read_prompts(SPEC.prompts.path, "path")]
    ways: dict[str, Callable[[LanguageModel, list[RolloutRequest], int], list[Rollout]]] = {
        "ours": sampled,
        "generate": generated,
    }
    seconds: dict[str, list[float]] = {f"{way}_{part}": [] for way in ways for part in ("step", "sampling")}
    for round_ in range(-WARM_UP, rounds):
        step = round_ + WARM_UP
        indices = prompts_of_step(len(prompts), SPEC.seed, step, SPEC.prompts_per_step)
        requests = [RolloutRequest(i, prompts[i], 1, 1) for i in indices]
        for way, rollouts_of in ways.items():
            began = time.process_time()
            rollouts = rollouts_of(student.model, requests, horizon)
            between = time.process_time()
            student.update(rollouts, teacher, 0)
            if round_ >= 0:
                seconds[f"{way}_step"].append(time.process_time() - began)
                seconds[f"{way}_sampling"].append(between - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "horizon": horizon,
        **{f"{name}_seconds": value for name, value in medians.items()},
        "step_ratio": medians["generate_step"] / medians["ours_step"],
        "sampling_ratio": medians["generate_sampling"] / medians["ours_sampling"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--horizons", type=int, nargs="+", default=[8, 32, 224])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    results = [measure(horizon, arguments.rounds) for horizon in arguments.horizons]
    if arguments.json:
        print(json.dumps({"rounds": arguments.rounds, "target": TARGET, "results": results}))
        return
    for result in results:
        print(
            f"horizon {result['horizon']:3}: step {result['ours_step_seconds'] * 1e3:7.1f} ms, with generate "
            f"{result['generate_step_seconds'] * 1e3:7.1f} ms: {result['step_ratio']:.2f} times the rate "
            f"(sampling alone {result['sampling_ratio']:.2f}; target {TARGET})"
        )


if __name__ == "__main__":
    main()
