"""Check that each shipped folder does what the README claims.

    python -m experiments.tiny.check [DIR]

Prints one line per claim and ends with status 1 if one does not hold. One to two minutes of one core.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from experiments.tiny.texts import FLAWS, Flaw
from experiments.tiny.tokenizer import MAX_TOKENS

HERE = Path(__file__).parent
PREFIX_TOKENS = 8
_BATCH = 100
_SAMPLED_PROMPTS = 100

CausalLM = Any  # transformers types neither what the Auto classes return nor generate


@dataclass(frozen=True)
class Solved:
    """Shares of problems whose greedy completion is right, in three degrees."""

    answer: float
    trace: float
    all_but_answer: float


@dataclass(frozen=True)
class Claim:
    subject: str
    claim: str
    measured: float
    relation: Literal[">=", "<="]
    limit: float

    @property
    def holds(self) -> bool:
        above = self.measured >= self.limit
        return above if self.relation == ">=" else self.measured <= self.limit


def load(folder: Path) -> CausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@torch.inference_mode()
def completions(model: CausalLM, prompt_ids: torch.Tensor, *, sample: bool = False) -> torch.Tensor:
    """Greedy or sampled token ids after prompts of equal length, [B, P] to [B, T]."""
    how = {"do_sample": True, "top_k": 0} if sample else {"do_sample": False}
    texts = model.generate(prompt_ids, max_length=MAX_TOKENS, **how)
    assert isinstance(texts, torch.Tensor)
    return texts[:, prompt_ids.shape[1] :]


class Examination:
    """The models below `folder` before the first `num_problems` held-out problems."""

    def __init__(self, folder: Path, num_problems: int = 300) -> None:
        self._folder = folder
        self._tokenizer = AutoTokenizer.from_pretrained(folder / "models" / "teacher")
        lines = (folder / "data" / "report.jsonl").read_text("utf-8").splitlines()
        self._problems: list[dict[str, str]] = [json.loads(line) for line in lines[:num_problems]]
        self._teacher = load(folder / "models" / "teacher")

    def solve(self, name: str, given_tokens: int = 0) -> Solved:
        """Greedy results after the first `given_tokens` tokens of the gold completion."""
        model = load(self._folder / "models" / name)
        gold = [problem["completion"] for problem in self._problems]
        given = [" ".join(text.split()[:given_tokens]) for text in gold]
        starts = [f"{p['prompt']} {g}" for p, g in zip(self._problems, given, strict=True)]
        rests: list[str] = []
        for first in range(0, len(starts), _BATCH):
            ids = completions(model, self._ids(starts[first : first + _BATCH]))
            rests += self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        written = [f"{g} {rest}".strip() for g, rest in zip(given, rests, strict=True)]
        pairs = list(zip(written, gold, strict=True))
        return Solved(
            answer=_share(text.rpartition("# ")[2] == right[-1] for text, right in pairs),
            trace=_share(text == right for text, right in pairs),
            all_but_answer=_share(text[:-1] == right[:-1] for text, right in pairs),
        )

    @torch.inference_mode()
    def prefix_divergence_share(self, name: str) -> float:
        """Share of the reverse KL that sits in the first 8 tokens of the student's own samples."""
        student = load(self._folder / "models" / name)
        torch.manual_seed(0)
        prompts = [problem["prompt"] for problem in self._problems[:_SAMPLED_PROMPTS]]
        prompt_ids = self._ids(prompts)
        completion_ids = completions(student, prompt_ids, sample=True)
        ids = torch.cat([prompt_ids, completion_ids], dim=1)
        before = slice(prompt_ids.shape[1] - 1, -1)  # the logits that predict the completion
        logprobs = [
            functional.log_softmax(model(input_ids=ids).logits[:, before], dim=-1) for model in (student, self._teacher)
        ]
        # kl_div(input, target) is KL(target || input): this is KL(student || teacher).
        kl = functional.kl_div(logprobs[1], logprobs[0], log_target=True, reduction="none").sum(-1)
        is_end = completion_ids == self._tokenizer.eos_token_id
        kl = kl.masked_fill(is_end.cumsum(1) - is_end.long() > 0, 0.0)
        return float(kl[:, :PREFIX_TOKENS].sum() / kl.sum())

    def _ids(self, texts: list[str]) -> torch.Tensor:
        """Token ids of texts of equal length, [B, T]."""
        return torch.tensor(self._tokenizer(texts)["input_ids"])


def teacher_and_base_claims(examination: Examination) -> Iterator[Claim]:
    for name in ("teacher", "base"):
        solved = examination.solve(name)
        yield Claim(name, "solves the problem", solved.answer, ">=", 0.99)
        yield Claim(name, "writes the gold completion", solved.trace, ">=", 0.99)


def student_claims(examination: Examination, flaw: Flaw) -> Iterator[Claim]:
    name = f"student-{flaw}"
    alone, helped = examination.solve(name), examination.solve(name, PREFIX_TOKENS)
    share = examination.prefix_divergence_share(name)
    match flaw:
        case "plan":
            # By chance, wrong plans give the right answer to about one problem in five.
            yield Claim(name, "is wrong alone (answers)", alone.answer, "<=", 0.5)
            yield Claim(name, "is wrong alone (completions)", alone.trace, "<=", 0.35)
            yield Claim(name, "is right after 8 gold tokens", helped.answer, ">=", 0.995)
            yield Claim(name, "diverges in the first 8 tokens", share, ">=", 0.9)
        case "skill":
            yield Claim(name, "is wrong alone (completions)", alone.trace, "<=", 0.2)
            yield Claim(name, "is wrong after 8 gold tokens", helped.answer, "<=", 0.5)
            yield Claim(name, "diverges after the first 8 tokens", share, "<=", 0.1)
        case "late":
            yield Claim(name, "gives a wrong answer", alone.answer, "<=", 0.02)
            yield Claim(name, "is right up to the answer", alone.all_but_answer, ">=", 0.98)
            yield Claim(name, "diverges after the first 8 tokens", share, "<=", 0.1)


def all_claims(examination: Examination) -> Iterator[Claim]:
    yield from teacher_and_base_claims(examination)
    for flaw in FLAWS:
        yield from student_claims(examination, flaw)


def _share(claims: Iterator[bool]) -> float:
    results = list(claims)
    return sum(results) / len(results)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the tiny pair against its claims.")
    parser.add_argument("folder", type=Path, nargs="?", default=HERE, metavar="DIR")
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    table = Table("model", "claim", "measured", "limit", "holds")
    claims = []
    for claim in all_claims(Examination(parser.parse_args().folder)):
        claims.append(claim)
        limit, holds = f"{claim.relation} {claim.limit}", "yes" if claim.holds else "NO"
        table.add_row(claim.subject, claim.claim, f"{claim.measured:.3f}", limit, holds)
    Console().print(table)
    return 0 if all(claim.holds for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
