"""The decode loop: a model continues prompts, or completions that another has begun, up to a horizon.

Each prompt is prefilled once for all its rollouts, sampling stops exactly at the horizon, rows that end leave the batch,
and every token depends on (seed, prompt, visit, rollout) alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from engine.decode_rows import DecodeRows, Draw
from engine.errors import StopRequested
from engine.flops import FlopLedger, rollout_ledger
from engine.language_model import Decoder, LanguageModel
from engine.rollout import Rollout, RolloutRequest
from engine.truncation import EVERY_TOKEN, Truncation
from engine.vllm_answer import Draws

if TYPE_CHECKING:
    from engine.teacher_servers import TeacherServers

_T = TypeVar("_T")


@dataclass
class Sampler:
    """Samples from one model. `temperature` 0 takes the most likely token."""

    model: LanguageModel
    seed: int
    temperature: float
    on_token: Callable[[], None] = field(default=lambda: None)
    """Called after every decode step; it may raise to stop."""
    truncation: Truncation = EVERY_TOKEN
    """Which tokens may be drawn; where it leaves any out, log-probabilities are those among the kept ones."""
    executed_tokens: int = 0
    """Positions computed so far, padding and ended rows included."""
    executed: FlopLedger = field(default_factory=FlopLedger)
    """What was computed so far; of rollouts that are still in a probe, nothing yet."""

    @torch.inference_mode()
    def sample(self, requests: list[RolloutRequest], horizon: int) -> list[Rollout]:
        """The rollouts of all requests, in their order, at most `horizon` tokens each (>= 1), or their own `max_tokens`.

        Where a run has several processes, each samples its share, and all get all.
        """
        if self.model.servers is not None:
            return self._written_elsewhere(self.model.servers, requests, horizon)
        with self.model.on_device(), self.model.autocast():
            groups = self._sampled(requests, horizon) if self.model.ranks.size == 1 else self._shared(requests, horizon)
        return [rollout for group in groups for rollout in group]

    def _sampled(self, requests: list[RolloutRequest], horizon: int) -> list[list[Rollout]]:
        """The rollouts of these requests, by request."""
        if not requests:
            return []
        done = []
        decoder = self._decoder(requests, horizon)
        for batch in _batches(requests, horizon, self.model.decoded_rollouts):
            rows = self._rows([requests[i] for i in batch], horizon, decoder)
            rows.run(rows.horizon, self.on_token)
            done.append((batch, self._counted(rows)))
        return _in_order(done)

    def _shared(self, requests: list[RolloutRequest], horizon: int) -> list[list[Rollout]]:
        """The rollouts of these requests from all ranks; what each has computed for them is counted on all."""
        ranks, mine = self.model.ranks, replace(self, executed_tokens=0, executed=FlopLedger())
        is_stopped = False
        try:
            groups = mine._sampled(ranks.share(requests), horizon)
        except StopRequested:
            groups, is_stopped = [], True
        told = {
            "is_stopped": is_stopped,
            "groups": [[asdict(rollout) for rollout in group] for group in groups],
            "tokens": mine.executed_tokens,
            "executed": mine.executed.model_dump(),
        }
        heard = ranks.gathered(told)
        if any(one["is_stopped"] for one in heard):  # what one was told ends the work of all
            raise StopRequested
        self.executed_tokens += sum(one["tokens"] for one in heard)
        self.executed = sum((FlopLedger(**one["executed"]) for one in heard), self.executed)
        by_rank: list[list[list[dict[str, Any]]]] = [one["groups"] for one in heard]
        return [[Rollout(**rollout) for rollout in group] for group in ranks.joined(by_rank)]

    @torch.inference_mode()
    def probe(self, requests: list[RolloutRequest], horizon: int, *, num_tokens: int, top_k: int) -> Probe:
        """The first `num_tokens` of all rollouts, with the model's `top_k` most likely ids at each."""
        waiting = []
        with self.model.autocast():
            decoder = self._decoder(requests, horizon)
            for batch in _batches(requests, horizon, self.model.decoded_rollouts):
                rows = self._rows([requests[i] for i in batch], horizon, decoder, room=num_tokens, num_top=top_k)
                rows.run(num_tokens, self.on_token)
                waiting.append((batch, rows))
        return Probe(self, waiting)

    def _written_elsewhere(
        self, servers: TeacherServers, requests: list[RolloutRequest], horizon: int
    ) -> list[Rollout]:
        """Executed FLOPs are counted as if the servers padded nothing."""
        draws = Draws(self.temperature, self.model.eos_token_ids, self.model.head.vocabulary, self.truncation)
        rollouts = servers.write(requests, horizon, self.seed, draws)
        remaining = iter(rollouts)
        for request in requests:
            lengths = [len(next(remaining).completion_token_ids) for _ in range(request.num_rollouts)]
            self.executed += rollout_ledger(self.model.shape, len(request.prompt_token_ids), lengths)
        return rollouts

    def _decoder(self, requests: list[RolloutRequest], horizon: int) -> Decoder:
        """One for all batches: it may hold copies of the weights."""
        longest = max((len(request.prompt_token_ids) for request in requests), default=0)
        return self.model.decoder(longest + horizon, max((request.limit(horizon) for request in requests), default=0))

    def _rows(
        self,
        requests: list[RolloutRequest],
        horizon: int,
        decoder: Decoder,
        *,
        room: int | None = None,
        num_top: int = 0,
    ) -> DecodeRows:
        longest = max(request.limit(horizon) for request in requests)
        draw = Draw(self.seed, self.temperature, self.truncation)
        return DecodeRows(self.model, requests, longest, draw, decoder, room=room, num_top=num_top)

    def _counted(self, rows: DecodeRows) -> list[list[Rollout]]:
        """The rollouts of a batch that is done."""
        self.executed_tokens += rows.executed_tokens
        self.executed += rows.executed
        return rows.rollouts()


