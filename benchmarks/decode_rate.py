"""Our decode loop against transformers' `generate`: the same model, prompts, type and number of tokens, one thread.

    incipit models fetch smollm2
    python -m benchmarks.decode_rate [--batches 8 16] [--tokens 64] [--dtypes float32 bfloat16] [--rounds 3] [--json]

The student of the SmolLM2 pair continues chats at temperature 1, never ending before the last token; both ways in one process, in
alternation. In bfloat16, `generate` gets a model loaded in it, and ours casts float32 weights, as in a run. The rate of decoding
alone leaves out the first token of each row, behind its prompt, which either way has to produce as well. Target: 1.6 times.
"""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import replace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.decode_ways import Way, alternated, print_results
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
    ways = {
        "incipit": Way(lambda prompts, count: sampled(ours, prompts, count)),
        "generate": Way(lambda prompts, count: generated(theirs, prompts, count)),
    }
    found = alternated(ways, pair, batch, tokens, rounds=rounds, warm_up=WARM_UP)
    incipit, generate = found["incipit"], found["generate"]
    return {
        "dtype": dtype,
        "batch": batch,
        "tokens": tokens,
        **{f"{name}_tokens_per_second": batch * (tokens - 1) / one.alone.cpu for name, one in found.items()},
        "decode_ratio": generate.alone.cpu / incipit.alone.cpu,
        "cpu_ratio": generate.whole.cpu / incipit.whole.cpu,
        "wall_ratio": generate.whole.wall / incipit.whole.wall,
    }


def main() -> int:
    arguments = case_parser(__doc__, batches=[8, 16], tokens=[64]).parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    try:
        pair = smollm2_pair()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    cases = itertools.product(arguments.dtypes, arguments.batches, arguments.tokens)
    results = (measured(pair, dtype, batch, tokens, arguments.rounds) for dtype, batch, tokens in cases)
    print_results(results, _in_words, arguments, TARGET)
    return 0


def _in_words(one: dict[str, Any]) -> str:
    return (
        f"{one['dtype']}, batch {one['batch']}, {one['tokens']} tokens: {one['incipit_tokens_per_second']:.0f} tokens per CPU "
        f"second, generate {one['generate_tokens_per_second']:.0f}: {one['decode_ratio']:.2f} times the rate; "
        f"with the prompts {one['cpu_ratio']:.2f}, by the wall {one['wall_ratio']:.2f} (target {TARGET})"
    )


if __name__ == "__main__":
    sys.exit(main())
