"""The ledger against torch's FlopCounterMode on small models whose attention is written out.

The counter knows no causality: it sees the n·n pairs of tokens where the ledger counts n·(n+1)/2. Everything else is exact.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from engine.adapter_shape import ADAPTABLE, AdapterShape
from engine.flops import ModelShape, rollout_ledger
from engine.gradient_checkpointing import checkpoint_blocks

TOKENS, RANK = 9, 4


def config(kv_heads: int = 2, layers: int = 6) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        attn_implementation="eager",
    )


def counted(work: Callable[[], Any]) -> tuple[float, Any]:
    with FlopCounterMode(display=False) as counter:
        result = work()
    return counter.get_total_flops(), result


def above_causal(shape: ModelShape, n: int) -> float:
    """What the whole square of attention costs beyond its causal half, in one forward pass."""
    return 4.0 * shape.attention_width * n * n - 2.0 * shape.attention_width * n * (n + 1)


def projected(model: LlamaForCausalLM, token_ids: Tensor, num_projected: int) -> Tensor:
    """Backbone over all tokens, head over the last `num_projected`, as the engine runs both models."""
    hidden = model.model(input_ids=token_ids, use_cache=False).last_hidden_state[0]
    return nn.functional.linear(hidden[len(hidden) - num_projected :], model.lm_head.weight).sum()


class Adapted(nn.Module):
    """A frozen product with a low-rank one beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.first = nn.Linear(base.in_features, RANK, bias=False)
        self.second = nn.Linear(RANK, base.out_features, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.base(states) + self.second(self.first(states))
        return out


def adapted_model(targets: Sequence[str], *, recomputes_blocks: bool = False) -> tuple[LlamaForCausalLM, ModelShape]:
    values = config()
    model = LlamaForCausalLM(values).requires_grad_(False)
    for layer in model.model.layers:
        for name in targets:
            parent = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
            setattr(parent, name, Adapted(getattr(parent, name)))
    if recomputes_blocks:
        checkpoint_blocks(model)
    adapter = AdapterShape.from_config(values.to_dict(), RANK, targets)
    assert adapter.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    return model, ModelShape.from_config(values.to_dict()).model_copy(update={"adapter": adapter})


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("num_projected", [TOKENS, 3, 1])
def test_forward_and_backward_with_a_projection_of_all_tokens_or_of_a_window(kv_heads: int, num_projected: int) -> None:
    values = config(kv_heads)
    model, shape = LlamaForCausalLM(values), ModelShape.from_config(values.to_dict())
    token_ids = torch.randint(50, (1, TOKENS))
    forward, loss = counted(lambda: projected(model, token_ids, num_projected))
    backward, _ = counted(loss.backward)
    square = above_causal(shape, TOKENS)
    assert forward == shape.forward(TOKENS, num_projected) + square
    assert backward == shape.backward(TOKENS, num_projected) + 2 * square


def test_prefill_and_decode_of_whoever_writes() -> None:
    values = config()
    model, shape = LlamaForCausalLM(values), ModelShape.from_config(values.to_dict())
    cache, prompt, completion = DynamicCache(config=values), 7, 5

    def step(num_tokens: int) -> float:
        run = lambda: model(input_ids=torch.randint(50, (1, num_tokens)), past_key_values=cache, logits_to_keep=1)  # noqa: E731
        return counted(run)[0]

    ledger = rollout_ledger(shape, prompt, [completion])
    assert step(prompt) == ledger.rollout_prefill + above_causal(shape, prompt)
    assert sum(step(1) for _ in range(completion - 1)) == ledger.rollout_decode  # one query has no square


@pytest.mark.parametrize("is_ragged", [False, True])
def test_a_masked_prefill_executes_the_whole_square(is_ragged: bool) -> None:
    values = config()
    model, shape = LlamaForCausalLM(values), ModelShape.from_config(values.to_dict())
    mask = torch.ones(3, TOKENS, dtype=torch.long)
    mask[0, : 4 * is_ragged] = 0
    run = lambda: model(input_ids=torch.randint(50, (3, TOKENS)), attention_mask=mask, logits_to_keep=1)  # noqa: E731
    assert counted(run)[0] == shape.padded_prefill(3, TOKENS, is_masked=True)


ON = [
    ADAPTABLE,
    ("q_proj", "k_proj", "v_proj"),
    ("q_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
]


@pytest.mark.parametrize("targets", ON, ids="+".join)
def test_adapters_at_any_height_of_the_block(targets: Sequence[str]) -> None:
    """Exact but for keys without an adapter: written out, their gradient in the first block is left out as well."""
    model, shape = adapted_model(targets)
    forward, loss = counted(lambda: projected(model, torch.randint(50, (1, TOKENS)), 3))
    backward, _ = counted(loss.backward)
    square = above_causal(shape, TOKENS)
    assert shape.adapter is not None
    reached = 1 - shape.adapter.unreached_attention_width / shape.attention_width
    assert forward == shape.forward(TOKENS, 3) + square
    expected = shape.backward(TOKENS, 3) + 2 * square * reached
    assert backward == pytest.approx(expected, rel=1e-2 if targets == ("q_proj", "v_proj") else 1e-12)


@pytest.mark.parametrize("targets", ON, ids="+".join)
def test_recomputed_blocks_with_adapters(targets: Sequence[str]) -> None:
    plain, shape = adapted_model(targets)
    again, _ = adapted_model(targets, recomputes_blocks=True)
    token_ids = torch.randint(50, (1, TOKENS))
    backward = [counted(projected(model, token_ids, 3).backward)[0] for model in (plain, again)]
    assert backward[1] - backward[0] == shape.recompute(TOKENS) + above_causal(shape, TOKENS)
