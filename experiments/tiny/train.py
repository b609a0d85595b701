"""Train the tiny pair: a teacher, a base model and three flawed students.

    python -m experiments.tiny.train [--out DIR] [--seed 0]

Takes about four minutes of one CPU core. Everything drawn at random follows from the seed.
"""

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import LlamaForCausalLM, __version__, logging

from experiments.tiny.fit import Batch, collate, fit, new_model
from experiments.tiny.splits import held_out, unseen_problems, write_splits
from experiments.tiny.task import MAX_ROUNDS, PROBLEM_ROUNDS
from experiments.tiny.texts import FLAWS, Flaw, flawed_text, followed_text
from experiments.tiny.tokenizer import build_tokenizer

HERE = Path(__file__).parent
SHAPES = {
    "teacher": {"hidden_size": 96, "num_layers": 3},
    "base": {"hidden_size": 64, "num_layers": 2},
}

# A short phase first: the plan and the first rounds are learned on cheap, short texts.
_SHORT_STEPS, _SHORT_BATCH, _SHORT_TOKENS = 300, 64, 32
_LONG_STEPS, _LONG_BATCH = 300, 16
_PRETRAIN_STEPS = _SHORT_STEPS + _LONG_STEPS

_FLAW_BATCH = 16
# The late flaw is one word in about 200, so it takes longer to be learned.
_FLAW_STEPS: dict[Flaw, int] = {"plan": 60, "skill": 60, "late": 120}
# The rest stays right, so that the right words keep a probability that sampling can find.
_FLAW_SHARE = 0.75

_TOKENIZER = build_tokenizer()


def pretraining_batches(seed: int) -> Iterator[Batch]:
    rng, excluded = random.Random(seed), held_out()
    short = unseen_problems(rng, excluded, range(1, MAX_ROUNDS + 1))
    long = unseen_problems(rng, excluded, range(10, MAX_ROUNDS + 1))
    for _ in range(_SHORT_STEPS):
        texts = [followed_text(problem, rng) for problem in itertools.islice(short, _SHORT_BATCH)]
        yield collate(texts, _TOKENIZER, _SHORT_TOKENS)
    for _ in range(_LONG_STEPS):
        texts = [followed_text(problem, rng) for problem in itertools.islice(long, _LONG_BATCH)]
        yield collate(texts, _TOKENIZER)


def flaw_batches(flaw: Flaw, seed: int) -> Iterator[Batch]:
    rng = random.Random(seed)
    problems = unseen_problems(rng, held_out(), PROBLEM_ROUNDS)
    while True:
        texts = [
            flawed_text(problem, flaw) if rng.random() < _FLAW_SHARE else followed_text(problem, rng)
            for problem in itertools.islice(problems, _FLAW_BATCH)
        ]
        yield collate(texts, _TOKENIZER)


class Workshop:
    """Makes one model after the other and keeps the record of how each was made."""

    def __init__(self, models_folder: Path, progress: Progress) -> None:
        self.record: dict[str, dict[str, float]] = {}
        self._models_folder, self._progress = models_folder, progress

    def pretrain(self, name: str, seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        model = new_model(_TOKENIZER, **SHAPES[name])
        self._fit_and_save(
            model,
            name,
            pretraining_batches(seed),
            num_steps=_PRETRAIN_STEPS,
            learning_rate=3e-3,
            warmup_steps=40,
        )
        self.record[name]["seed"] = seed
        return model

    def make_student(self, base: LlamaForCausalLM, flaw: Flaw, seed: int) -> None:
        name = f"student-{flaw}"
        student = new_model(_TOKENIZER, **SHAPES["base"])
        student.load_state_dict(base.state_dict())
        self._fit_and_save(
            student,
            name,
            flaw_batches(flaw, seed),
            num_steps=_FLAW_STEPS[flaw],
            learning_rate=1e-3,
            warmup_steps=0,
        )
        self.record[name]["seed"] = seed

    def _fit_and_save(
        self,
        model: LlamaForCausalLM,
        name: str,
        batches: Iterator[Batch],
        *,
        num_steps: int,
        learning_rate: float,
        warmup_steps: int,
    ) -> None:
        task = self._progress.add_task(name, total=num_steps, loss="")
        start = time.process_time()
        loss = fit(
            model,
            batches,
            num_steps=num_steps,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            on_step=lambda nats: self._progress.update(task, advance=1, loss=f"{nats:.4f} nats"),
        )
        cpu_seconds = round(time.process_time() - start, 1)
        self.record[name] = {"steps": num_steps, "last_loss_nats": loss, "cpu_seconds": cpu_seconds}
        model.save_pretrained(self._models_folder / name)
        _TOKENIZER.save_pretrained(self._models_folder / name)


def train_all(out: Path, seed: int, progress: Progress) -> None:
    """Write `models/` and `data/` below `out`."""
    write_splits(out / "data")
    workshop = Workshop(out / "models", progress)
    # One seed per model, ten apart for neighbouring seeds, so that no two models share one.
    workshop.pretrain("teacher", 10 * seed)
    base = workshop.pretrain("base", 10 * seed + 1)
    for offset, flaw in enumerate(FLAWS, start=2):
        workshop.make_student(base, flaw, 10 * seed + offset)
    versions = {"torch": torch.__version__, "transformers": __version__}
    record = {"seed": seed, "versions": versions, "models": workshop.record}
    (out / "models" / "training.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny teacher, base and students.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for models/ and data/")
    parser.add_argument("--seed", type=int, default=0, help="every random draw follows from it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # models this small lose time to a second thread
    logging.disable_progress_bar()
    name, loss = TextColumn("{task.description}"), TextColumn("loss {task.fields[loss]}")
    with Progress(name, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), loss) as progress:
        train_all(arguments.out, arguments.seed, progress)


if __name__ == "__main__":
    main()
