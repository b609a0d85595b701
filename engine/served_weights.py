"""The student's weights of one step, as rollout servers load them, and how a server is known to have them."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from engine.language_model import LanguageModel
from engine.staging import put_in_place, sealed_files, staging_beside
from engine.weights import save_weights

MAX_FIXED_TOKENS = 128
_HEAD_FILE = "model-tied.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_CHANGE = 0.3  # of a tensor's spread: a stale head alone then differs by a nat


@dataclass(frozen=True)
class ServedWeights:
    """A folder with weights, their name, and what the engine finds of a fixed text with them."""

    version: str
    """What a server that has them calls its weights; another run, and another try at this one, has other names."""
    folder: Path
    fixed_tokens: list[int]
    expected: list[float]
    """Log-probability of each fixed token but the first, at temperature 1."""

    def gap(self, found: list[float]) -> float:
        """Mean difference in nats between a server's log-probabilities of the fixed tokens and the engine's."""
        return sum(abs(a - b) for a, b in zip(self.expected, found, strict=True)) / len(self.expected)


class WeightsFolder:
    """Where a run's weights lie for its servers."""

    def __init__(self, folder: Path, fixed_tokens: list[int]) -> None:
        """`fixed_tokens` are two at least, of both models' vocabulary."""
        self._folder = folder
        self._fixed_tokens = fixed_tokens[:MAX_FIXED_TOKENS]
        self._name = f"incipit-{secrets.token_hex(6)}"

    def write(self, student: LanguageModel, name: str) -> ServedWeights:
        """The weights that the student has now, under a name of their own."""
        folder = self._folder / name
        staging = staging_beside(folder)
        save_weights(staging, student)
        add_tied_weights(staging, student.module)
        sealed_files(staging)
        put_in_place(staging, folder)
        expected = token_logprobs(student, self._fixed_tokens)
        return ServedWeights(f"{self._name}-{name}", folder, self._fixed_tokens, expected)

    def keep_only(self, *kept: ServedWeights | None) -> None:
        """Take all others away."""
        folders = {weights.folder for weights in kept if weights is not None}
        for other in self._folder.iterdir():
            if other not in folders:
                shutil.rmtree(other, ignore_errors=True)

    def remove(self) -> None:
        """Take all weights away."""
        shutil.rmtree(self._folder, ignore_errors=True)


def add_tied_weights(folder: Path, module: PreTrainedModel) -> None:
    """Write the weights that transformers leaves out of a folder because they are others' too.

    vLLM 0.32 on a CPU keeps the old layout of a head that is tied to the embeddings unless weights of the head's own name come.
    """
    state = module.state_dict()
    tied = {name: state[name].clone() for name in getattr(module, "all_tied_weights_keys", None) or {} if name in state}
    if not tied:
        return
    save_file(tied, folder / _HEAD_FILE, metadata={"format": "pt"})
    index_path = folder / _INDEX_FILE
    if index_path.exists():
        index = json.loads(index_path.read_text())
        index["weight_map"] |= dict.fromkeys(tied, _HEAD_FILE)
        index_path.write_text(json.dumps(index, indent=2) + "\n")


@contextmanager
def changed(student: LanguageModel) -> Iterator[None]:
    """The student with other weights in its first block, embeddings, head and last norm; its own are back, bit for bit, afterwards.

    With them it is tried whether a server takes all the weights that it is given.
    """
    later = {id(p) for block in student.module.get_decoder().layers[1:] for p in block.parameters()}
    parameters = [p for p in student.module.parameters() if id(p) not in later]
    kept = [p.data for p in parameters]
    generator = torch.Generator().manual_seed(0)
    try:
        for p in parameters:
            noise = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
            spread = p.data.std() if p.numel() > 1 and p.data.std() > 0 else p.data.abs().mean()
            p.data = p.data + _CHANGE * spread * noise
        yield
    finally:
        for p, own in zip(parameters, kept, strict=True):
            p.data = own


@torch.no_grad()
def token_logprobs(model: LanguageModel, token_ids: list[int], temperature: float = 1.0) -> list[float]:
    """Log-probability of each token but the first under the model at a temperature."""
    ids = torch.tensor(token_ids, device=model.device)
    with model.autocast():
        states = model.hidden(ids[None])[0, :-1]
        logprobs = torch.log_softmax(model.head.logits(states) / temperature, -1)
    found: list[float] = logprobs.gather(-1, ids[1:, None]).squeeze(-1).tolist()
    return found
