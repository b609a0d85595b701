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
from engine.decode_linear import Linear, is_packable

# Backbones whose blocks are those below; Qwen2 adds biases, Qwen3 norms on queries and keys.
_MODEL_TYPES = {"llama", "mistral", "qwen2", "qwen3"}
_FIXED_ROTARY = {"default", "linear", "llama3", "yarn"}  # the other kinds change with the length of the text
# Projections of the same input are joined up to this size: it saves calls, and costs a copy of the weights per rollout.
_MAX_JOINED_BYTES = 64_000_000
_TOLERANCE = 1e-2  # of the largest state, in the check against the module: rounding of bfloat16, and no more


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
    qkv: list[Linear]
    query_norm: _Norm | None
    key_norm: _Norm | None
    output: Linear
    mlp_norm: _Norm
    gate_up: list[Linear]
    activation: nn.Module
    down: Linear


class LlamaDecoder:
    """Continues rows whose prompt is in a cache. Weights are read when it is made: make a new one after an update."""

    def __init__(
        self, module: PreTrainedModel, capacity: int, *, dtype: torch.dtype | None = None, packs: bool = False
    ) -> None:
        """A decoder for `capacity` positions, whose products run in `dtype` (None: that of the weights).

        It `packs` the weights where oneDNN reads its own copies faster, see engine/decode_linear.py.
        """
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
        largest: Tensor = backbone.layers[0].mlp.gate_proj.weight
        copies = (packs and is_packable(largest)) or dtype not in (None, largest.dtype)
        self.layers = [
            _layer(layer, config.rms_norm_eps, join=is_exact and (is_small or copies), dtype=dtype, packs=packs)
            for layer in backbone.layers
        ]
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
        bias = None if mask is None else _bias(mask, cache.layers[0].keys.dtype)
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            # Turned in the type of the states: in place in bfloat16, every one of the four operations would cast back and forth.
            qkv = _project(layer.attention_norm(states), layer.qkv).to(states.dtype)
            qkv = qkv.view(rows, heads + 2 * kv_heads, width)
            if layer.query_norm is not None and layer.key_norm is not None:
                query, key, value = qkv.split_with_sizes([heads, kv_heads, kv_heads], dim=1)
                qkv = torch.cat([layer.query_norm(query), layer.key_norm(key), value], dim=1)
            turned = qkv.narrow(1, 0, heads + kv_heads)
            swapped = turned.roll(width // 2, -1)
            turned.mul_(cos).addcmul_(swapped, sin)
            query, key_value = qkv.split_with_sizes([heads, 2 * kv_heads], dim=1)
            keys, values = kept.append(key_value.view(rows, 2, kv_heads, width).transpose(0, 1))
            layer.output.add_to(states, self._attended(query, keys, values, bias))
            gate_up = _project(layer.mlp_norm(states), layer.gate_up)
            gate, up = gate_up.split_with_sizes([gate_up.shape[1] // 2] * 2, dim=1)
            layer.down.add_to(states, layer.activation(gate).mul_(up))
        return self.norm(states)

    def _attended(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """[B, heads·D] from a query [B, heads, D] for each row, and its keys and values [B, kv heads, S, D]."""
        rows, kv_heads, num_seen, width = keys.shape
        query = query.to(keys.dtype)
        # The query heads that share a key/value head stand as its queries: nothing is repeated.
        if self.norm.is_composed and keys.dtype == query.dtype == torch.float32:
            # For one query, torch's kernel for a CPU takes longer than the products that it is made of.
            query, turned = (query * self.scaling).view(rows * kv_heads, -1, width), keys.flatten(0, 1).transpose(1, 2)
            if bias is None:
                scores = torch.bmm(query, turned)
            else:
                scores = torch.baddbmm(bias.expand(-1, kv_heads, 1, num_seen).reshape(-1, 1, num_seen), query, turned)
            return torch.bmm(torch.softmax(scores, -1), values.flatten(0, 1)).view(rows, -1)
        query = query.reshape(rows, kv_heads, -1, width)
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=self.scaling)
        return attended.reshape(rows, -1)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores, 0 or -∞, so that no layer has to make it of the mask."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)


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


def _layer(layer: Any, eps: float, *, join: bool, dtype: torch.dtype | None, packs: bool) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp

    def linear(part: Any) -> Linear:
        return _linear(part, merge=join, dtype=dtype)

    def ready(parts: list[Linear]) -> list[Linear]:
        parts = _joined(parts) if join and len(parts) > 1 else parts
        return [part.packed() for part in parts] if packs else parts

    qkv = [linear(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
    gate_up = [linear(part) for part in (mlp.gate_proj, mlp.up_proj)]
    return _Layer(
        attention_norm=_Norm(layer.input_layernorm.weight, eps),
        qkv=ready(qkv),
        query_norm=_Norm(attention.q_norm.weight, eps) if hasattr(attention, "q_norm") else None,
        key_norm=_Norm(attention.k_norm.weight, eps) if hasattr(attention, "k_norm") else None,
        output=ready([linear(attention.o_proj)])[0],
        mlp_norm=_Norm(layer.post_attention_layernorm.weight, eps),
        gate_up=ready(gate_up),
        activation=mlp.act_fn,
        down=ready([linear(mlp.down_proj)])[0],
    )


def _linear(part: Any, *, merge: bool, dtype: torch.dtype | None) -> Linear:
    if isinstance(part, nn.Linear):
        return _plain(part.weight, part.bias, dtype)
    base = part.base_layer  # of a LoRA layer
    if part.disable_adapters:
        return _plain(base.weight, base.bias, dtype)
    if merge:
        return _plain(merged_weight(part), base.bias, dtype)
    plain = _plain(base.weight, base.bias, dtype)
    return Linear(plain.transposed, plain.bias, factors(part))


def _plain(weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None) -> Linear:
    dtype = dtype or weight.dtype
    return Linear(weight.to(dtype).t(), None if bias is None else bias.to(dtype))


def _joined(parts: list[Linear]) -> list[Linear]:
    biases = [part.bias for part in parts if part.bias is not None]
    weight = torch.cat([part.transposed.t() for part in parts])
    return [Linear(weight.t(), torch.cat(biases) if biases else None)]


def _project(states: Tensor, parts: list[Linear]) -> Tensor:
    if len(parts) == 1:
        return parts[0](states)
    return torch.cat([part(states) for part in parts], dim=-1)
