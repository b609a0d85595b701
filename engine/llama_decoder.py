"""One decode step of a Llama-shaped backbone, without the module calls around it.

Behind a short prompt a small model spends most of a token's time in Python, not in arithmetic: transformers' layers make
some 120 calls for it, these 20. The weights are the module's own. B rows, H hidden width, D head width, S positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from engine.adapter import factors, merged_weight
from engine.decode_cache import decode_cache, is_preallocated

# Backbones whose blocks are those below; Qwen2 adds biases, Qwen3 norms on queries and keys.
_MODEL_TYPES = {"llama", "mistral", "qwen2", "qwen3"}
_FIXED_ROTARY = {"default", "linear", "llama3", "yarn"}  # the other kinds change with the length of the text
# Projections of the same input are joined up to this size: it saves calls, and costs a copy of the weights per rollout.
_MAX_JOINED_BYTES = 64_000_000
_TOLERANCE = 1e-2  # of the largest state, in the check against the module: rounding of bfloat16, and no more


@dataclass(frozen=True)
class _Linear:
    """x·Wᵀ + b, and x·downᵀ·upᵀ where a LoRA layer is not merged into W."""

    transposed: Tensor
    """Wᵀ, [inputs, outputs], a view: made once and not at every token."""
    bias: Tensor | None
    factors: tuple[Tensor, Tensor] | None = None

    def __call__(self, states: Tensor) -> Tensor:
        result = (
            torch.mm(states, self.transposed) if self.bias is None else torch.addmm(self.bias, states, self.transposed)
        )
        if self.factors is None:
            return result
        down, up = self.factors
        return result + functional.linear(functional.linear(states, down), up)

    def add_to(self, residual: Tensor, states: Tensor) -> None:
        """Add to `residual` in place; in one call where nothing has to be cast."""
        if self.bias is None and self.factors is None and states.dtype == self.transposed.dtype:
            residual.addmm_(states, self.transposed)
        else:
            residual += self(states)


class _Norm:
    """Root mean square norm over the last axis."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps
        self.size = (len(weight),)
        # x / sqrt(mean(x²) + eps) · w = x / hypot(|x|, sqrt(H·eps)) · (sqrt(H)·w): on a CPU, where torch composes rms_norm
        # of eight operations, these four take half its time.
        self.is_composed = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
        self.root = torch.tensor(math.sqrt(len(weight) * eps), dtype=weight.dtype)
        self.scaled = weight * math.sqrt(len(weight))

    def __call__(self, states: Tensor) -> Tensor:
        if not self.is_composed:
            return functional.rms_norm(states, self.size, self.weight, self.eps)
        return states / torch.hypot(torch.linalg.vector_norm(states, dim=-1, keepdim=True), self.root) * self.scaled


@dataclass(frozen=True)
class _Layer:
    attention_norm: _Norm
    qkv: list[_Linear]
    query_norm: _Norm | None
    key_norm: _Norm | None
    output: _Linear
    mlp_norm: _Norm
    gate_up: list[_Linear]
    activation: nn.Module
    down: _Linear


