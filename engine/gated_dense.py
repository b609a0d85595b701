"""The kinds of models whose weights can be counted from a config.json. It imports without torch.

They are dense decoders with a gated MLP and grouped-query attention, as Llama is. Counted as one, a mixture of experts would
have a sixth of its weights or less, and a model without the gate a third too many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class _Defaults(NamedTuple):
    """What the class in transformers takes for a field that a config.json leaves out, as published ones do."""

    tie_word_embeddings: bool
    num_key_value_heads: int | None = None
    """None is the number of heads."""
    head_dim: int | None = None
    """None is hidden / heads."""


# By `model_type`; a test holds every entry against the model itself.
_KINDS = {
    "cohere": _Defaults(True),
    "cohere2": _Defaults(True),
    "ernie4_5": _Defaults(True, 2, 128),
    "exaone4": _Defaults(False, 32),
    "gemma": _Defaults(True, 16, 256),
    "gemma2": _Defaults(True, 4, 256),
    "gemma3_text": _Defaults(True, 4, 256),
    "glm": _Defaults(False, 2, 128),
    "glm4": _Defaults(False, 2, 128),
    "granite": _Defaults(False),
    "llama": _Defaults(False),
    "mistral": _Defaults(False, 8),
    "olmo": _Defaults(False),
    "olmo2": _Defaults(False),
    "olmo3": _Defaults(False),
    "phi3": _Defaults(False),
    "qwen2": _Defaults(False, 32),
    "qwen3": _Defaults(False, 32, 128),
    "seed_oss": _Defaults(False, 8, 128),
    "smollm3": _Defaults(True, 4),
}
GATED_DENSE = tuple(_KINDS)
"""Values of `model_type`."""


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with what it leaves to its class; ValueError when it is of a kind that is not counted."""
    kind = str(config.get("model_type"))
    if kind not in _KINDS:
        raise ValueError(
            f"its model_type is {kind[:60]!r}; only dense decoders with a gated MLP, such as llama, qwen3 and gemma2, can be estimated"
        )
    return {**_KINDS[kind]._asdict(), **config}
