"""Measure the fetched pair: do teacher and student differ as the README says?

    python -m experiments.smollm2.check HOME [--problems 48]

Greedy completions of the report problems by both models, and how far the student's predictions are from the
teacher's on the teacher's texts. HOME is the folder of `incipit models fetch smollm2`. Minutes of one core.
"""

import argparse
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from incipit.models import SPLIT_SIZES, FetchedPair, fetch_smollm2

MAX_TOKENS = 128
_BATCH = 8

CausalLM = Any  # transformers types neither what the Auto classes return nor generate
Ids = list[int]


@dataclass(frozen=True)
class Greedy:
    """What a model writes to the report problems."""

    accuracy: float
    ended: float
    """Share of completions that end by themselves within 128 tokens."""
    mean_tokens: float
    completions: list[Ids]


@dataclass(frozen=True)
class Agreement:
    """Student against teacher on the teacher's greedy texts, mean over tokens."""

    forward_kl_nats: float
    reverse_kl_nats: float
    top1: float


class Examination:
    def __init__(self, pair: FetchedPair, num_problems: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(pair.teacher, padding_side="left")
        self.models: dict[str, CausalLM] = {
            path.name: AutoModelForCausalLM.from_pretrained(path) for path in (pair.teacher, pair.student)
        }
        lines = pair.prompts["report"].read_text("utf-8").splitlines()
        self.problems: list[dict[str, str]] = [json.loads(line) for line in lines[:num_problems]]

    @torch.inference_mode()
    def greedy(self, name: str) -> Greedy:
        completions: list[Ids] = []
        for start in range(0, len(self.problems), _BATCH):
            chats = [self._chat(problem) for problem in self.problems[start : start + _BATCH]]
            batch = self.tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
            texts = self.models[name].generate(**batch, max_new_tokens=MAX_TOKENS)
            completions += [self._until_end(ids) for ids in texts[:, batch["input_ids"].shape[1] :].tolist()]
        answers = [_last_number(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in completions]
        num_right = sum(a == p["answer"] for a, p in zip(answers, self.problems, strict=True))
        num_ended = sum(ids[-1] == self.tokenizer.eos_token_id for ids in completions)
        total = len(completions)
        return Greedy(num_right / total, num_ended / total, sum(map(len, completions)) / total, completions)

    @torch.inference_mode()
    def agreement(self, student: str, texts: list[Ids]) -> Agreement:
        sums, num_tokens = torch.zeros(3, dtype=torch.float64), 0
        for problem, completion in zip(self.problems, texts, strict=True):
            prompt = self.tokenizer.encode(self._chat(problem), add_special_tokens=False)
            ids = torch.tensor([prompt + completion])
            # The logits at position t predict token t + 1.
            window = slice(len(prompt) - 1, -1)
            teacher, other = (
                functional.log_softmax(self.models[name](input_ids=ids).logits[0, window], dim=-1)
                for name in ("teacher", student)
            )
            # kl_div(input, target) is KL(target || input).
            forward = functional.kl_div(other, teacher, log_target=True, reduction="sum")
            reverse = functional.kl_div(teacher, other, log_target=True, reduction="sum")
            same = (teacher.argmax(-1) == other.argmax(-1)).sum()
            sums += torch.stack([forward, reverse, same]).double()
            num_tokens += len(completion)
        return Agreement(*(sums / num_tokens).tolist())

    def _chat(self, problem: dict[str, str]) -> str:
        chat = [{"role": "user", "content": problem["prompt"]}]
        return str(self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))

    def _until_end(self, ids: Ids) -> Ids:
        """The ids up to and with the first end-of-text token; what follows is padding."""
        end = self.tokenizer.eos_token_id
        return ids[: ids.index(end) + 1] if end in ids else ids


def _last_number(text: str) -> str:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
    return numbers[-1] if numbers else ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the fetched SmolLM2 pair.")
    parser.add_argument("home", type=Path, metavar="HOME")
    parser.add_argument("--problems", type=int, default=SPLIT_SIZES["report"], help="fewer take less time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    console, start = Console(), time.process_time()
    examination = Examination(fetch_smollm2(arguments.home, console.print), arguments.problems)
    table = Table("model", "right", "ended", "tokens", title=f"Greedy, {len(examination.problems)} problems")
    results = {name: examination.greedy(name) for name in examination.models}
    for name, result in results.items():
        table.add_row(name, f"{result.accuracy:.3f}", f"{result.ended:.3f}", f"{result.mean_tokens:.1f}")
    console.print(table)
    student = next(name for name in results if name != "teacher")
    measured = examination.agreement(student, results["teacher"].completions)
    console.print(f"{student} on the teacher's texts: {measured}")
    console.print(f"{time.process_time() - start:.0f} CPU seconds")


if __name__ == "__main__":
    main()
