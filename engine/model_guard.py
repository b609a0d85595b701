"""What a model folder must not hold: code, other models in its place, files that only pretend. Read before transformers does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.safetensors_header import require_sound_header

_FORBIDDEN_KEYS = frozenset({"auto_map", "_attn_implementation_internal", "trust_remote_code"})
_IMPLEMENTATION_KEYS = frozenset({"attn_implementation", "_attn_implementation", "experts_implementation"})
_BRINGS_CODE = "which brings code of its own; only models that transformers knows are loaded"
_MAX_CONFIG_BYTES = 10_000_000
_MAX_TOKENIZER_BYTES = 256 * 2**20  # the largest in use have some 35 MB
_INDEX = ".safetensors.index.json"


def problem_of_folder(folder: Path) -> str | None:
    """What is wrong with a model folder, as the end of a sentence about it; None when it may be opened."""
    if not (folder / "config.json").is_file():
        return "a folder without config.json; name a Hugging Face model folder"
    # What lies one level down is not looked at by transformers, apart from custom_generate/generate.py.
    if any(folder.glob("*.py")) or any(folder.glob("*/*.py")):
        return _BRINGS_CODE
    if (folder / "adapter_config.json").exists():
        return "a folder with adapter_config.json, which would open another model in its place; merge the adapter first"
    return problem_of_configs(folder) or _problem_of_files(folder)


def problem_of_configs(folder: Path) -> str | None:
    """The same, of the JSON files alone by which transformers decides what to do."""
    for path in sorted(folder.glob("*config.json")):
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            return (
                f"whose {path.name} has {path.stat().st_size} bytes, the limit is {_MAX_CONFIG_BYTES}; get a sound copy"
            )
        try:
            values = json.loads(path.read_bytes())
            if not isinstance(values, dict):
                return f"whose {path.name} is not an object; get a sound copy"
            if any(_asks_for_code(name, value) for name, value in _entries(values)):
                return _BRINGS_CODE
        except (ValueError, RecursionError) as error:
            return f"whose {path.name} is not JSON ({error}); get a sound copy"
    return None


def _asks_for_code(name: str, value: object) -> bool:
    # An implementation with a name such as org/kernel is fetched from the hub and run.
    is_fetched = name in _IMPLEMENTATION_KEYS and isinstance(value, str) and ("/" in value or ":" in value)
    return name in _FORBIDDEN_KEYS or is_fetched


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys with their values, however deep: configs hold those of their parts."""
    if isinstance(value, dict):
        yield from value.items()
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _entries(part)


def _problem_of_files(folder: Path) -> str | None:
    tokenizer = folder / "tokenizer.json"
    if tokenizer.exists() and tokenizer.stat().st_size > _MAX_TOKENIZER_BYTES:
        return f"whose tokenizer.json has {tokenizer.stat().st_size} bytes, the limit is {_MAX_TOKENIZER_BYTES}; get a sound copy"
    for path in sorted(folder.glob(f"*{_INDEX}")):
        stray = _stray_shard(path)
        if stray is not None:
            return f"whose {path.name} names {stray[:100]!r}, which is no file of this folder; get a sound copy"
    for path in sorted(folder.glob("*.safetensors")):
        try:
            require_sound_header(path)
        except ValueError as error:
            return f"whose {path.name} {error}; get a sound copy"
    return None


def _stray_shard(index: Path) -> str | None:
    """A file that an index names and that is no plain name, such as one of another folder; None when there is none."""
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return "nothing"
    return next((str(name) for name in shards if not isinstance(name, str) or Path(name).name != name), None)
