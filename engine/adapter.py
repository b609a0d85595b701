"""LoRA by peft: one copy of the base, used with the adapter (the student) or without it (the teacher, if it is the same).

peft takes half a second to import and is imported only where an adapter is made. r rank, scaling = alpha / rank.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.adapter_shape import AdapterShape
from engine.adapter_spec import Lora
from engine.errors import RunError
from engine.findings import Finding

if TYPE_CHECKING:
    from engine.language_model import LanguageModel
    from engine.model_spec import ModelSpec

ADAPTER_FOLDER = "adapter"
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_NAME = "default"  # peft's own name for the only adapter of a model


@dataclass(frozen=True)
class Adapter:
    """The LoRA layers inside a module. They are on, but within `left_out`."""

    peft: Any
    """The PeftModel around the module."""
    layers: dict[str, Any]
    """The LoRA layers by the names of the linear layers that they stand for."""

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Within it the module is its base alone."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    @property
    def num_parameters(self) -> int:
        """Weights of the adapter."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's weights themselves, by the names that peft gives them in a file."""
        from peft import get_peft_model_state_dict

        found: dict[str, Tensor] = get_peft_model_state_dict(self.peft, adapter_name=_NAME, save_embedding_layers=False)
        return found

    def save(self, folder: Path) -> None:
        """Write a plain peft adapter folder."""
        folder.mkdir()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
        values = self.peft.peft_config[_NAME].to_dict()
        values |= {"inference_mode": True, "target_modules": sorted(values["target_modules"])}
        (folder / _CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True, default=str) + "\n")

    def load(self, folder: Path) -> None:
        """Take the weights of an adapter folder; RunError("bad_checkpoint") when they do not fit."""
        try:
            saved = load_file(folder / _WEIGHTS)
        except OSError as error:
            raise RunError("bad_checkpoint", f"{folder} has no {_WEIGHTS}; use a checkpoint of a LoRA run.") from error
        mine = self.tensors()
        differing = [
            name
            for name in mine.keys() | saved.keys()
            if name not in mine or name not in saved or mine[name].shape != saved[name].shape
        ]
        if differing:
            raise RunError("bad_checkpoint", f"{folder} does not fit the adapter: {sorted(differing)[:3]} differ.")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(saved[name])

    def plain_state(self, module: nn.Module, *, merged: bool) -> dict[str, Tensor]:
        """The module's weights under the architecture's own names, with the adapter merged into copies or left out."""
        state = {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in module.state_dict().items()
            if ".lora_" not in name
        }
        if merged:
            state |= {f"{name}.weight": merged_weight(layer) for name, layer in self.layers.items()}
        return state


def merged_weight(layer: Any) -> Tensor:
    """W + scaling · B·A of a LoRA layer in the adapter's dtype (at least float32), as a copy."""
    merged: Tensor = layer.base_layer.weight.detach() + layer.get_delta_weight(_NAME).detach()
    return merged


def factors(layer: Any) -> tuple[Tensor, Tensor]:
    """A [r, in] and scaling · B [out, r] of a LoRA layer, in the dtype of its base."""
    down, up = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
    dtype = layer.base_layer.weight.dtype
    return down.detach().to(dtype), (up.detach() * layer.scaling[_NAME]).to(dtype)


def with_adapter(model: LanguageModel, lora: Lora, spec: ModelSpec, seed: int) -> LanguageModel:
    """The model with a fresh adapter, which changes nothing yet: B is zero. Its own weights are frozen.

    Raises RunError("bad_model") when a target module is no linear layer of the blocks.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    targets = _targets(model, lora)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(model.module, config)
    # As the spec names it: peft would write the path on this machine.
    config.base_model_name_or_path, config.revision = spec.path, spec.revision
    layers = {name: layer for name, layer in model.module.named_modules() if isinstance(layer, LoraLayer)}
    for index, layer in enumerate(layers.values()):
        _fill(layer.lora_A[_NAME].weight, seed, index)
    adapter = Adapter(peft, layers)
    return replace(
        model, adapter=adapter, shape=model.shape.model_copy(update={"adapter": _shape(model, lora, adapter)})
    )


def base_of(model: LanguageModel) -> LanguageModel:
    """The frozen base of a model with an adapter, as a model of its own without a second copy of the weights."""
    shape = model.shape.model_copy(update={"adapter": None})
    return replace(model, leaves_out_adapter=True, autocast_dtype=None, shape=shape)


def _targets(model: LanguageModel, lora: Lora) -> list[str]:
    names = {
        name.rpartition(".")[2]
        for name, part in model.module.get_decoder().named_modules()
        if isinstance(part, nn.Linear)
    }
    unknown = sorted(set(lora.target_modules) - names)
    if unknown or not names:
        message = (
            f"adapter.target_modules has {', '.join(unknown) or 'nothing to adapt'} but the student's linear layers are "
            f"{', '.join(sorted(names)) or 'none'}; choose among them or leave it empty."
        )
        raise RunError("bad_model", message, [Finding(field="adapter.target_modules", message=message)])
    return sorted(lora.target_modules or names)


def _fill(weight: Tensor, seed: int, index: int) -> None:
    """Kaiming's uniform numbers, as peft draws them, but from the run's seed and the layer's number alone."""
    counter = np.array([0, 0, 3, 0], dtype=np.uint64)  # the 3 keeps clear of all other numbers of a run
    generator = np.random.Generator(np.random.Philox(key=[seed, index], counter=counter))
    bound = 1 / math.sqrt(weight.shape[1])
    with torch.no_grad():
        weight.copy_(torch.from_numpy(generator.uniform(-bound, bound, tuple(weight.shape))))


def _shape(model: LanguageModel, lora: Lora, adapter: Adapter) -> AdapterShape:
    """What the adapter costs; for blocks of another kind than Llama's without what lies below the first adapter."""
    try:
        return AdapterShape.from_config(model.module.config.to_dict(), lora.rank, _targets_of(adapter))
    except ValueError:
        return AdapterShape(parameters=adapter.num_parameters)


def _targets_of(adapter: Adapter) -> set[str]:
    return {name.rpartition(".")[2] for name in adapter.layers}
