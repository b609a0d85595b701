"""Linear layers for decoding, whose weights lie as they are read fastest.

For a handful of rows, a product takes as long as its weights take to be read. On a CPU, torch's own product reads a row-major
weight at less than half the memory's rate, and lays a bfloat16 weight out anew at every call; a copy that oneDNN has laid out
once is read twice as fast. A copy costs as much as some products: it is made for rollouts of some length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from engine.language_model import OutputHead

# A weight of fewer entries stays in the core's cache, and oneDNN's call takes longer than it saves.
MIN_PACKED_ENTRIES = 2**17
# Products from which on a copy pays.
_MIN_PRODUCTS = 8
# Operators that torch's own compiler uses and does not document: a build without them decodes with plain products.
_HAS_LAYOUTS = torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
    hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
)


@dataclass(frozen=True)
class Linear:
    """x·Wᵀ + b, and x·downᵀ·upᵀ where a LoRA layer is not merged into W."""

    transposed: Tensor
    """Wᵀ, [inputs, outputs], a view: made once and not at every token."""
    bias: Tensor | None
    factors: tuple[Tensor, Tensor] | None = None

    def __call__(self, states: Tensor) -> Tensor:
        states = states.to(self.transposed.dtype)
        if self.bias is None:
            return self._with_factors(torch.mm(states, self.transposed), states)
        return self._with_factors(torch.addmm(self.bias, states, self.transposed), states)

    def add_to(self, residual: Tensor, states: Tensor) -> None:
        """Add to `residual` in place; in one call where nothing has to be cast."""
        if self.bias is None and self.factors is None and states.dtype == self.transposed.dtype == residual.dtype:
            residual.addmm_(states, self.transposed)
        else:
            residual += self(states)

    def packed(self) -> Linear:
        """The same, of a copy that oneDNN has laid out, where it has a layout for it and the weight is large enough."""
        weight = self.transposed.t()
        if not is_packable(weight):
            return self
        # The number of rows is a hint alone: products of any number are right.
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, 8)
        return _PackedLinear(laid_out, self.bias, self.factors, weight.dtype)

    def _with_factors(self, result: Tensor, states: Tensor) -> Tensor:
        if self.factors is None:
            return result
        down, up = self.factors
        return result + functional.linear(functional.linear(states, down), up)


@dataclass(frozen=True)
class _PackedLinear(Linear):
    """`transposed` is oneDNN's copy, which only oneDNN can read."""

    dtype: torch.dtype = torch.float32

    def __call__(self, states: Tensor) -> Tensor:
        states = states.to(self.dtype)
        product = torch.ops.mkldnn._linear_pointwise(states, self.transposed, self.bias, "none", [], "")
        return self._with_factors(product, states)

    def add_to(self, residual: Tensor, states: Tensor) -> None:
        residual += self(states)

    def packed(self) -> Linear:
        return self


@dataclass(frozen=True)
class DecodeHead:
    """The vocabulary projection of the tokens of a decode batch."""

    head: OutputHead
    linear: Linear

    @classmethod
    def of(cls, head: OutputHead, dtype: torch.dtype, *, packs: bool) -> DecodeHead:
        """The head with a copy of its weight, where that is cast to `dtype` or laid out anew."""
        used = slice(head.vocabulary)
        bias = None if head.bias is None else head.bias[used].to(dtype)
        linear = Linear(head.weight[used].to(dtype).t(), bias)
        return cls(head, linear.packed() if packs else linear)

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, H] to [N, V] in float32 (or more)."""
        return self.head.shaped(self.linear(hidden))


def pays(num_tokens: int) -> bool:
    """Whether so many tokens of each row are worth copies of the weights."""
    return num_tokens >= _MIN_PRODUCTS


def is_packable(weight: Tensor) -> bool:
    """Whether oneDNN can lay the weight out, and it is large enough for that."""
    if weight.device.type != "cpu" or weight.numel() < MIN_PACKED_ENTRIES or not _HAS_LAYOUTS:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
