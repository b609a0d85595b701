"""What a safetensors file says that it holds, checked before anything is read into memory. It imports without torch.

A header of a few bytes can claim terabytes, and tensors that overlap or lie outside the file; the format forbids both.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 16 * 2**20
"""The largest in use have some 2 MB."""
MAX_TENSORS = 20_000
"""In one file; models with more of them are split into several."""
_LENGTH_BYTES = 8
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip


def require_sound_header(path: Path) -> None:
    """Raises ValueError, with the second half of a sentence, unless header and size of the file agree."""
    with path.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"claims a header of {header_bytes} bytes, the limit is {MAX_HEADER_BYTES}")
        if num_bytes < _LENGTH_BYTES + header_bytes:
            raise ValueError(f"has {num_bytes} bytes, fewer than its header of {header_bytes}")
        header = _parsed(file.read(header_bytes))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"names {len(tensors)} tensors, the limit is {MAX_TENSORS}")
    end = 0
    for first, last, name in sorted(_place(name, entry) for name, entry in tensors.items()):
        if first != end:
            raise ValueError(
                f"has {'a gap before' if first > end else 'another tensor at the place of'} {name[:100]!r}"
            )
        end = last
    if end != num_bytes - _LENGTH_BYTES - header_bytes:
        raise ValueError(f"has {num_bytes - _LENGTH_BYTES - header_bytes} bytes of tensors but names {end}")


def _parsed(text: bytes) -> Mapping[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"has a header that is no JSON object ({str(error)[:100]})") from None
    if not isinstance(header, dict):
        raise ValueError("has a header that is no JSON object")
    return header


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _place(name: str, entry: Any) -> tuple[int, int, str]:
    """First byte, byte behind the last, and name of a tensor, if its shape fills exactly these."""
    try:
        bits, shape, (first, last) = _BITS[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"describes {name[:100]!r} in a way that the format does not know") from None
    if math.prod(shape) * bits != (last - first) * 8:
        raise ValueError(f"gives {name[:100]!r} {last - first} bytes, which is not what its shape needs")
    return first, last, name
