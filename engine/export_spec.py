"""Exports: a checkpoint as a folder, a GGUF file or a repository of the hub. It imports without torch.

What is asked and what became of it, for the engine, the API and the command line; see engine/export.py.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from engine.frozen import Frozen, Reference
from engine.manifest import ManifestFile
from engine.spec import RunSpec

SavedAs = Literal["saved", "float32", "bfloat16", "float16"]
GgufType = Literal["f32", "f16", "bf16", "q8_0"]

_MAX_REPOSITORY = 96  # characters, the hub's own limit
_PART = re.compile(r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)


def _is_repository(name: str) -> str:
    namespace, _, rest = name.partition("/")
    if not (_PART.fullmatch(namespace) and _PART.fullmatch(rest)):
        problem = (
            "a repository is named OWNER/NAME, each of letters, digits, dot, dash and underscore; write it like that."
        )
    elif len(name) > _MAX_REPOSITORY:
        problem = f"that has {len(name)} characters and the hub takes {_MAX_REPOSITORY}; shorten it."
    elif "--" in name or ".." in name or name.endswith(".git"):
        problem = "the hub takes no -- and no .. in a name and no .git at its end; choose another one."
    else:
        return name
    raise PydanticCustomError("reference", "but {problem}", {"problem": problem})


Repository = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_is_repository)]


class MergedFolder(Frozen):
    """A plain Hugging Face folder for transformers, vLLM and the like: LoRA merged into the weights, no optimizer state."""

    kind: Literal["merged"] = "merged"
    dtype: SavedAs = "saved"
    """Precision of the weights; `saved` leaves them as the checkpoint has them, 16 bits halve the size of float32."""


class GgufFile(Frozen):
    """One GGUF file for llama.cpp, Ollama or LM Studio, written by llama.cpp's own converter."""

    kind: Literal["gguf"] = "gguf"
    file_type: GgufType = "f16"
    """Precision of the matrices: f32 4, f16 and bf16 2, q8_0 1.06 bytes a weight."""


class HubRepository(Frozen):
    """A model repository of the Hugging Face hub, or of what is at HF_ENDPOINT, with a model card; the token is the worker's."""

    kind: Literal["hub"] = "hub"
    repository: Repository
    """OWNER/NAME; it is made unless it exists."""
    private: bool = True
    """Whether only its owner sees the repository; one that exists stays as it is."""
    into_existing: bool = False
    """Whether a repository that exists and holds files gets a commit more; otherwise that is refused."""
    dtype: SavedAs = "saved"
    """Precision of the weights; `saved` leaves them as the checkpoint has them."""


ExportChoice = Annotated[MergedFolder | GgufFile | HubRepository, Field(discriminator="kind")]


class CardFacts(Frozen):
    """What a model card says of a checkpoint's history."""

    run_id: str
    run_name: str
    experiment_name: str
    step: int
    spec: RunSpec
    num_prompts: int | None
    """Prompts of the full-length evaluations; None when this step was not evaluated."""
    metrics: dict[str, float | None]
    """Of the student at this step."""
    base_metrics: dict[str, float | None]
    """Of the student before training."""
    training_flops: float | None


class ExportSpec(Frozen):
    """An export for an engine, which knows no database."""

    id: Annotated[str, Field(min_length=1, max_length=64)]
    """Of the export; a commit names it, so that one that is tried again is not made twice."""
    folder: Reference
    """The checkpoint's folder: a path, or `home:…`."""
    manifest_sha256: str | None
    """What its manifest.json must hash to."""
    title: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,99}$")]
    """Begin of a file's name, such as `prefix-8-step-120`."""
    export: ExportChoice
    card: CardFacts


class ExportResult(Frozen):
    """What an export made."""

    kind: Literal["merged", "gguf", "hub"]
    files: list[ManifestFile]
    """Every file with its size and sha256."""
    is_kept: bool
    """Whether the files lie on this installation; those of a hub do not."""
    url: str | None = None
    """Of the repository."""
    commit: str | None = None
    """Of the repository, 40 hexadecimal digits."""
    notes: list[str]
    """What a reader must know of them, one sentence each."""
    seconds: float

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.num_bytes for file in self.files)
