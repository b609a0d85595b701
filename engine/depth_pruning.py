"""A copy of a model folder without some of its layers: a student that shares the tokenizer and starts near its teacher.

Works on the files, one shard at a time: the weights that stay keep their bits and their precision, and nothing is trained.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import is_out_of_memory
from engine.locations import resolve
from engine.model_guard import problem_of_folder

_INDEX = "model.safetensors.index.json"
_LAYER = re.compile(r"\.(\d+)\.")
_COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*")
_NOT_COPIED = {"config.json", _INDEX}
_PROVENANCE = "pruned_from.json"  # names the source's folder alone: copies go to other machines


@dataclass(frozen=True)
class Pruned:
    """What was written."""

    num_layers: int
    num_weights: int
    """How many numbers the weight files hold."""


def prune_layers(source: str, target: Path, dropped: Collection[int]) -> Pruned:
    """Fill the empty folder `target` with the model of a folder without its layers `dropped`, which count from 0.

    `source` is a path, `home:…` or `builtin:…`. Raises ValueError with a sentence when it is no sound model folder, has no
    such layers, or when transformers would not find all weights in what was written.
    """
    folder = Path(resolve(source)).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"{source!r} is no folder on this machine; name a Hugging Face model folder, one of the hub after downloading it."
        )
    problem = problem_of_folder(folder)
    if problem is not None:
        raise ValueError(f"{source!r} is {problem}.")
    config = json.loads((folder / "config.json").read_bytes())
    count_key = _count_key(config, folder, source)
    num_layers = config[count_key]
    _require_layers(dropped, num_layers, source)
    kept = [layer for layer in range(num_layers) if layer not in dropped]
    number_of = {layer: number for number, layer in enumerate(kept)}
    for pattern in _COPIED:
        for path in folder.glob(pattern):
            if path.name not in _NOT_COPIED and path.is_file():
                shutil.copyfile(path, target / path.name)
    (target / "config.json").write_text(json.dumps(_config_of(config, count_key, kept), indent=2) + "\n", "utf-8")
    num_weights = _write_weights(folder, target, number_of, num_layers, source)
    provenance = {"source": folder.name, "num_layers": num_layers, "dropped_layers": sorted(dropped)}
    (target / _PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", "utf-8")
    _require_whole(target, source)
    return Pruned(len(kept), num_weights)


def _count_key(config: Mapping[str, Any], folder: Path, source: str) -> str:
    """The architecture's own name for its number of layers."""
    from transformers import AutoConfig

    try:
        known = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever else transformers raises here means one thing to a person
        raise ValueError(f"{source!r} has a config.json that transformers cannot read: {str(error)[:200]}") from None
    key = str(known.attribute_map.get("num_hidden_layers", "num_hidden_layers"))
    if not isinstance(config.get(key), int) or "text_config" in config:
        raise ValueError(f"{source!r} does not say in config.json how many layers it has ({key}); it cannot be pruned.")
    return key


def _require_layers(dropped: Collection[int], num_layers: int, source: str) -> None:
    wrong = sorted(layer for layer in dropped if not 0 <= layer < num_layers)
    if wrong:
        raise ValueError(f"There is no layer {wrong[0]}: {source!r} has {num_layers} layers, 0 to {num_layers - 1}.")
    if not 0 < len(set(dropped)) < num_layers:
        raise ValueError(
            f"{len(set(dropped))} of {num_layers} layers would be dropped; name at least one and keep at least one."
        )


def _config_of(config: Mapping[str, Any], count_key: str, kept: list[int]) -> dict[str, Any]:
    """With the number of layers that stay; lists with an entry for each layer lose those of the others."""
    num_layers = config[count_key]
    pruned = {
        name: [value[layer] for layer in kept]
        if isinstance(value, list) and "layer" in name and len(value) == num_layers
        else value
        for name, value in config.items()
    }
    return pruned | {count_key: len(kept)}


def _write_weights(folder: Path, target: Path, number_of: Mapping[int, int], num_layers: int, source: str) -> int:
    """Each weight file without the dropped layers, and the index if there was one; how many numbers they hold."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    seen: set[int] = set()
    num_weights = num_bytes = 0
    for path in sorted(folder.glob("model*.safetensors")):
        tensors = {}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                layer = _LAYER.search(name)
                if layer is not None:
                    seen.add(int(layer[1]))
                    if int(layer[1]) not in number_of:
                        continue
                    name_now = f"{name[: layer.start()]}.{number_of[int(layer[1])]}.{name[layer.end() :]}"
                else:
                    name_now = name
                tensors[name_now] = file.get_tensor(name)
        if tensors:
            save_file(tensors, target / path.name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, path.name)
        num_weights += sum(tensor.numel() for tensor in tensors.values())
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if seen != set(range(num_layers)):
        raise ValueError(
            f"The weights of {source!r} are those of {len(seen)} numbered layers, its config has {num_layers}; get a complete copy."
        )
    if (folder / _INDEX).exists():
        text = json.dumps({"metadata": {"total_size": num_bytes}, "weight_map": index}, indent=2)
        (target / _INDEX).write_text(text + "\n", "utf-8")
    return num_weights


def _require_whole(target: Path, source: str) -> None:
    """Opened as a run would: an architecture whose layers depend on their number in another way loses weights here."""
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()
    try:
        _, loading = AutoModelForCausalLM.from_pretrained(
            target, dtype="auto", use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # as above; want of memory is told as what it is
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{source!r} without these layers cannot be opened ({str(error)[:200]}); drop others."
        ) from error
    wrong = sorted(loading["missing_keys"]) + sorted(map(str, loading["unexpected_keys"]))
    wrong += sorted(str(one) for one in loading.get("mismatched_keys", ()))
    if wrong:
        raise ValueError(
            f"{source!r} without these layers does not fit its architecture: {len(wrong)} weights, {wrong[0]} first; drop others."
        )
