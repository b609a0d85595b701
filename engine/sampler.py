"""The decode loop: the student continues prompts up to a horizon.

Each prompt is prefilled once for all its rollouts, sampling stops exactly at the horizon, rows that end leave the batch,
and every token depends on (seed, prompt, visit, rollout) alone. B live rows, S positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.decode_cache import decode_cache
from engine.language_model import LanguageModel
from engine.rollout import Rollout, RolloutRequest, uniforms
from engine.truncation import truncated

_MAX_ROWS = 128  # rollouts decoded together: past this a 2-core CPU gains nothing and the cache grows
_CUDA_COMPACT_EVERY = 16  # steps; asking a GPU whether rows have ended makes it wait for the answer


@dataclass
class Sampler:
    """Samples from one model. `temperature` 0 takes the most likely token."""

    model: LanguageModel
    seed: int
    temperature: float
    on_token: Callable[[], None] = field(default=lambda: None)
    """Called after every decode step; it may raise to stop."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0 samples from all."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together have this probability; then log-probabilities are those among them."""
    executed_tokens: int = 0
    """Positions computed so far, padding and ended rows included."""

    @torch.inference_mode()
    def sample(self, requests: list[RolloutRequest], horizon: int) -> list[Rollout]:
        """The rollouts of all requests, in their order, at most `horizon` tokens each (>= 1), or their own `max_tokens`."""
        # Equal limits stay together: one row that runs on decodes nearly as slowly as many.
        limits = [_limit(request, horizon) for request in requests]
        by_length = sorted(range(len(requests)), key=lambda i: (limits[i], len(requests[i].prompt_token_ids)))
        rollouts: dict[int, list[Rollout]] = {}
        with self.model.autocast():
            for batch in _batches(by_length, requests):
                for index, done in zip(batch, self._decode([requests[i] for i in batch], horizon), strict=True):
                    rollouts[index] = done
        return [rollout for index in range(len(requests)) for rollout in rollouts[index]]

    def _decode(self, requests: list[RolloutRequest], horizon: int) -> list[list[Rollout]]:
        horizon = max(_limit(request, horizon) for request in requests)
        rows = _Rows(self, requests, horizon)
        for position in range(horizon):
            rows.choose(position)
            if position + 1 == horizon or not rows.compact(position):
                break
            rows.advance(position)
            self.on_token()
        return rows.rollouts(requests)


class _Rows:
    """The live rows of one decode batch; `alive` maps them to the rollouts they belong to."""

    def __init__(self, sampler: Sampler, requests: list[RolloutRequest], horizon: int) -> None:
        """Prefill each prompt once and repeat its cache for its rollouts."""
        self.sampler = sampler
        self.model = sampler.model
        self.horizon = horizon
        device = self.model.device
        lengths = torch.tensor([len(request.prompt_token_ids) for request in requests])
        width = int(lengths.max())
        token_ids = torch.full((len(requests), width), self.model.pad_token_id)
        for row, request in enumerate(requests):
            token_ids[row, width - len(request.prompt_token_ids) :] = torch.tensor(request.prompt_token_ids)
        mask: Tensor | None = None
        inputs: dict[str, Tensor] = {}
        if bool((lengths != width).any()):
            mask = (torch.arange(width) >= (width - lengths)[:, None]).to(device)
            inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        self.cache: Any = decode_cache(self.model.module, width + horizon)
        last = self.model.hidden(token_ids.to(device), past_key_values=self.cache, use_cache=True, **inputs)[:, -1]
        sampler.executed_tokens += token_ids.numel()
        self.decoder = self.model.decoder(width + horizon)

        repeats = requests[0].num_rollouts
        if repeats > 1:
            self.cache.batch_repeat_interleave(repeats)
        self.logits = self.model.head.logits(last).repeat_interleave(repeats, 0)
        """[B, V] logits of the next token."""
        self.prompt_width = width
        self.prompt_lengths = lengths.to(device).repeat_interleave(repeats, 0)
        """[B]"""
        self.pad_mask = None if mask is None else mask.repeat_interleave(repeats, 0)
        """[B, prompt width], False on the left padding; None when all prompts have one length."""
        noise = np.stack([uniforms(sampler.seed, request, r, horizon) for request in requests for r in range(repeats)])
        self.noise = torch.from_numpy(noise).T.contiguous().to(device)
        """[horizon, B] uniforms."""
        self.total = len(requests) * repeats
        self.alive = torch.arange(self.total, device=device)
        self.eos = torch.tensor(sorted(self.model.eos_token_ids), device=device)
        limits = torch.tensor([_limit(request, horizon) for request in requests], device=device)
        self.limits = limits.repeat_interleave(repeats, 0)
        """[B] tokens after which a row is cut."""
        self.has_own_limits = bool((limits < horizon).any())
        self.has_ended = torch.zeros(self.total, dtype=torch.bool, device=device)
        """[B], kept on a GPU between two compactions."""
        self.chosen = self.alive
        self.columns: list[tuple[Tensor, Tensor, Tensor]] = []
        """For every position: the rollouts that were alive, their tokens and log-probabilities."""

    def choose(self, position: int) -> None:
        """Pick the token at `position` for every live row."""
        if self.sampler.temperature == 0:
            self.chosen = self.logits.argmax(-1)
            picked = torch.zeros(len(self.chosen), dtype=self.logits.dtype, device=self.chosen.device)
        else:
            logprobs = torch.log_softmax(self.logits / self.sampler.temperature, -1)
            if self.sampler.top_k or self.sampler.top_p < 1:
                logprobs = truncated(logprobs, top_k=self.sampler.top_k, top_p=self.sampler.top_p)
            # Inverse CDF with one uniform per token. float64: a float32 running sum over a large vocabulary loses the tail.
            cumulative = logprobs.double().exp().cumsum(-1)
            threshold = self.noise[position, :, None] * cumulative[:, -1:]
            chosen = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=logprobs.shape[-1] - 1)
            picked = logprobs.gather(-1, chosen).squeeze(-1)
            self.chosen = chosen.squeeze(-1)
        self.columns.append((self.alive, self.chosen, picked))

    def compact(self, position: int) -> bool:
        """Drop the rows that have ended; whether any is left."""
        ended = self._ended(position)
        if not any(ended):
            return True
        if all(ended):
            return False
        keep = torch.tensor([row for row, flag in enumerate(ended) if not flag], device=self.chosen.device)
        self.cache.batch_select_indices(keep)
        self.alive, self.chosen, self.prompt_lengths = self.alive[keep], self.chosen[keep], self.prompt_lengths[keep]
        self.noise, self.has_ended, self.limits = self.noise[:, keep], self.has_ended[keep], self.limits[keep]
        self.pad_mask = None if self.pad_mask is None else self.pad_mask[keep]
        return True

    def _ended(self, position: int) -> list[bool]:
        if not self.chosen.is_cuda:
            ended = [token in self.model.eos_token_ids for token in self.chosen.tolist()]
            if self.has_own_limits:
                ended = [flag or limit <= position + 1 for flag, limit in zip(ended, self.limits.tolist(), strict=True)]
            return ended
        self.has_ended |= torch.isin(self.chosen, self.eos) | (self.limits <= position + 1)
        return self.has_ended.tolist() if position % _CUDA_COMPACT_EVERY == 0 else []

    def advance(self, position: int) -> None:
        """Run the chosen tokens through the model."""
        mask: Tensor | None = None
        if self.pad_mask is not None:
            seen = torch.ones(len(self.chosen), position + 1, dtype=torch.bool, device=self.chosen.device)
            mask = torch.cat([self.pad_mask, seen], dim=1)
        if self.decoder is not None:
            place = self.prompt_width + position if mask is None else self.prompt_lengths + position
            hidden = self.decoder.hidden(
                self.chosen, place, self.cache, None if mask is None else mask[:, None, None, :]
            )
        else:
            inputs: dict[str, Tensor] = {}
            if mask is not None:
                inputs = {"attention_mask": mask, "position_ids": (self.prompt_lengths + position)[:, None]}
            states = self.model.hidden(self.chosen[:, None], past_key_values=self.cache, use_cache=True, **inputs)
            hidden = states[:, -1]
        self.sampler.executed_tokens += len(self.chosen)
        self.logits = self.model.head.logits(hidden)

    def rollouts(self, requests: list[RolloutRequest]) -> list[list[Rollout]]:
        """The finished rollouts, grouped by request."""
        tokens: list[list[int]] = [[] for _ in range(self.total)]
        logprobs: list[list[float]] = [[] for _ in range(self.total)]
        ended = [False] * self.total
        limits = [_limit(request, self.horizon) for request in requests for _ in range(request.num_rollouts)]
        for alive, chosen, picked in self.columns:
            for row, token, logprob in zip(alive.tolist(), chosen.tolist(), picked.tolist(), strict=True):
                if (
                    not ended[row] and len(tokens[row]) < limits[row]
                ):  # on a GPU, rows decode on until the next compaction
                    tokens[row].append(token)
                    logprobs[row].append(logprob)
                    ended[row] = token in self.model.eos_token_ids
        rows = iter(range(self.total))
        return [
            [
                Rollout(
                    prompt_index=request.prompt_index,
                    prompt_token_ids=request.prompt_token_ids,
                    completion_token_ids=tokens[row],
                    completion_logprobs=logprobs[row],
                    finish_reason="eos" if ended[row] else "length",
                )
                for row in (next(rows) for _ in range(request.num_rollouts))
            ]
            for request in requests
        ]


def _limit(request: RolloutRequest, horizon: int) -> int:
    return horizon if request.max_tokens is None else min(request.max_tokens, horizon)


def _batches(order: list[int], requests: list[RolloutRequest]) -> list[list[int]]:
    """Consecutive indices of equal `num_rollouts`, at most _MAX_ROWS rollouts each (one request at least)."""
    batches: list[list[int]] = []
    for index in order:
        repeats = requests[index].num_rollouts
        batch = batches[-1] if batches else []
        if batch and requests[batch[0]].num_rollouts == repeats and (len(batch) + 1) * repeats <= _MAX_ROWS:
            batch.append(index)
        else:
            batches.append([index])
    return batches