class LlamaDecoder:
    """Continues rows whose prompt is in a cache. Weights are read when it is made: make a new one after an update."""

    def __init__(self, module: PreTrainedModel, capacity: int) -> None:
        config, backbone = module.config, module.get_decoder()
        first = backbone.layers[0].self_attn
        self.head_dim: int = first.head_dim
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads
        self.scaling: float = first.scaling
        self.embedding: Tensor = backbone.embed_tokens.weight
        self.norm = _Norm(backbone.norm.weight, config.rms_norm_eps)
        # Merged into bfloat16 weights, an adapter's small changes would be rounded away.
        is_exact = self.embedding.dtype in (torch.float32, torch.float64)
        is_small = sum(p.numel() * p.element_size() for p in backbone.layers.parameters()) <= _MAX_JOINED_BYTES
        self.layers = [_layer(layer, config.rms_norm_eps, join=is_small and is_exact) for layer in backbone.layers]
        positions = torch.arange(capacity, device=self.embedding.device)[None]
        cos, sin = backbone.rotary_emb(self.embedding, positions)
        half = self.head_dim // 2
        self.cos: Tensor = cos[0]
        # rotate_half(x)·sin = roll(x)·signed sin: one call less per layer.
        self.signed_sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)

    def hidden(self, token_ids: Tensor, position: int | Tensor, cache: Any, mask: Tensor | None) -> Tensor:
        """Hidden states [B, H] behind the tokens [B]; `position` is that of all rows or of each, [B].

        `mask` [B, 1, 1, S] is False where a row has padding. The cache grows by one position.
        """
        rows, heads, kv_heads, width = len(token_ids), self.num_heads, self.num_kv_heads, self.head_dim
        cos, sin = self.cos[position], self.signed_sin[position]
        if isinstance(position, Tensor):
            cos, sin = cos[:, None], sin[:, None]
        states = functional.embedding(token_ids, self.embedding)
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            qkv = _project(layer.attention_norm(states), layer.qkv).view(rows, heads + 2 * kv_heads, width)
            if layer.query_norm is not None and layer.key_norm is not None:
                query, key, value = qkv.split_with_sizes([heads, kv_heads, kv_heads], dim=1)
                qkv = torch.cat([layer.query_norm(query), layer.key_norm(key), value], dim=1)
            turned = qkv.narrow(1, 0, heads + kv_heads)
            swapped = turned.roll(width // 2, -1)
            turned.mul_(cos).addcmul_(swapped, sin)
            query, key_value = qkv.split_with_sizes([heads, 2 * kv_heads], dim=1)
            keys, values = kept.append(key_value.view(rows, 2, kv_heads, width).transpose(0, 1))
            layer.output.add_to(states, self._attended(query, keys, values, mask))
            gate_up = _project(layer.mlp_norm(states), layer.gate_up)
            gate, up = gate_up.split_with_sizes([gate_up.shape[1] // 2] * 2, dim=1)
            layer.down.add_to(states, layer.activation(gate).mul_(up))
        return self.norm(states)

    def _attended(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """[B, heads·D] from a query [B, heads, D] for each row, and its keys and values [B, kv heads, S, D]."""
        rows, kv_heads, _, width = keys.shape
        # The query heads that share a key/value head stand as its queries: nothing is repeated.
        if mask is None and self.norm.is_composed:
            # For one query, torch's kernel for a CPU takes longer than the products that it is made of.
            query = (query * self.scaling).view(rows * kv_heads, -1, width)
            scores = torch.bmm(query, keys.flatten(0, 1).transpose(1, 2))
            return torch.bmm(torch.softmax(scores, -1), values.flatten(0, 1)).view(rows, -1)
        query = query.reshape(rows, kv_heads, -1, width).to(keys.dtype)
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self.scaling)
        return attended.reshape(rows, -1)


@torch.inference_mode()
def is_llama_shaped(module: PreTrainedModel) -> bool:
    """Whether LlamaDecoder gives the states that the module gives: by structure, and by trying it behind two tokens."""
    config = module.config
    if config.model_type not in _MODEL_TYPES or not is_preallocated(decode_cache(module, 1)):
        return False
    backbone = module.get_decoder()
    parts = [part for layer in backbone.layers for part in layer.modules()]
    is_plain = all(type(part) is nn.Linear for part in parts if isinstance(part, nn.Linear))
    if not is_plain or backbone.rotary_emb.rope_type not in _FIXED_ROTARY:
        return False
    tokens = torch.arange(3, device=module.device)[None] % config.vocab_size
    expected = backbone(input_ids=tokens).last_hidden_state[:, -1]
    cache = decode_cache(module, 3)
    backbone(input_ids=tokens[:, :2], past_key_values=cache, use_cache=True)
    found = LlamaDecoder(module, 3).hidden(tokens[:, 2], 2, cache, None)
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _layer(layer: Any, eps: float, *, join: bool) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp

    def linear(part: Any) -> _Linear:
        return _linear(part, merge=join)

    qkv = [linear(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
    gate_up = [linear(part) for part in (mlp.gate_proj, mlp.up_proj)]
    return _Layer(
        attention_norm=_Norm(layer.input_layernorm.weight, eps),
        qkv=_joined(qkv) if join else qkv,
        query_norm=_Norm(attention.q_norm.weight, eps) if hasattr(attention, "q_norm") else None,
        key_norm=_Norm(attention.k_norm.weight, eps) if hasattr(attention, "k_norm") else None,
        output=linear(attention.o_proj),
        mlp_norm=_Norm(layer.post_attention_layernorm.weight, eps),
        gate_up=_joined(gate_up) if join else gate_up,
        activation=mlp.act_fn,
        down=linear(mlp.down_proj),
    )


def _linear(part: Any, *, merge: bool) -> _Linear:
    if isinstance(part, nn.Linear):
        return _Linear(part.weight.t(), part.bias)
    base = part.base_layer  # of a LoRA layer
    if part.disable_adapters:
        return _Linear(base.weight.t(), base.bias)
    if merge:
        return _Linear(merged_weight(part).t(), base.bias)
    return _Linear(base.weight.t(), base.bias, factors(part))


def _joined(parts: list[_Linear]) -> list[_Linear]:
    biases = [part.bias for part in parts if part.bias is not None]
    weight = torch.cat([part.transposed.t() for part in parts])
    return [_Linear(weight.t(), torch.cat(biases) if biases else None)]


def _project(states: Tensor, parts: list[_Linear]) -> Tensor:
    if len(parts) == 1:
        return parts[0](states)
    return torch.cat([part(states) for part in parts], dim=-1)
