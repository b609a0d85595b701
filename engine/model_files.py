"""From a model's reference to its files: a folder, a GGUF file, or the hub; opened without running any code of theirs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from engine.errors import RunError
from engine.findings import Finding
from engine.gguf import UnreadableGguf, read_gguf, require_gguf
from engine.locations import resolve
from engine.model_spec import ModelSpec

_FORBIDDEN_CONFIG_KEYS = ("auto_map", "_attn_implementation_internal", "trust_remote_code")
_MAX_CONFIG_BYTES = 10_000_000


@dataclass(frozen=True)
class ModelFiles:
    """Where transformers finds a model."""

    location: str
    """A folder, or a hub id."""
    revision: str | None
    gguf_file: str | None
    """Name of the GGUF file in it."""


def open_tokenizer(spec: ModelSpec, field: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; RunError("bad_model") when there is none."""
    files = model_files(spec, field)
    try:
        if files.gguf_file is not None:
            require_gguf()
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            files.location, revision=files.revision, **_gguf(files)
        )
    except Exception as error:  # whatever transformers raises here means one thing to a person
        raise bad_model(
            field, f"{field}.path is {spec.path!r}, but its tokenizer cannot be opened: {_brief(error)}"
        ) from error
    return tokenizer


def open_module(spec: ModelSpec, field: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> PreTrainedModel:
    """The module with all its weights in `dtype`; RunError("bad_model") when some are missing or it cannot be opened."""
    files = model_files(spec, field)
    module: PreTrainedModel
    try:
        if files.gguf_file is not None:
            return read_gguf(_gguf_path(files), tokenizer, dtype)
        module, loading = AutoModelForCausalLM.from_pretrained(
            files.location, revision=files.revision, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except UnreadableGguf as error:
        raise bad_model(field, f"{field}.path is {spec.path!r}, but {error}.") from error
    except Exception as error:
        raise bad_model(
            field, f"{field}.path is {spec.path!r}, but the model cannot be opened: {_brief(error)}"
        ) from error
    if loading["missing_keys"]:  # transformers would go on with random numbers in their place
        missing = sorted(loading["missing_keys"])
        raise bad_model(
            field,
            f"{field}.path is {spec.path!r}, whose weights lack {len(missing)} tensors, {missing[0]} first; get a complete copy.",
        )
    return module


def model_files(spec: ModelSpec, field: str) -> ModelFiles:
    """Where the files are; RunError("bad_model") when a folder or a GGUF file is not there or asks for code of its own."""
    try:
        path = resolve(spec.location)
    except ValueError:
        raise bad_model(
            field, f"{field}.path is {spec.path!r}, but it leads out of its folder; correct the path."
        ) from None
    folder = Path(path).expanduser()
    if spec.location.endswith(".gguf"):
        if not _exists(folder, is_file=True):
            raise bad_model(
                field, f"{field}.path is {spec.path!r}, but there is no such file on this machine; correct the path."
            )
        return ModelFiles(str(folder.parent), None, folder.name)
    if _exists(folder):
        if spec.gguf_file is None:
            _check_config(folder, spec, field)
        elif not _exists(folder / spec.gguf_file, is_file=True):
            raise bad_model(
                field, f"{field}.path is {spec.path!r}, a folder without {spec.gguf_file}; correct {field}.gguf_file."
            )
        return ModelFiles(str(folder), None, spec.gguf_file)
    if spec.is_local:
        raise bad_model(
            field, f"{field}.path is {spec.path!r}, but there is no such folder on this machine; correct the path."
        )
    return ModelFiles(path, spec.hub_revision, spec.gguf_file)


def _check_config(folder: Path, spec: ModelSpec, field: str) -> None:
    """A folder must have a config, and neither it nor a file beside it may bring code."""
    config = folder / "config.json"
    if not config.is_file():
        raise bad_model(
            field, f"{field}.path is {spec.path!r}, a folder without config.json; name a Hugging Face model folder."
        )
    try:
        with config.open("rb") as file:
            values = json.loads(file.read(_MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise bad_model(field, f"{field}.path is {spec.path!r}, whose config.json is not JSON ({error}).") from None
    if not isinstance(values, dict):
        raise bad_model(field, f"{field}.path is {spec.path!r}, whose config.json is not an object.")
    if any(key in values for key in _FORBIDDEN_CONFIG_KEYS) or any(folder.glob("*.py")):
        raise bad_model(
            field,
            f"{field}.path is {spec.path!r}, which brings code of its own; only models that transformers knows are loaded.",
        )


def bad_model(field: str, message: str) -> RunError:
    """The refusal of a model, at the field of its path."""
    return RunError("bad_model", message, [Finding(field=f"{field}.path", message=message)])


def _gguf(files: ModelFiles) -> dict[str, str]:
    return {} if files.gguf_file is None else {"gguf_file": files.gguf_file}


def _gguf_path(files: ModelFiles) -> Path:
    """The file on this machine, downloaded if it is on the hub."""
    assert files.gguf_file is not None
    return Path(cached_file(files.location, files.gguf_file, revision=files.revision))


def _exists(path: Path, *, is_file: bool = False) -> bool:
    try:
        return path.is_file() if is_file else path.is_dir()
    except OSError:  # a name that no file system takes
        return False


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"
