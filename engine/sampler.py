"""The decode loop: the student continues prompts up to a horizon.

Each prompt is prefilled once for all its rollouts, sampling stops exactly at the horizon, rows that end leave the batch,
and every token depends on (seed, prompt, visit, rollout) alone. B rollouts, S positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from engine.decode_cache import decode_cache
from engine.language_model import LanguageModel
from engine.rollout import Rollout, RolloutRequest, uniforms

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
    executed_tokens: int = 0
    """Positions computed so far, padding and ended rows included."""

    @torch.inference_mode()
    def sample(self, requests: list[RolloutRequest], horizon: int) -> list[Rollout]:
        """The rollouts of all requests, in their order, at most `horizon` tokens each (>= 1)."""
        by_length = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_token_ids))
        rollouts: dict[int, list[Rollout]] = {}
        with self.model.autocast():
            for batch in _batches(by_length, requests):
                for index, done in zip(batch, self._decode([requests[i] for i in batch], horizon), strict=True):
                    rollouts[index] = done
        return [rollout for index in range(len(requests)) for rollout in rollouts[index]]

    def _decode(self, requests: list[RolloutRequest], horizon: int) -> list[list[Rollout]]:
        rows = _Rows.start(requests, horizon, self)
        for position in range(horizon):
            rows.choose(position)
            if rows.compact(position) or position + 1 == horizon:
                break
            rows.advance(position)
            self.on_token()
        return rows.rollouts(requests)


@dataclass
class _Rows:
    """The live rows of one decode batch; `alive` maps them to the rollouts they belong to."""

    sampler: Sampler
    cache: object
    logits: Tensor
    """[B, V] logits of the next token of each live row."""
    prompt_lengths: Tensor
    """[B] of the live rows."""
    pad_mask: Tensor | None
    """[B, prompt width], False on the left padding; None when all prompts have one length."""
    noise: Tensor
    """[all rollouts, horizon] uniforms."""
    alive: Tensor
    tokens: Tensor
    logprobs: Tensor
    lengths: Tensor

    @classmethod
    def start(cls, requests: list[RolloutRequest], horizon: int, sampler: Sampler) -> _Rows:
        """Prefill each prompt once and repeat its cache for its rollouts."""
        model, device = sampler.model, sampler.model.device
        lengths = torch.tensor([len(request.prompt_token_ids) for request in requests])
        width = int(lengths.max())
        token_ids = torch.full((len(requests), width), model.pad_token_id)
        for row, request in enumerate(requests):
            token_ids[row, width - len(request.prompt_token_ids) :] = torch.tensor(request.prompt_token_ids)
        token_ids, lengths = token_ids.to(device), lengths.to(device)
        mask = None
        inputs: dict[str, Tensor] = {}
        if bool((lengths != width).any()):
            mask = torch.arange(width, device=device) >= (width - lengths)[:, None]
            inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        cache = decode_cache(model.module, width + horizon)
        last = model.hidden(token_ids, past_key_values=cache, use_cache=True, **inputs)[:, -1]
        sampler.executed_tokens += token_ids.numel()
        logits = model.head.logits(last)
        repeats = requests[0].num_rollouts
        if repeats > 1:
            cache.batch_repeat_interleave(repeats)
            logits, lengths = logits.repeat_interleave(repeats, 0), lengths.repeat_interleave(repeats, 0)
            mask = None if mask is None else mask.repeat_interleave(repeats, 0)
        total = len(requests) * repeats
        noise = np.stack([uniforms(sampler.seed, request, r, horizon) for request in requests for r in range(repeats)])
        return cls(
            sampler=sampler,
            cache=cache,
            logits=logits,
            prompt_lengths=lengths,
            pad_mask=mask,
            noise=torch.from_numpy(noise).to(device),
            alive=torch.arange(total, device=device),
            tokens=torch.zeros(total, horizon, dtype=torch.long, device=device),
            logprobs=torch.zeros(total, horizon, device=device),
            lengths=torch.full((total,), horizon, device=device),
        )

    def choose(self, position: int) -> None:
        """Pick the token at `position` for every live row."""
        if self.sampler.temperature == 0:
            chosen = self.logits.argmax(-1)
        else:
            logprobs = torch.log_softmax(self.logits / self.sampler.temperature, -1)
            # Inverse CDF with one uniform per token. float64: a float32 running sum over a large vocabulary loses the tail.
            cumulative = logprobs.double().exp().cumsum(-1)
            threshold = self.noise[self.alive, position, None] * cumulative[:, -1:]
            chosen = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=logprobs.shape[-1] - 1)
            self.logprobs[self.alive, position] = logprobs.gather(-1, chosen[:, None]).squeeze(-1)
        self.tokens[self.alive, position] = chosen
        self.chosen = chosen

    def compact(self, position: int) -> bool:
        """Drop the rows that have ended; True when none is left."""
        eos = torch.tensor(sorted(self.sampler.model.eos_token_ids), device=self.chosen.device)
        ended = torch.isin(self.chosen, eos)
        first_end = ended & (self.lengths[self.alive] > position + 1)
        self.lengths[self.alive[first_end]] = position + 1
        if self.chosen.is_cuda and position % _CUDA_COMPACT_EVERY:
            return False
        done = self.lengths[self.alive] <= position + 1
        if not bool(done.any()):
            return False
        keep = (~done).nonzero().squeeze(-1)
        if len(keep) == 0:
            return True
        self.cache.batch_select_indices(keep)  # type: ignore[attr-defined]
        self.alive, self.chosen, self.prompt_lengths = self.alive[keep], self.chosen[keep], self.prompt_lengths[keep]
        self.pad_mask = None if self.pad_mask is None else self.pad_mask[keep]
        return False

    def advance(self, position: int) -> None:
        """Run the chosen tokens through the model."""
        inputs: dict[str, Tensor] = {}
        if self.pad_mask is not None:
            seen = torch.ones(len(self.chosen), position + 1, dtype=torch.bool, device=self.chosen.device)
            inputs["attention_mask"] = torch.cat([self.pad_mask, seen], dim=1)[:, None, None, :]
            inputs["position_ids"] = (self.prompt_lengths + position)[:, None]
        model = self.sampler.model
        hidden = model.hidden(self.chosen[:, None], past_key_values=self.cache, use_cache=True, **inputs)
        self.sampler.executed_tokens += len(self.chosen)
        self.logits = model.head.logits(hidden[:, -1])

    def rollouts(self, requests: list[RolloutRequest]) -> list[list[Rollout]]:
        """The finished rollouts, grouped by request."""
        tokens, logprobs, lengths = self.tokens.tolist(), self.logprobs.tolist(), self.lengths.tolist()
        grouped, row = [], 0
        for request in requests:
            group = []
            for _ in range(request.num_rollouts):
                count = lengths[row]
                ended = tokens[row][count - 1] in self.sampler.model.eos_token_ids
                group.append(
                    Rollout(
                        prompt_index=request.prompt_index,
                        prompt_token_ids=request.prompt_token_ids,
                        completion_token_ids=tokens[row][:count],
                        completion_logprobs=logprobs[row][:count],
                        finish_reason="eos" if ended else "length",
                    )
                )
                row += 1
            grouped.append(group)
        return grouped


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
