"""A key/value cache that is allocated once for prompt and horizon, instead of growing by a copy at every token."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class _PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is checked as Any
    """Keys and values [B, heads, S, D] as views of one buffer [2, B, heads, capacity, D]."""

    def __init__(self, capacity: int, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.capacity = capacity
        self.kept_dtype = dtype
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            rows, heads, _, width = key_states.shape
            self.buffer = key_states.new_empty(2, rows, heads, self.capacity, width, dtype=self.kept_dtype)
        added = key_states.shape[-2]
        room = self.buffer.narrow(3, self.length, added)
        room[0].copy_(key_states)
        room[1].copy_(value_states)
        return self._grown(added)

    def append(self, keys_and_values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, S, D] with one position more; that of a token is [2, B, heads, D]."""
        self.buffer.select(3, self.length).copy_(keys_and_values)
        return self._grown(1)

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` positions, and keep those that are there."""
        self.capacity = capacity
        seen = self.buffer.narrow(3, 0, self.length)
        self.buffer = seen.new_empty(*seen.shape[:3], capacity, seen.shape[-1])
        self.buffer.narrow(3, 0, self.length).copy_(seen)
        self._grown(0)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.buffer = self.buffer.repeat_interleave(repeats, dim=1)
        self._grown(0)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.buffer = self.buffer[:, indices]
        self._grown(0)

    def _grown(self, added: int) -> tuple[Tensor, Tensor]:
        self.length += added
        self.keys, self.values = self.buffer.narrow(3, 0, self.length).unbind(0)
        return self.keys, self.values


def decode_cache(module: PreTrainedModel, capacity: int, dtype: torch.dtype | None = None) -> DynamicCache:
    """An empty cache for `capacity` positions in `dtype` (None: that of the keys that come); layers with a sliding window
    keep transformers' own kind."""
    cache = DynamicCache(config=module.config)
    cache.layers = [
        _PreallocatedLayer(capacity, dtype) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def reserve(cache: DynamicCache, capacity: int) -> None:
    """Make room for `capacity` positions in a cache of `decode_cache`; layers of transformers' own kind grow by themselves."""
    for layer in cache.layers:
        if isinstance(layer, _PreallocatedLayer):
            layer.reserve(capacity)


def is_preallocated(cache: DynamicCache) -> bool:
    """Whether every layer of a cache of `decode_cache` keeps all positions."""
    return all(isinstance(layer, _PreallocatedLayer) for layer in cache.layers)
