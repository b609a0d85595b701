"""A key/value cache that is allocated once for prompt and horizon, instead of growing by a copy at every token."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class _PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is checked as Any
    """Keys and values [B, heads, S, D] as views of buffers with room for `capacity` positions."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:-2], self.capacity)
            self.key_buffer = key_states.new_empty(*shape, key_states.shape[-1])
            self.value_buffer = value_states.new_empty(*shape, value_states.shape[-1])
        end = self.length + key_states.shape[-2]
        self.key_buffer[:, :, self.length : end].copy_(key_states)
        self.value_buffer[:, :, self.length : end].copy_(value_states)
        self.length = end
        self._show()
        return self.keys, self.values

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` positions, and keep those that are there."""
        self.capacity = capacity
        for name, seen in (("key_buffer", self.keys), ("value_buffer", self.values)):
            buffer = seen.new_empty(*seen.shape[:-2], capacity, seen.shape[-1])
            buffer[:, :, : self.length].copy_(seen)
            setattr(self, name, buffer)
        self._show()

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.key_buffer = self.key_buffer.repeat_interleave(repeats, dim=0)
        self.value_buffer = self.value_buffer.repeat_interleave(repeats, dim=0)
        self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        self.key_buffer = self.key_buffer[indices]
        self.value_buffer = self.value_buffer[indices]
        self._show()

    def _show(self) -> None:
        self.keys = self.key_buffer[:, :, : self.length]
        self.values = self.value_buffer[:, :, : self.length]


def decode_cache(module: PreTrainedModel, capacity: int) -> DynamicCache:
    """An empty cache for `capacity` positions; layers with a sliding window keep transformers' own kind."""
    cache = DynamicCache(config=module.config)
    cache.layers = [_PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def reserve(cache: DynamicCache, capacity: int) -> None:
    """Make room for `capacity` positions in a cache of `decode_cache`; layers of transformers' own kind grow by themselves."""
    for layer in cache.layers:
        if isinstance(layer, _PreallocatedLayer):
            layer.reserve(capacity)


def is_preallocated(cache: DynamicCache) -> bool:
    """Whether every layer of a cache of `decode_cache` keeps all positions."""
    return all(isinstance(layer, _PreallocatedLayer) for layer in cache.layers)
