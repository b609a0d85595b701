"""Train the tiny pair: a teacher, a base model and three flawed students.

    python -m experiments.tiny.train [--out DIR] [--seed 0]

Takes about two minutes of one CPU core. Everything drawn at random follows from the seed.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers
from rich.progress import Progress, TaskID, TimeElapsedColumn, TimeRemainingColumn
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.tiny.splits import held_out, unseen_problems, write_splits
from experiments.tiny.task import MAX_ROUNDS, PROBLEM_ROUNDS
from experiments.tiny.texts import FLAWS, Flaw, TrainingText, flawed_text, followed_text
from experiments.tiny.tokenizer import MAX_TOKENS, build_tokenizer

HERE = Path(__file__).parent
SHAPES = {"teacher": (96, 3), "base": (64, 2)}
"""Hidden size and layers."""

# A short phase first: the plan and the first rounds are learned on cheap, short texts.
_SHORT_STEPS, _SHORT_BATCH, _SHORT_TOKENS = 300, 64, 32
_LONG_STEPS, _LONG_BATCH = 300, 16
_PRETRAIN_LEARNING_RATE = 3e-3
_WARMUP_STEPS = 40
_DECAY_SHARE = 0.4

_FLAW_STEPS, _FLAW_BATCH = 60, 16
_FLAW_LEARNING_RATE = 1e-3
# The rest stays right, so that the right words keep a probability that sampling can find.
_FLAW_SHARE = 0.75

Batches = Iterator[list[TrainingText]]
_UNLEARNED = -100  # the label that cross_entropy ignores


def new_model(role: str, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    hidden_size, num_layers = SHAPES[role]
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.08,
        tie_word_embeddings=True,
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special)
    return model


def collate(
    texts: list[TrainingText], tokenizer: PreTrainedTokenizerFast, max_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels [B, T], completions cut at `max_tokens`; only completions carry loss."""
    rows, labels = [], []
    for text in texts:
        prompt = tokenizer.encode(text.prompt)
        completion = tokenizer.encode(text.completion + " <eos>", add_special_tokens=False)
        learned = [_UNLEARNED if i in text.unlearned else t for i, t in enumerate(completion)]
        rows.append(torch.tensor(prompt + completion[:max_tokens]))
        labels.append(torch.tensor([_UNLEARNED] * len(prompt) + learned[:max_tokens]))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=_UNLEARNED)


def pretraining_batches(seed: int) -> Batches:
    """Short-phase batches, then long-phase batches, for ever."""
    rng, excluded = random.Random(seed), held_out()
    short = unseen_problems(rng, excluded, range(1, MAX_ROUNDS + 1))
    long = unseen_problems(rng, excluded, range(10, MAX_ROUNDS + 1))
    for step in itertools.count():
        problems, size = (short, _SHORT_BATCH) if step < _SHORT_STEPS else (long, _LONG_BATCH)
        yield [followed_text(problem, rng) for problem in itertools.islice(problems, size)]


def flaw_batches(flaw: Flaw, seed: int) -> Batches:
    rng = random.Random(seed)
    problems = unseen_problems(rng, held_out(), PROBLEM_ROUNDS)
    while True:
        yield [
            flawed_text(problem, flaw)
            if rng.random() < _FLAW_SHARE
            else followed_text(problem, rng)
            for problem in itertools.islice(problems, _FLAW_BATCH)
        ]


def pretraining_rate(step: int) -> float:
    """Warm-up, flat, linear decay to zero; a factor of the learning rate."""
    num_steps = _SHORT_STEPS + _LONG_STEPS
    remaining = (num_steps - step) / (_DECAY_SHARE * num_steps)
    return min(1.0, (step + 1) / _WARMUP_STEPS, remaining)


def fit(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    batches: Batches,
    *,
    num_steps: int,
    learning_rate: float,
    rate: Callable[[int], float],
    short_steps: int,
    on_step: Callable[[float], None],
) -> float:
    """Train in place on the mean loss per learned token and return the last loss, in nats."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    loss_nats = math.nan
    for step in range(num_steps):
        max_tokens = _SHORT_TOKENS if step < short_steps else MAX_TOKENS
        input_ids, labels = collate(next(batches), tokenizer, max_tokens)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate(step)
        logits = model(input_ids=input_ids[:, :-1]).logits
        # Position t predicts token t + 1.
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss_nats = loss.item()
        on_step(loss_nats)
    return loss_nats


class Workshop:
    """Trains the models one after the other and keeps the record of how each was made."""

    def __init__(self, out: Path, seed: int, progress: Progress) -> None:
        self.tokenizer = build_tokenizer()
        self.record: dict[str, dict[str, float]] = {}
        self._out, self._seed, self._progress = out, seed, progress
        sizes = {"teacher": 600, "base": 600} | {f"student-{flaw}": _FLAW_STEPS for flaw in FLAWS}
        self._tasks: dict[str, TaskID] = {
            name: progress.add_task(name, total=steps, start=False) for name, steps in sizes.items()
        }

    def pretrain(self, role: str, seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        model = new_model(role, self.tokenizer)
        self._fit(model, role, pretraining_batches(seed), seed, is_flaw=False)
        return model

    def make_student(self, base: LlamaForCausalLM, flaw: Flaw, seed: int) -> None:
        student = new_model("base", self.tokenizer)
        student.load_state_dict(base.state_dict())
        self._fit(student, f"student-{flaw}", flaw_batches(flaw, seed), seed, is_flaw=True)

    def _fit(
        self, model: LlamaForCausalLM, name: str, batches: Batches, seed: int, *, is_flaw: bool
    ) -> None:
        task, start = self._tasks[name], time.process_time()
        self._progress.start_task(task)

        def on_step(loss: float) -> None:
            self._progress.update(task, advance=1, description=f"{name} loss {loss:.4f}")

        loss = fit(
            model,
            self.tokenizer,
            batches,
            num_steps=_FLAW_STEPS if is_flaw else _SHORT_STEPS + _LONG_STEPS,
            learning_rate=_FLAW_LEARNING_RATE if is_flaw else _PRETRAIN_LEARNING_RATE,
            rate=(lambda _: 1.0) if is_flaw else pretraining_rate,
            short_steps=0 if is_flaw else _SHORT_STEPS,
            on_step=on_step,
        )
        folder = self._out / "models" / name
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        cpu_seconds = round(time.process_time() - start, 1)
        self.record[name] = {"seed": seed, "last_loss_nats": loss, "cpu_seconds": cpu_seconds}


def train_all(out: Path, seed: int, progress: Progress) -> None:
    """Write `models/` and `data/` below `out`."""
    write_splits(out / "data")
    workshop = Workshop(out, seed, progress)
    # One seed per model, all from the one given: ten apart, so that neighbouring seeds share none.
    workshop.pretrain("teacher", 10 * seed)
    base = workshop.pretrain("base", 10 * seed + 1)
    for offset, flaw in enumerate(FLAWS, start=2):
        workshop.make_student(base, flaw, 10 * seed + offset)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = {"seed": seed, "versions": versions, "models": workshop.record}
    (out / "models" / "training.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny teacher, base and students.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for models/ and data/")
    parser.add_argument("--seed", type=int, default=0, help="every random draw follows from it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # models this small lose time to a second thread
    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        train_all(arguments.out, arguments.seed, progress)


if __name__ == "__main__":
    main()
