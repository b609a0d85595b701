"""The weights of a Hugging Face folder, file by file: how many there are, and in another precision."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors import safe_open

_LENGTH_BYTES = 8


def num_weights(folder: Path) -> int:
    """How many numbers the safetensors files of a folder hold, by their headers alone."""
    return sum(math.prod(shape) for path in folder.glob("*.safetensors") for shape in _shapes(path))


def cast_weights(source: Path, target: Path, dtype: str) -> int:
    """Write a safetensors file with its floating-point tensors in `dtype`, a name of torch's.

    How many of the numbers became infinite: then `target` is not written.
    """
    import torch
    from safetensors.torch import save_file

    wanted = getattr(torch, dtype)
    tensors, lost = {}, 0
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
        for name in file.keys():  # noqa: SIM118  # no mapping
            tensor = file.get_tensor(name)
            if tensor.is_floating_point():
                cast = tensor.to(wanted)
                lost += int((torch.isinf(cast) & ~torch.isinf(tensor)).sum())
                tensor = cast
            tensors[name] = tensor
    if not lost:
        save_file(tensors, target, metadata=metadata or {"format": "pt"})
    return lost


def _shapes(path: Path) -> list[list[int]]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(_LENGTH_BYTES), "little")))
    return [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
