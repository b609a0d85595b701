"""A loaded model must be what the engine takes it for: its head, and that it goes on token by token behind padding.

Architectures differ in both, and a difference would not fail: it would train on wrong numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.decode_cache import decode_cache
from engine.model_files import bad_model
from engine.model_spec import ModelSpec

if TYPE_CHECKING:
    from engine.language_model import LanguageModel

# Difference between head(hidden) and the model's own logits above which the head is not what we take it for.
_HEAD_TOLERANCE = 1e-2
# |decoded - whole| / |whole| of the last hidden states: rounding, and no more.
_DECODING_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.3
_TRIAL_TOKENS = 6


@torch.no_grad()
def check_model(model: LanguageModel, spec: ModelSpec, field: str) -> None:
    """RunError("bad_model") when the model is not what the engine takes it for.

    Its logits must be finite and those of the head that the engine uses. And a padded row that goes on token by token must
    have the states of the whole text: the sampler pads prompts on the left and keeps a cache, the loss sees whole texts.
    """
    text = [(7 * i + 3) % model.head.vocabulary for i in range(_TRIAL_TOKENS)]
    token_ids = torch.tensor([text], device=model.device)
    try:
        with model.autocast():
            expected = model.module(input_ids=token_ids).logits[0].float()
            whole = model.hidden(token_ids)[0]
            found = model.head.logits(whole)
    except Exception as error:  # whatever the code of an architecture raises
        raise bad_model(
            field,
            f"{field}.path is {spec.path!r}, of the architecture {_kind(model)}, which cannot be run on tokens alone "
            f"({type(error).__name__}); choose a causal language model.",
        ) from error
    if not bool(expected.isfinite().all()):
        raise bad_model(field, f"{field}.path is {spec.path!r}, whose logits are not finite; its weights are damaged.")
    gap = float((expected - found).abs().max()) / max(1.0, float(expected.abs().max()))
    if not gap < _HEAD_TOLERANCE:
        raise bad_model(
            field,
            f"{field}.path is {spec.path!r}: its logits differ by {gap:.2g} from head(hidden); this architecture is not supported.",
        )
    _check_decoding(model, spec, field, text, whole[-1])


def _check_decoding(model: LanguageModel, spec: ModelSpec, field: str, text: list[int], whole: Tensor) -> None:
    """Compare with the last state [H] of the whole text."""
    try:
        with model.autocast():
            decoded = _decoded(model, text)
    except Exception as error:  # whatever its code raises: it cannot be used in this way
        raise bad_model(
            field,
            f"{field}.path is {spec.path!r}, of the architecture {_kind(model)}, which cannot go on token by token behind padding "
            f"({type(error).__name__}); choose a transformer with a key/value cache.",
        ) from error
    # Double: the square of a large float32 state is beyond its range.
    gap = float((whole.double() - decoded.double()).norm() / whole.double().norm())
    # Of the products, not of the result: float32 states of bfloat16 products are no more exact than those.
    precision = model.autocast_dtype or model.head.weight.dtype
    if not gap < _DECODING_TOLERANCE.get(precision, _LOW_PRECISION_TOLERANCE):
        raise bad_model(
            field,
            f"{field}.path is {spec.path!r}, of the architecture {_kind(model)}, whose states behind padding differ by {gap:.1%} "
            "from those of the whole text; choose a transformer with a key/value cache.",
        )


def _kind(model: LanguageModel) -> str:
    return str(getattr(model.module.config, "model_type", "unknown"))


def _decoded(model: LanguageModel, text: list[int]) -> Tensor:
    """The last hidden state [H] of a text that is the padded row of a cache, which is cut and goes on by two tokens."""
    device, width = model.device, len(text)
    rows = torch.tensor([text[:1] * width, [model.pad_token_id] * 2 + text[:-2]], device=device)
    mask = torch.ones(2, width, dtype=torch.bool, device=device)
    mask[1, :2] = False
    position = (mask.cumsum(1) - 1).clamp(min=0)
    cache = decode_cache(model.module, width + 2)
    model.hidden(rows, past_key_values=cache, use_cache=True, attention_mask=mask, position_ids=position)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([2], device=device))
    mask = mask[1:]
    for place in (width - 2, width - 1):
        mask = torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        states = model.hidden(
            torch.tensor([[text[place]]], device=device),
            past_key_values=cache, use_cache=True, attention_mask=mask, position_ids=torch.tensor([[place]], device=device),
        )  # fmt: skip
    return states[0, -1]
