"""What FLOPs and memory depend on, counted from the loaded modules, so that it holds for any architecture."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from engine.flops import ModelShape
from engine.gradient_checkpointing import last_product_parameters


def shape_of(module: PreTrainedModel) -> ModelShape:
    """The shape of a loaded model; AttributeError when it is no transformer with attention heads."""
    config = module.config.get_text_config()
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    layers = int(config.num_hidden_layers)
    head = module.get_output_embeddings().weight
    return ModelShape(
        block_parameters=_run_parameters(module),
        head_parameters=head.numel(),
        attention_width=layers * heads * head_dim,
        hidden=int(config.hidden_size),
        vocabulary=head.shape[0],
        layers=layers,
        kv_width=layers * kv_heads * head_dim,
        last_product_parameters=last_product_parameters(module),
    )


def _run_parameters(module: PreTrainedModel) -> int:
    """Weights of the matrix products that one token runs through: of all experts of a layer, only those it is sent to."""
    count = 0
    for part in module.get_decoder().modules():
        if isinstance(part, nn.Linear | Conv1D):
            count += part.weight.numel()
        experts = getattr(part, "num_experts", None)
        if not isinstance(experts, int) or experts < 1:
            continue
        for weight in part.parameters(recurse=False):
            if weight.ndim == 3 and weight.shape[0] == experts:  # all experts in one tensor
                count += weight.numel() * _experts_per_token(module) // experts
            elif weight.ndim == 2 and tuple(weight.shape) == (experts, module.config.get_text_config().hidden_size):
                count += weight.numel()  # the router, where it is no Linear
    return count


def _experts_per_token(module: PreTrainedModel) -> int:
    config = module.config.get_text_config()
    return int(getattr(config, "num_experts_per_tok", None) or getattr(config, "experts_per_token", None) or 1)