class Probe:
    """Rollouts that have begun and wait, with their caches, to be continued or dropped."""

    def __init__(self, sampler: Sampler, waiting: list[tuple[list[int], DecodeRows]]) -> None:
        self._sampler = sampler
        self._waiting = waiting
        self.rollouts = _in_order([(batch, rows.rollouts()) for batch, rows in waiting])
        """By request."""
        self.top_ids = _in_order([(batch, rows.top_ids()) for batch, rows in waiting])
        """By request, [T, K] for each rollout: the most likely ids where its tokens were picked, most likely first."""

    @torch.inference_mode()
    def finish(self, kept: list[list[bool]]) -> list[list[Rollout]]:
        """The rollouts by request, those that are kept (flags by request) continued to their horizon. To be called once."""
        done = []
        with self._sampler.model.autocast():
            while self._waiting:
                batch, rows = self._waiting.pop(0)  # frees its cache before the next one grows
                rows.go_on_with([flag for index in batch for flag in kept[index]])
                rows.run(rows.horizon, self._sampler.on_token)
                done.append((batch, self._sampler._counted(rows)))
        return _in_order(done)


def _in_order(batches: list[tuple[list[int], list[_T]]]) -> list[_T]:
    """One value for each request, in the order of the requests, from batches of request indices and values."""
    found = {index: value for indices, values in batches for index, value in zip(indices, values, strict=True)}
    return [found[index] for index in range(len(found))]


def _batches(requests: list[RolloutRequest], horizon: int, num_together: int) -> list[list[int]]:
    """Indices of requests that decode together: of equal `num_rollouts`, at most so many rollouts (one request at least)."""
    # Equal limits stay together: one row that runs on decodes nearly as slowly as many.
    order = sorted(range(len(requests)), key=lambda i: (requests[i].limit(horizon), len(requests[i].prompt_token_ids)))
    batches: list[list[int]] = []
    for index in order:
        repeats = requests[index].num_rollouts
        batch = batches[-1] if batches else []
        if batch and requests[batch[0]].num_rollouts == repeats and (len(batch) + 1) * repeats <= num_together:
            batch.append(index)
        else:
            batches.append([index])
    return batches
