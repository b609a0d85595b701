"""One decode batch: the prefill of its prompts, then token by token its live rows. B live rows, V vocabulary, K kept ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.decode_cache import decode_cache, reserve
from engine.drawing import drawn
from engine.flops import FlopLedger
from engine.language_model import Decoder, LanguageModel
from engine.rollout import Rollout, RolloutRequest, uniforms
from engine.truncation import EVERY_TOKEN, Truncation

_CUDA_COMPACT_EVERY = 16  # steps; asking a GPU whether rows have ended makes it wait for the answer


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn; see engine.sampler.Sampler."""

    seed: int
    temperature: float
    truncation: Truncation = EVERY_TOKEN


class DecodeRows:
    """The live rows of one decode batch; `alive` maps them to the rollouts they belong to."""

    def __init__(
        self,
        model: LanguageModel,
        requests: list[RolloutRequest],
        horizon: int,
        draw: Draw,
        decoder: Decoder,
        *,
        room: int | None = None,
        num_top: int = 0,
    ) -> None:
        """Prefill each prompt once and repeat its cache for its rollouts.

        The cache has room for `room` completion tokens (None: the horizon). `num_top` of the model's most likely ids are
        kept at each position until `go_on_with`.
        """
        self.model = model
        self.requests = requests
        self.horizon = horizon
        self.draw = draw
        self.num_top = num_top
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
        capacity = width + min(horizon if room is None else room, horizon)
        # Under autocast, attention reads keys in its own type anyway; kept in it, they take half the memory and time.
        self.cache: Any = decode_cache(self.model.module, capacity, self.model.autocast_dtype)
        last = self.model.hidden(token_ids.to(device), past_key_values=self.cache, use_cache=True, **inputs)[:, -1]
        self.executed_tokens = token_ids.numel()
        """Positions computed so far, padding and ended rows included."""
        is_begun = bool(requests[0].begun)
        self._prefill_flops = model.shape.padded_prefill(
            len(requests), width, is_masked=mask is not None, is_projected=not is_begun
        )
        self._decode_flops = 0.0
        self.decoder = decoder

        repeats = requests[0].num_rollouts
        if repeats > 1:
            self.cache.batch_repeat_interleave(repeats)
        self.prompt_width = width
        self.prompt_lengths = lengths.to(device).repeat_interleave(repeats, 0)
        """[B]"""
        self.pad_mask = None if mask is None else mask.repeat_interleave(repeats, 0)
        """[B, prompt width], False on the left padding; None when all prompts have one length."""
        noise = np.stack([uniforms(draw.seed, request, r, horizon) for request in requests for r in range(repeats)])
        self.noise = torch.from_numpy(noise).T.contiguous().to(device)
        """[horizon, B] uniforms."""
        self.total = len(requests) * repeats
        self.alive = torch.arange(self.total, device=device)
        self.eos = torch.tensor(sorted(self.model.eos_token_ids), device=device)
        limits = torch.tensor([request.limit(horizon) for request in requests], device=device)
        self.limits = limits.repeat_interleave(repeats, 0)
        """[B] tokens after which a row is cut."""
        self.has_own_limits = bool((limits < horizon).any())
        self.has_ended = torch.zeros(self.total, dtype=torch.bool, device=device)
        """[B], kept on a GPU between two compactions."""
        self.chosen = self.alive
        self.columns: list[tuple[Tensor, Tensor, Tensor]] = []
        """For every position: the rollouts that were alive, their tokens and log-probabilities."""
        self.top_columns: list[Tensor] = []
        """For every position of a probe: [B, K] the most likely ids of the same rollouts."""
        self.position = 0
        """Completion tokens of the live rows."""
        self.is_live = True
        """Whether a row is left that is shorter than the horizon."""
        self.is_behind = False
        """Whether the last tokens have not been run through the model yet."""
        self.logits = last.new_empty(0)
        """[B, V] logits of the next token."""
        if is_begun:
            self._read([rollout for request in requests for rollout in request.begun])
        else:
            self.logits = self.decoder.head.logits(last).repeat_interleave(repeats, 0)

    @property
    def executed(self) -> FlopLedger:
        """What was computed so far, padding and ended rows included."""
        prefill, decode = self._prefill_flops, self._decode_flops
        return FlopLedger(rollout=prefill + decode, rollout_prefill=prefill)

    def run(self, until: int, on_token: Callable[[], None]) -> None:
        """Decode until every row has `until` tokens or has ended; `on_token` is called after every decode step."""
        while self.is_live and self.position < until:
            if self.is_behind:
                self._advance()
                on_token()
            self._choose()
            self.is_live = self.position < self.horizon and self._compact()

    def go_on_with(self, kept: list[bool]) -> None:
        """Drop the rollouts that are not kept, and make room for the others up to the horizon."""
        self.num_top = 0
        if not self.is_live:
            return
        rows = [
            row
            for row, (rollout, ended) in enumerate(zip(self.alive.tolist(), self.has_ended.tolist(), strict=True))
            if kept[rollout] and not ended
        ]
        self.is_live = bool(rows)
        if rows:
            self._keep(rows)
            reserve(self.cache, self.prompt_width + self.horizon)

    def _read(self, begun: list[Rollout]) -> None:
        """Run what others have written through the model, and leave out what they have ended."""
        rows = [row for row, rollout in enumerate(begun) if rollout.is_open(int(self.limits[row]))]
        self.is_live = bool(rows)
        if not rows:
            return
        token_ids = torch.tensor([begun[row].completion_token_ids for row in rows], device=self.alive.device)
        self.position = token_ids.shape[1]
        if len(rows) < self.total:
            self._keep(rows)
        inputs: dict[str, Tensor] = {}
        if self.pad_mask is not None:
            inputs = {
                "attention_mask": torch.cat([self.pad_mask, torch.ones_like(token_ids, dtype=torch.bool)], dim=1),
                "position_ids": self.prompt_lengths[:, None] + torch.arange(self.position, device=token_ids.device),
            }
        states = self.model.hidden(token_ids, past_key_values=self.cache, use_cache=True, **inputs)
        self.logits = self.decoder.head.logits(states[:, -1])
        self.executed_tokens += token_ids.numel()
        self._prefill_flops += self.model.shape.padded_reading(len(rows), self.prompt_width, self.position)

    def _choose(self) -> None:
        """Pick the next token of every live row."""
        draw = self.draw
        if draw.temperature == 0:
            self.chosen = self.logits.argmax(-1)
            picked = torch.zeros(len(self.chosen), dtype=self.logits.dtype, device=self.chosen.device)
        else:
            logits = self.logits if draw.temperature == 1 else self.logits / draw.temperature
            if draw.truncation:
                logits = draw.truncation.of(torch.log_softmax(logits, -1))
            self.chosen, picked = drawn(logits, self.noise[self.position])
        self.columns.append((self.alive, self.chosen, picked))
        if self.num_top:
            self.top_columns.append(self.logits.topk(self.num_top).indices)
        self.position += 1
        self.is_behind = True

    def _compact(self) -> bool:
        """Drop the rows that have ended; whether any is left."""
        ended = self._ended()
        if not any(ended):
            return True
        if all(ended):
            return False
        self._keep([row for row, flag in enumerate(ended) if not flag])
        return True

    def _keep(self, rows: list[int]) -> None:
        keep = torch.tensor(rows, device=self.chosen.device)
        self.cache.batch_select_indices(keep)
        self.alive, self.chosen, self.prompt_lengths = self.alive[keep], self.chosen[keep], self.prompt_lengths[keep]
        self.noise, self.has_ended, self.limits = self.noise[:, keep], self.has_ended[keep], self.limits[keep]
        self.pad_mask = None if self.pad_mask is None else self.pad_mask[keep]

    def _ended(self) -> list[bool]:
        if not self.chosen.is_cuda:
            ended = [token in self.model.eos_token_ids for token in self.chosen.tolist()]
            if self.has_own_limits:
                cut = [limit <= self.position for limit in self.limits.tolist()]
                ended = [flag or is_cut for flag, is_cut in zip(ended, cut, strict=True)]
            return ended
        self.has_ended |= torch.isin(self.chosen, self.eos) | (self.limits <= self.position)
        return self.has_ended.tolist() if (self.position - 1) % _CUDA_COMPACT_EVERY == 0 else []

    def _advance(self) -> None:
        """Run the chosen tokens through the model."""
        mask: Tensor | None = None
        if self.pad_mask is not None:
            seen = torch.ones(len(self.chosen), self.position, dtype=torch.bool, device=self.chosen.device)
            mask = torch.cat([self.pad_mask, seen], dim=1)
        if self.decoder.backbone is not None:
            place = (self.prompt_width if mask is None else self.prompt_lengths) + self.position - 1
            visible = None if mask is None else mask[:, None, None, :]
            with torch.autocast(self.chosen.device.type, enabled=False):  # it casts what it needs, weights but once
                hidden = self.decoder.backbone.hidden(self.chosen, place, self.cache, visible)
        else:
            inputs: dict[str, Tensor] = {}
            if mask is not None:
                inputs = {"attention_mask": mask, "position_ids": (self.prompt_lengths + self.position - 1)[:, None]}
            states = self.model.hidden(self.chosen[:, None], past_key_values=self.cache, use_cache=True, **inputs)
            hidden = states[:, -1]
        self.executed_tokens += len(self.chosen)
        context = self.prompt_width + self.position
        self._decode_flops += self.model.shape.decode_step(len(self.chosen), context)
        self.logits = self.decoder.head.logits(hidden)
        self.is_behind = False

    def top_ids(self) -> list[list[Tensor]]:
        """For each rollout, by request, [T, K]: the model's most likely ids where its tokens were picked."""
        found: list[list[Tensor]] = [[] for _ in range(self.total)]
        for (alive, _, _), top in zip(self.columns, self.top_columns, strict=True):
            for row, ids in zip(alive.tolist(), top.cpu(), strict=True):
                found[row].append(ids)
        remaining = iter(found)
        return [
            [torch.stack(next(remaining)[: len(rollout.completion_token_ids)]) for rollout in group]
            for group in self.rollouts()
        ]

    def rollouts(self) -> list[list[Rollout]]:
        """The rollouts so far, grouped by request."""
        begun = [rollout for request in self.requests for rollout in request.begun]
        tokens = [list(rollout.completion_token_ids) for rollout in begun] or [[] for _ in range(self.total)]
        logprobs = [list(rollout.completion_logprobs) for rollout in begun] or [[] for _ in range(self.total)]
        ended = [rollout.finish_reason == "eos" for rollout in begun] or [False] * self.total
        num_begun = [len(ids) for ids in tokens]
        limits = [request.limit(self.horizon) for request in self.requests for _ in range(request.num_rollouts)]
        for row, (mine, picked) in enumerate(self._written()):
            # On a GPU, rows decode on until the next compaction.
            room = limits[row] - num_begun[row]
            end = next((at + 1 for at, token in enumerate(mine[:room]) if token in self.model.eos_token_ids), None)
            tokens[row] += mine[: room if end is None else end]
            logprobs[row] += picked[: room if end is None else end]
            ended[row] = ended[row] or end is not None
        rows = iter(range(self.total))
        return [
            [
                Rollout(
                    prompt_index=request.prompt_index,
                    prompt_token_ids=request.prompt_token_ids,
                    completion_token_ids=tokens[row],
                    completion_logprobs=logprobs[row],
                    finish_reason="eos" if ended[row] else "length",
                    num_begun=num_begun[row],
                )
                for row in (next(rows) for _ in range(request.num_rollouts))
            ]
            for request in self.requests
        ]

    def _written(self) -> list[tuple[list[int], list[float]]]:
        """Tokens and log-probabilities chosen for each rollout, those behind its end included."""
        if not self.columns:
            return []
        alive, chosen, picked = (torch.cat(column).cpu() for column in zip(*self.columns, strict=True))
        by_rollout = torch.sort(alive, stable=True).indices
        counts = torch.bincount(alive, minlength=self.total).tolist()
        parts = (column[by_rollout].split_with_sizes(counts) for column in (chosen, picked))
        return [(ids.tolist(), logprobs.tolist()) for ids, logprobs in zip(*parts, strict=True)]
