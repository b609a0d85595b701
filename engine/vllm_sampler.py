"""Samples the student's completions on vLLM servers that have its weights."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.flops import FlopLedger, continuation_ledger, rollout_ledger
from engine.language_model import LanguageModel
from engine.rollout import Rollout, RolloutRequest
from engine.rollout_backend_spec import ColocatedVllm, SampledByVllm
from engine.served_weights import ServedWeights, WeightsFolder, changed, token_logprobs
from engine.server_pool import ServerPool
from engine.vllm_answer import Answer, Ask, Draws
from engine.vllm_inside import VllmInside

_FOLDER = "INCIPIT_WEIGHTS_FOLDER"


class RolloutServers:
    """The servers of a run, or the vLLM in its process, and the weights that they have to have."""

    def __init__(self, spec: SampledByVllm, run_folder: Path, num_tokens: int, fixed_tokens: list[int]) -> None:
        """`num_tokens` is the longest text of the run; a server is tried on `fixed_tokens`, two at least.

        Raises RunError("bad_spec") for a server that may not be asked, or where there is no vLLM.
        """
        self.spec = spec
        self.pool = VllmInside(spec, num_tokens) if isinstance(spec, ColocatedVllm) else ServerPool(spec, num_tokens)
        shared = os.environ.get(_FOLDER)
        folder = Path(shared) / run_folder.parent.parent.name if shared else run_folder
        self.folder = WeightsFolder(folder.resolve() / "rollout-weights", fixed_tokens)
        self._weights: ServedWeights | None = None

    def sampler(
        self, student: LanguageModel, step: int, seed: int, temperature: float, on_wait: Callable[[], None]
    ) -> VllmSampler:
        """What samples for a step of the run (counted from 0), with the weights of now where they are due."""
        began, name = time.monotonic(), f"step-{step}"
        if self._weights is None:
            with changed(student):
                self.pool.trial = self.folder.write(student, "trial")
        if self._weights is None or (step % self.spec.sync_every_steps == 0 and self._weights.folder.name != name):
            self._weights = self.folder.write(student, name)
            self.folder.keep_only(self._weights, self.pool.trial)
        if isinstance(self.pool, VllmInside):
            self.pool.start(student, self._weights)
        writing = time.monotonic() - began
        return VllmSampler(self.pool, self._weights, student, seed, temperature, on_wait, writing)

    def close(self) -> None:
        """Take the weights away, and what samples with them."""
        if isinstance(self.pool, VllmInside):
            self.pool.close()
        self.folder.remove()


@dataclass
class VllmSampler:
    """Samples like engine.sampler.Sampler; every rollout has a seed of (seed, prompt, visit, rollout).

    Two rollouts with the same seed and weights may still differ: vLLM rounds differently in batches of other sizes.
    """

    pool: ServerPool | VllmInside
    weights: ServedWeights
    model: LanguageModel
    seed: int
    temperature: float
    on_wait: Callable[[], None]
    """Called all the time while servers work; it may raise to stop."""
    writing_seconds: float = 0.0
    """How long the weights were written, where they were due."""
    executed: FlopLedger = field(default_factory=FlopLedger)
    """What the servers have computed so far, as if they padded nothing."""

    @property
    def metrics(self) -> dict[str, float | None]:
        """What the step has to tell of the servers; no gap where no weights were loaded."""
        return {
            "server_logprob_gap": self.pool.logprob_gap,
            "servers_lost": float(self.pool.num_lost),
            "sync_seconds": self.writing_seconds + self.pool.loading_seconds,
        }

    def sample(self, requests: list[RolloutRequest], horizon: int) -> list[Rollout]:
        """The rollouts of all requests, in their order, at most `horizon` tokens each (>= 1), or their own `max_tokens`.

        Raises RunError("server_unreachable") when no server answers for long, RunError("server_mismatch") when one does
        not serve the student.
        """
        places = [(request, index) for request in requests for index in range(request.num_rollouts)]
        asks = {place: ask for place, one in enumerate(places) if (ask := self._ask(*one, horizon)) is not None}
        draws = Draws(self.temperature, self.model.eos_token_ids, self.model.head.vocabulary)
        found = self.pool.complete(list(asks.values()), draws, self.weights, self.on_wait) if asks else []
        answers = dict(zip(asks, found, strict=True))
        if answers and self.temperature != 1:
            first = next(iter(answers))
            self._check_temperature(asks[first], answers[first])
        rollouts = [_rollout(*one, answers.get(place)) for place, one in enumerate(places)]
        self._count(requests, rollouts)
        return rollouts

    def _ask(self, request: RolloutRequest, index: int, horizon: int) -> Ask | None:
        """What is asked of a server for a rollout; None when it has ended already."""
        begun = request.begun[index] if request.begun else None
        limit = request.limit(horizon)
        if begun is not None and not begun.is_open(limit):
            return None
        given = [] if begun is None else begun.completion_token_ids
        key = f"{self.seed} {request.prompt_index} {request.stream} {index}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:7], "big")
        return Ask([*request.prompt_token_ids, *given], limit - len(given), seed)

    def _check_temperature(self, ask: Ask, answer: Answer) -> None:
        """At another temperature than 1, vLLM tells the log-probabilities at 1 unless it is started otherwise."""
        text = [*ask.token_ids, *answer.token_ids]
        expected = token_logprobs(self.model, text, self.temperature)[-len(answer.token_ids) :]
        gap = sum(abs(a - b) for a, b in zip(expected, answer.logprobs, strict=True)) / len(expected)
        if gap > self.pool.spec.max_logprob_gap:
            raise self.pool.mismatch(
                f"tells log-probabilities that are {gap:.2f} nats from the engine's at temperature {self.temperature}, more than "
                f"rollouts.max_logprob_gap ({self.pool.spec.max_logprob_gap}); start it with --logprobs-mode processed_logprobs."
            )

    def _count(self, requests: list[RolloutRequest], rollouts: list[Rollout]) -> None:
        remaining = iter(rollouts)
        for request in requests:
            lengths = [len(next(remaining).completion_token_ids) for _ in range(request.num_rollouts)]
            prompt, shape = len(request.prompt_token_ids), self.model.shape
            given = max((len(one.completion_token_ids) for one in request.begun), default=0)
            self.executed += (
                continuation_ledger(shape, prompt, lengths, given)
                if request.begun
                else rollout_ledger(shape, prompt, lengths)
            )


def _rollout(request: RolloutRequest, index: int, answer: Answer | None) -> Rollout:
    begun = request.begun[index] if request.begun else None
    token_ids = [] if begun is None else list(begun.completion_token_ids)
    logprobs = [] if begun is None else list(begun.completion_logprobs)
    num_begun = len(token_ids)
    if answer is None:
        assert begun is not None, "only what others have ended is not asked for"
        reason = begun.finish_reason
    else:
        token_ids, logprobs, reason = token_ids + answer.token_ids, logprobs + answer.logprobs, answer.finish_reason
    return Rollout(
        prompt_index=request.prompt_index,
        prompt_token_ids=request.prompt_token_ids,
        completion_token_ids=token_ids,
        completion_logprobs=logprobs,
        finish_reason=reason,
        num_begun=num_begun,
    )
