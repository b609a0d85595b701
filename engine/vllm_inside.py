"""vLLM in the engine's own process: it samples with the student's weights, and sleeps on a GPU while the student is trained.

It is imported by what makes it alone: most environments have no vLLM.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from engine.errors import RunError, first_line, is_out_of_memory
from engine.findings import Finding
from engine.language_model import LanguageModel
from engine.rollout_backend_spec import ColocatedVllm
from engine.served_weights import ServedWeights
from engine.vllm_answer import Answer, Ask, Draws, checked

_FIELD = "rollouts"
_MISSING = (
    "rollouts.kind is 'vllm_colocated' but this engine's environment has no vLLM; make one (`make vllm`) and name its Python in "
    "the worker's INCIPIT_VLLM_PYTHON, or set rollouts to engine."
)
_GB = 2**30


def vllm_findings() -> list[Finding]:
    """What stands in the way of vLLM in this process."""
    return [] if importlib.util.find_spec("vllm") else [Finding(field=_FIELD, message=_MISSING)]


class VllmInside:
    """The one vLLM of this process; it answers as engine.server_pool.ServerPool does."""

    def __init__(self, spec: ColocatedVllm, num_tokens: int) -> None:
        """`num_tokens` is the longest text of the run. Raises RunError("bad_spec") where there is no vLLM."""
        if found := vllm_findings():
            raise RunError("bad_spec", found[0].message, found)
        self.spec = spec
        self.num_tokens = num_tokens
        self.trial: ServedWeights | None = None
        """Weights unlike the student's, which it has to take before it is given those."""
        self.num_lost = 0
        self.loading_seconds = 0.0
        """How long it was brought to its weights, at the last completions."""
        self.logprob_gap: float | None = None
        """The largest difference found when weights were loaded last, nats."""
        self._vllm: Any = None
        self._sleeps = False
        self._version: str | None = None
        self._num_asked = 0

    def start(self, student: LanguageModel, weights: ServedWeights) -> None:
        """Open vLLM on a folder with weights of this student, where it is not open yet. Raises RunError("bad_spec")."""
        if self._vllm is not None:
            return
        is_on_gpu = student.device.type == "cuda"
        # In this process, on the cores that the engine's threads may use, and told nobody.
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
            **({} if is_on_gpu else {"VLLM_TARGET_DEVICE": "cpu"}),
        }  # fmt: skip
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            from vllm import LLM

            self._vllm = LLM(
                model=str(weights.folder), skip_tokenizer_init=True, max_model_len=self.num_tokens,
                dtype="float32" if student.autocast_dtype is None else "bfloat16", max_num_seqs=self.spec.max_concurrent,
                enforce_eager=not is_on_gpu, enable_sleep_mode=is_on_gpu, logprobs_mode="processed_logprobs", seed=0,
                generation_config="vllm", disable_log_stats=True,
                kv_cache_memory_bytes=round(self.spec.cache_gb * _GB),
            ).llm_engine  # fmt: skip
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error):
                raise
            message = (
                f"rollouts.kind is 'vllm_colocated' but vLLM cannot be started on the student ({first_line(error)}); set rollouts to "
                "engine, or change what it names."
            )
            raise RunError("bad_spec", message, [Finding(field=_FIELD, message=message)]) from error
        self._sleeps = is_on_gpu

    def complete(
        self, asks: list[Ask], draws: Draws, weights: ServedWeights, on_wait: Callable[[], None]
    ) -> list[Answer]:
        """An answer to each ask, all of them sampled with `weights`; `on_wait` is called all the time and may raise to stop.

        Raises RunError("server_mismatch") when vLLM does not find with the weights what the engine does.
        """
        self.logprob_gap, self.loading_seconds = None, 0.0
        if self._sleeps:
            self._vllm.wake_up()
        try:
            if self._version != weights.version:
                began = time.monotonic()
                if self._version is None and self.trial is not None:
                    self._load(self.trial, on_wait)
                self.logprob_gap = self._load(weights, on_wait)
                self._version = weights.version
                self.loading_seconds = time.monotonic() - began
            return self._sampled(asks, draws, on_wait)
        finally:
            if self._sleeps:
                self._vllm.sleep(level=1)

    def mismatch(self, words: str) -> RunError:
        """It does not do what the run needs."""
        message = f"vLLM in the engine's process {words}"
        return RunError("server_mismatch", message, [Finding(field=_FIELD, message=message)])

    def close(self) -> None:
        """Give its memory back."""
        if self._vllm is not None:
            self._vllm.engine_core.shutdown()
            self._vllm = None

    def _load(self, weights: ServedWeights, on_wait: Callable[[], None]) -> float:
        self._vllm.collective_rpc("reload_weights", kwargs={"weights_path": str(weights.folder)})
        self._vllm.reset_prefix_cache()
        gap = weights.gap(self._logprobs(weights.fixed_tokens, on_wait))
        if not gap <= self.spec.max_logprob_gap:
            raise self.mismatch(
                f"finds the same {len(weights.fixed_tokens)} tokens {gap:.2f} nats more or less likely than the engine does with the "
                f"weights that it was given, more than rollouts.max_logprob_gap ({self.spec.max_logprob_gap}); set rollouts to engine."
            )
        return gap

    def _logprobs(self, token_ids: list[int], on_wait: Callable[[], None]) -> list[float]:
        from vllm import SamplingParams

        asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        (found,) = self._run([(token_ids, asked)], on_wait)
        return [float(at[token].logprob) for at, token in zip(found.prompt_logprobs[1:], token_ids[1:], strict=True)]

    def _sampled(self, asks: list[Ask], draws: Draws, on_wait: Callable[[], None]) -> list[Answer]:
        from vllm import SamplingParams

        kept = draws.truncation
        params = [
            SamplingParams(
                max_tokens=ask.max_tokens, seed=ask.seed, temperature=draws.temperature, top_p=kept.top_p, top_k=kept.top_k,
                min_p=kept.min_p, logprobs=0, stop_token_ids=sorted(draws.eos_token_ids), ignore_eos=True, detokenize=False,
            )
            for ask in asks
        ]  # fmt: skip
        answers = []
        for ask, found in zip(
            asks, self._run(zip((ask.token_ids for ask in asks), params, strict=True), on_wait), strict=True
        ):
            (text,) = found.outputs
            token_ids = list(text.token_ids)
            logprobs = [float(at[token].logprob) for at, token in zip(text.logprobs, token_ids, strict=True)]
            answers.append(checked(token_ids, logprobs, ask, draws, self.mismatch))
        return answers

    def _run(self, asked: Iterable[tuple[list[int], Any]], on_wait: Callable[[], None]) -> list[Any]:
        """vLLM's outputs for token ids and how they are to be continued, in their order."""
        names = []
        for token_ids, params in asked:
            names.append(f"incipit-{self._num_asked}")
            self._num_asked += 1
            self._vllm.add_request(names[-1], {"prompt_token_ids": token_ids}, params)
        done: dict[str, Any] = {}
        try:
            while self._vllm.has_unfinished_requests():
                done |= {one.request_id: one for one in self._vllm.step() if one.finished}
                on_wait()
        finally:
            self._vllm.abort_request([name for name in names if name not in done])
        return [done[name] for name in names]
