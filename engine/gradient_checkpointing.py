"""Gradient checkpointing: a block keeps only its input in the forward pass and runs again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from engine.errors import RunError
from engine.findings import Finding


def checkpoint_blocks(module: PreTrainedModel) -> None:
    """Let every block of the backbone recompute its activations; RunError("bad_model") where it has no such blocks.

    transformers does this in training mode only, which would switch dropout on as well: ours stays in evaluation mode.
    The caller must run the backbone without a cache, which a second run of a block would fill twice.
    """
    blocks = blocks_of(module)
    if not blocks:
        message = (
            f"gradient_checkpointing is 'always' but {type(module).__name__} has no blocks that can be recomputed; "
            "set it to never."
        )
        raise RunError("bad_model", message, [Finding(field="gradient_checkpointing", message=message)])
    for block in blocks:
        block.forward = _recomputed(block.forward)


def can_recompute(module: PreTrainedModel) -> bool:
    """Whether the backbone has blocks that `checkpoint_blocks` knows."""
    return bool(blocks_of(module))


def last_product_parameters(module: PreTrainedModel) -> int:
    """Weights of each block's last matrix product, which a recomputation does not reach: only its input is needed."""
    products = [[m for m in block.modules() if isinstance(m, nn.Linear)] for block in blocks_of(module)]
    return sum(of_block[-1].weight.numel() for of_block in products if of_block)


def blocks_of(module: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """The blocks of the backbone, as transformers marks them; none for an architecture that it marks none of."""
    return [block for block in module.get_decoder().modules() if isinstance(block, GradientCheckpointingLayer)]


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Nothing in a block is random, so there is no generator state to keep.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
