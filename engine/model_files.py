"""From a model's reference to its files: a folder, a GGUF file, or the hub; opened without running any code of theirs."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from engine.errors import RunError, is_out_of_memory
from engine.findings import Finding
from engine.gguf import UnreadableGguf, read_gguf, require_gguf
from engine.locations import resolve
from engine.model_guard import problem_of_configs, problem_of_folder
from engine.model_spec import ModelSpec


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
            files.location, revision=files.revision, trust_remote_code=False, **_gguf(files)
        )
    except Exception as error:  # whatever else transformers raises here means one thing to a person
        if is_out_of_memory(error):
            raise
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
            files.location,
            revision=files.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,  # left out, it would be asked for where there is a terminal
            output_loading_info=True,
        )
    except UnreadableGguf as error:
        raise bad_model(field, f"{field}.path is {spec.path!r}, but {error}.") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
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


def empty_module(spec: ModelSpec, field: str) -> PreTrainedModel:
    """The module with the shapes of its weights alone, from its config; RunError("bad_model") when that cannot be read."""
    files = model_files(spec, field)
    try:
        config = AutoConfig.from_pretrained(files.location, revision=files.revision, trust_remote_code=False)
        with torch.device("meta"):
            module: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever else transformers raises here means one thing to a person
        raise bad_model(
            field, f"{field}.path is {spec.path!r}, but its config cannot be opened: {_brief(error)}"
        ) from error
    with contextlib.suppress(OSError):  # many models have none, and their config says the same
        module.generation_config = GenerationConfig.from_pretrained(files.location, revision=files.revision)
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
            _require(problem_of_folder(folder), spec, field)
        elif not _exists(folder / spec.gguf_file, is_file=True):
            raise bad_model(
                field, f"{field}.path is {spec.path!r}, a folder without {spec.gguf_file}; correct {field}.gguf_file."
            )
        return ModelFiles(str(folder), None, spec.gguf_file)
    if spec.is_local:
        raise bad_model(
            field, f"{field}.path is {spec.path!r}, but there is no such folder on this machine; correct the path."
        )
    files = ModelFiles(path, spec.hub_revision, spec.gguf_file)
    _require(_problem_of_hub_model(files), spec, field)
    return files


def hidden_width(spec: ModelSpec) -> int | None:
    """The hidden width in a model's config.json; None where there is none, as of a GGUF file, or it does not say."""
    try:
        files = model_files(spec, "student")
        config = cached_file(files.location, "config.json", revision=files.revision)
        width = json.loads(Path(config).read_text("utf-8")).get("hidden_size")
    except (RunError, OSError, ValueError, TypeError, AttributeError):  # who opens the model says what is wrong with it
        return None
    return width if isinstance(width, int) else None


def _problem_of_hub_model(files: ModelFiles) -> str | None:
    """What is wrong with the configs of a model of the hub; that there are none, opening it says better."""
    for name in ("config.json", "tokenizer_config.json"):
        try:
            config = cached_file(files.location, name, revision=files.revision)
        except (OSError, ValueError):
            continue
        problem = None if config is None else problem_of_configs(Path(config).parent)
        if problem is not None:
            return problem
    return None


def _require(problem: str | None, spec: ModelSpec, field: str) -> None:
    if problem is not None:
        raise bad_model(field, f"{field}.path is {spec.path!r}, {problem}.")


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
