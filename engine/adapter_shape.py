"""What low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) add to the FLOPs of a model. It imports without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from engine.frozen import Frozen

# The matrix products of a block in the order in which they run; those of one stage read the same input.
_STAGES = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
ADAPTABLE = tuple(name for stage in _STAGES for name in stage)


class AdapterShape(Frozen):
    """Adapters beside frozen blocks; everything else, the head included, is frozen too."""

    parameters: int
    """Weights of all adapters, both factors: rank × (inputs + outputs) of each adapted product."""
    unreached_parameters: int = 0
    """Weights, frozen and of adapters, whose input needs no gradient: they stand in the first block before its first
    adapter, or read that adapter's input. Nothing below them is trained."""
    unreached_attention_width: int = 0
    """heads × head dimension of the first block where its first adapter stands behind the attention, else 0."""
    unrecomputed_parameters: int = 0
    """Weights of each block's last product: of `down_proj`, or of its adapter's second factor where it has one."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], rank: int, targets: Collection[str]) -> AdapterShape:
        """Of adapters on `targets` (names in ADAPTABLE) in every block of a Llama-shaped model with this `config.json`.

        Raises ValueError for other names and for configs of another kind.
        """
        unknown = sorted(set(targets) - set(ADAPTABLE))
        if unknown or not targets:
            raise ValueError(f"adapters stand on {', '.join(ADAPTABLE)}, not on {', '.join(unknown) or 'nothing'}.")
        sizes = _sizes(config)
        layers = int(config["num_hidden_layers"])
        lowest = next(at for at, stage in enumerate(_STAGES) if set(stage) & set(targets))
        unreached = sum(sizes[name][0] * sizes[name][1] for stage in _STAGES[: lowest + 1] for name in stage)
        first_factors = sum(rank * sizes[name][0] for name in _STAGES[lowest] if name in targets)
        inputs, outputs = sizes["down_proj"]
        return cls(
            parameters=layers * rank * sum(sum(sizes[name]) for name in set(targets)),
            unreached_parameters=unreached + first_factors,
            unreached_attention_width=sizes["o_proj"][0] if lowest else 0,
            unrecomputed_parameters=layers * outputs * (rank if "down_proj" in targets else inputs),
        )


def _sizes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each product of a block."""
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        intermediate = int(config["intermediate_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"config.json lacks {error}; adapters of such a model cannot be counted.") from None
    head_dim = int(config.get("head_dim") or hidden // heads)
    query, kv = heads * head_dim, int(config.get("num_key_value_heads") or heads) * head_dim
    return {
        "q_proj": (hidden, query),
        "k_proj": (hidden, kv),
        "v_proj": (hidden, kv),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, intermediate),
        "up_proj": (hidden, intermediate),
        "down_proj": (intermediate, hidden),
    }
