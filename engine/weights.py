"""A model's weights as files: an ordinary Hugging Face folder that transformers opens, whatever was trained.

With LoRA the adapter lies merged into the weights of the folder, and beside them in `adapter/` as a plain peft folder. At
the top an adapter_config.json would make transformers look for the base instead of opening the folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from engine.adapter import ADAPTER_FOLDER
from engine.errors import RunError
from engine.language_model import LanguageModel

# Merged anew on another machine, a weight may differ by rounding; a weight of another base differs by far more.
_BASE_TOLERANCE = 1e-3


def save_weights(folder: Path, model: LanguageModel, whole: dict[str, torch.Tensor] | None = None) -> None:
    """Write config and weights into a folder, with LoRA merged ones in the adapter's precision and the adapter itself.

    `whole` are the weights of a sharded model.
    """
    if model.adapter is None:
        model.module.save_pretrained(folder, state_dict=whole)
        return
    model.module.save_pretrained(folder, state_dict=model.state_dict())
    config = folder / "config.json"
    # transformers opens a folder in the dtype of its config, which is that of the base: a low one would round the adapter away.
    values = json.loads(config.read_text()) | {"dtype": "float32"}
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    model.adapter.save(folder / ADAPTER_FOLDER)


def restore_weights(folder: Path, model: LanguageModel) -> None:
    """Put the weights of a folder into a model, with LoRA those of the adapter; RunError("bad_checkpoint") if they do not fit."""
    weights = _saved(folder)
    module = model.module
    mine = model.state_dict() if model.shards is None else dict(module.state_dict())
    tied = set(getattr(module, "all_tied_weights_keys", None) or {})
    if _differing(mine, weights, tied) and model.adapter is None:
        weights = _under_own_names(folder, module) or weights
    differing = _differing(mine, weights, tied)
    if differing:
        raise RunError("bad_checkpoint", f"{folder} does not fit the student: {differing[:3]} differ.")
    if model.adapter is None:
        if model.shards is not None:
            weights = {name: model.shards.part(weight, mine[name]) for name, weight in weights.items()}
        module.load_state_dict(weights, strict=False)
        if model.shards is None:  # the parts of tied weights are one tensor already
            module.tie_weights()
        return
    model.adapter.load(folder / ADAPTER_FOLDER)
    _check_base(folder, weights, model.state_dict())


def _saved(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    return weights


def _differing(mine: dict[str, torch.Tensor], found: dict[str, torch.Tensor], tied: set[str]) -> list[str]:
    """Names that only one of both has, or that have two shapes; of tied weights one name may be missing."""
    shapes = [{name: tensor.shape for name, tensor in weights.items()} for weights in (mine, found)]
    names = shapes[0].keys() | shapes[1].keys()
    return sorted({name for name in names if shapes[0].get(name) != shapes[1].get(name)} - (tied - found.keys()))


def _under_own_names(folder: Path, module: PreTrainedModel) -> dict[str, torch.Tensor] | None:
    """The weights under the module's names: experts, which a module keeps as one tensor, are saved one by one."""
    dtype = next(module.parameters()).dtype
    try:
        opened, loading = type(module).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except Exception:  # the folder of another architecture: the caller says what differs
        return None
    return None if loading["missing_keys"] or loading["unexpected_keys"] else dict(opened.state_dict())


def _check_base(folder: Path, saved: dict[str, torch.Tensor], merged: dict[str, torch.Tensor]) -> None:
    """RunError("bad_checkpoint") when the base that is loaded is not the one under the saved adapter."""
    for name, tensor in saved.items():
        found = merged[name].cpu().to(tensor.dtype)
        if not torch.allclose(found, tensor, rtol=_BASE_TOLERANCE, atol=_BASE_TOLERANCE):
            raise RunError(
                "bad_checkpoint",
                f"{folder} was trained on another base ({name} differs); restore the model at student.path or start afresh.",
            )
