"""The model pairs and prompts of the speed benchmarks.

`smollm2` is what `incipit models fetch smollm2` stores: SmolLM2-135M-Instruct and its copy of 26 layers. `random` is a pair
of small random Llamas with its tokenizer: 15 and 18 million parameters, four fifths of them in the head.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.locations import resolve

_SMOLLM2 = {"student": "home:models/smollm2/student-26", "teacher": "home:models/smollm2/teacher"}
_RANDOM_LAYERS = {"student": 4, "teacher": 8}
PAIRS = ("random", "smollm2")


@dataclass(frozen=True)
class Pair:
    """Folders of two models and the token ids of their prompts."""

    student: str
    teacher: str
    prompts: list[list[int]]

    def prompts_of_step(self, step: int, batch: int) -> list[list[int]]:
        """The same prompts for everybody, in the order of the file."""
        return [self.prompts[i % len(self.prompts)] for i in range(step * batch, (step + 1) * batch)]


def case_parser(description: str | None, *, batches: list[int], tokens: list[int]) -> argparse.ArgumentParser:
    """The options that the speed benchmarks share, with what they measure by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=batches)
    parser.add_argument("--tokens", type=int, nargs="+", default=tokens)
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    return parser


def opened_pair(name: str, folder: Path) -> Pair:
    """The pair of a name; the random models are written below `folder`. FileNotFoundError says how to get SmolLM2."""
    smollm2 = smollm2_pair()
    if name == "smollm2":
        return smollm2
    folders = {role: _random_model(folder / role, layers) for role, layers in _RANDOM_LAYERS.items()}
    return replace(smollm2, **folders)


def smollm2_pair() -> Pair:
    """What `incipit models fetch smollm2` stores; FileNotFoundError says so where it is not there."""
    for reference in _SMOLLM2.values():
        if not Path(resolve(reference)).is_dir():
            raise FileNotFoundError(f"{reference} is not there; run `incipit models fetch smollm2` and measure again.")
    folders = {role: resolve(reference) for role, reference in _SMOLLM2.items()}
    return Pair(**folders, prompts=_prompts(folders["teacher"]))


def _prompts(tokenizer_folder: str) -> list[list[int]]:
    """Grade-school questions as chats, 60 to 100 tokens."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_folder)
    lines = Path(resolve("home:data/gsm-symbolic/train.jsonl")).read_text("utf-8").splitlines()
    chats = [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in lines]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]


def _random_model(folder: Path, layers: int) -> str:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not folder.exists():
        torch.manual_seed(layers)
        config = LlamaConfig(
            vocab_size=49152, hidden_size=256, intermediate_size=704, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192, tie_word_embeddings=True,
            bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(resolve(_SMOLLM2["teacher"])).save_pretrained(folder)
    return str(folder)
