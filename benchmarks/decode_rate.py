"""Our decode loop against transformers' `generate`: the same model, prompts, type and number of tokens, one thread.

    incipit models fetch smollm2
    python -m benchmarks.decode_rate [--batches 8 16] [--tokens 64] [--dtypes float32 bfloat16] [--rounds 3] [--json]

The student of the SmolLM2 pair continues chats at temperature 1, never ending before the last token; both ways in one process, in
alternation. In bfloat16, `generate` gets a model loaded in it, and ours casts float32 weights, as in a run. The rate of decoding
alone leaves out the first token of each row, behind its prompt, which either way has to produce as well. Target: 1.6 times.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.pairs import Pair, case_parser, smollm2_pair
from engine.language_model import LanguageModel, load_language_model
from engine.model_spec import ModelSpec
from engine.rollout import RolloutRequest
from engine.sampler import Sampler

TARGET = 1.6
WARM_UP = 1  # rounds that are not counted


def sampled(model: LanguageModel, prompts: list[list[int]], tokens: int) -> None:
    requests = [RolloutRequest(i, prompt, 1, 1) for i, prompt in enumerate(prompts)]
    rollouts = Sampler(model, 0, 1.0).sample(requests, tokens)
    assert all(len(rollout.completion_token_ids) == tokens for rollout in rollouts)


def generated(module: Any, prompts: list[list[int]], tokens: int) -> None:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    output = module.generate(ids, attention_mask=mask, min_new_tokens=tokens, max_new_tokens=tokens, **settings)
    assert output.shape[1] == width + tokens


def measured(pair: Pair, dtype: str, batch: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Median CPU and wall seconds of either way, and their ratios."""
    cpu = torch.device("cpu")
    ours = replace(
        load_language_model(
            ModelSpec(path=pair.student), "student", cpu, "bfloat16" if dtype == "bfloat16" else "float32"
        ),
        eos_token_ids=frozenset(),
    )
    theirs = AutoModelForCausalLM.from_pretrained(pair.student, dtype=getattr(torch, dtype)).eval()
    ways: dict[str, Callable[[list[list[int]], int], None]] = {
        "incipit": lambda prompts, count: sampled(ours, prompts, count),
        "generate": lambda prompts, count: generated(theirs, prompts, count),
    }
    taken: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for round_ in range(WARM_UP + rounds):
        prompts = pair.prompts_of_step(round_, batch)
        for count, (name, way) in itertools.product((1, tokens), ways.items()):
            cpu_began, wall_began = time.process_time(), time.perf_counter()
            way(prompts, count)
            taken[name, count].append((time.process_time() - cpu_began, time.perf_counter() - wall_began))
    medians = {
        key: [statistics.median(values) for values in zip(*times[WARM_UP:], strict=True)]
        for key, times in taken.items()
    }
    whole = {name: medians[name, tokens] for name in ways}
    alone = {name: medians[name, tokens][0] - medians[name, 1][0] for name in ways}
    return {
        "dtype": dtype,
        "batch": batch,
        "tokens": tokens,
        **{f"{name}_tokens_per_second": batch * (tokens - 1) / alone[name] for name in ways},
        "decode_ratio": alone["generate"] / alone["incipit"],
        "cpu_ratio": whole["generate"][0] / whole["incipit"][0],
        "wall_ratio": whole["generate"][1] / whole["incipit"][1],
    }


def main() -> int:
    arguments = case_parser(__doc__, batches=[8, 16], tokens=[64]).parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    results = []
    try:
        pair = smollm2_pair()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    for dtype, batch, tokens in itertools.product(arguments.dtypes, arguments.batches, arguments.tokens):
        one = measured(pair, dtype, batch, tokens, arguments.rounds)
        results.append(one)
        if not arguments.json:
            print(
                f"{dtype}, batch {batch}, {tokens} tokens: {one['incipit_tokens_per_second']:.0f} tokens per CPU second, "
                f"generate {one['generate_tokens_per_second']:.0f}: {one['decode_ratio']:.2f} times the rate; "
                f"with the prompts {one['cpu_ratio']:.2f}, by the wall {one['wall_ratio']:.2f} (target {TARGET})",
                flush=True,
            )
    if arguments.json:
        print(json.dumps({"rounds": arguments.rounds, "target": TARGET, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
