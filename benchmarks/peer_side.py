"""One side of `benchmarks.peer_step`: a process that opens both models and takes one training step for each line that it reads.

    python -m benchmarks.peer_side {incipit,trl} --pair smollm2 --folder DIR --batch 4 --tokens 32 --dtype float32

Each step answers with a line of JSON: CPU and wall seconds of its rollouts and of all of it, and the most memory that was
resident beyond what the models took once they were open. Every completion has exactly `--tokens` tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers.utils import logging

from benchmarks.pairs import Pair, opened_pair
from engine.peak_memory import peak_memory_bytes
from engine.spec import RunSpec

_CPU = torch.device("cpu")
_RATE = 1e-6  # that of TRL by default: the students stay what they are


@dataclass(frozen=True)
class Case:
    """What both sides are given."""

    pair: Pair
    batch: int
    tokens: int
    dtype: Literal["float32", "bfloat16"]


@dataclass
class Clock:
    """CPU and wall seconds of a step, by part."""

    began: tuple[float, float] = (0.0, 0.0)
    rollout: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        self.began = now()

    def say(self, memory: int) -> None:
        """Print the line of a step that is over."""
        total = since(self.began)
        answer = {
            "cpu": total[0],
            "wall": total[1],
            "rollout_cpu": self.rollout[0],
            "rollout_wall": self.rollout[1],
            "memory": memory,
        }
        print(json.dumps(answer), flush=True)


def now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def since(began: tuple[float, float]) -> tuple[float, float]:
    cpu, wall = now()
    return cpu - began[0], wall - began[1]


def asked_steps() -> Iterator[int]:
    """A number for each line on standard input."""
    print("ready", flush=True)
    for step, _ in enumerate(sys.stdin):
        yield step


class Memory:
    """What is resident beyond the models."""

    def __init__(self, *modules: Any) -> None:
        for module in modules:  # a mapped file is resident only where it has been read
            for parameter in module.parameters():
                parameter.data = parameter.data.clone()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        self.models = peak_memory_bytes(_CPU)

    @property
    def peak(self) -> int:
        """Bytes."""
        return peak_memory_bytes(_CPU) - self.models


def incipit_spec(case: Case) -> RunSpec:
    """The run whose steps are measured."""
    return RunSpec.model_validate(
        {
            "name": "peer",
            "student": {"path": case.pair.student},
            "teacher": {"path": case.pair.teacher},
            "prompts": {"path": "home:data/gsm-symbolic/train.jsonl", "template": "chat"},
            "max_completion_tokens": case.tokens,
            "prefix": {"kind": "full"},
            "prompts_per_step": case.batch,
            "micro_batch_rollouts": case.batch,
            "optimizer": {"learning_rate": _RATE, "warmup_steps": 0},
            "evaluation": {"path": "home:data/gsm-symbolic/dev.jsonl"},
        }
    )


def run_incipit(case: Case) -> None:
    """Steps of our engine: its sampler and its update."""
    from engine.language_model import load_language_model
    from engine.rollout import RolloutRequest
    from engine.sampler import Sampler
    from engine.student import Student

    spec = incipit_spec(case)
    teacher = load_language_model(spec.teacher, "teacher", _CPU, case.dtype)
    teacher.module.requires_grad_(False)
    # Without an end of text, every rollout runs to the horizon.
    loaded = replace(load_language_model(spec.student, "student", _CPU, case.dtype), eos_token_ids=frozenset())
    memory = Memory(loaded.module, teacher.module)
    student = Student(loaded, spec)
    clock = Clock()
    for step in asked_steps():
        clock.start()
        prompts = case.pair.prompts_of_step(step, case.batch)
        requests = [RolloutRequest(i, prompt, 1, step) for i, prompt in enumerate(prompts)]
        rollouts = Sampler(student.model, spec.seed, 1.0).sample(requests, case.tokens)
        clock.rollout = since(clock.began)
        assert all(len(rollout.completion_token_ids) == case.tokens for rollout in rollouts)
        student.update(rollouts, teacher, step % spec.num_steps)
        clock.say(memory.peak)


def run_trl(case: Case) -> None:
    """Steps of TRL's DistillationTrainer, as it comes but for what a CPU needs: no bf16 autocast, no checkpointing, no pinning."""
    warnings.simplefilter("ignore")
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    disable_progress_bars()
    dtype = getattr(torch, case.dtype)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype) for folder in (case.pair.student, case.pair.teacher)
    )
    tokenizer = AutoTokenizer.from_pretrained(case.pair.student)
    memory, clock = Memory(student, teacher), Clock()

    class Steps(TrainerCallback):  # type: ignore[misc]  # transformers is checked as Any
        asked: Iterator[int]

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if next(self.asked, None) is None:
                control.should_training_stop = True
                sys.exit(0)
            clock.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.say(memory.peak)

    config = DistillationConfig(
        output_dir=tempfile.mkdtemp(prefix="peer-"),
        per_device_train_batch_size=case.batch,
        max_steps=1000,
        max_completion_length=case.tokens,
        learning_rate=_RATE,
        lr_scheduler_type="constant",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        shuffle_dataset=False,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        generation_kwargs={"min_new_tokens": case.tokens},
    )
    texts = [tokenizer.decode(ids) for ids in case.pair.prompts]
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=tokenizer,
    )
    generate = trainer._generate_and_score_completions

    def timed(inputs: Any) -> Any:
        began = now()
        made = generate(inputs)
        clock.rollout = since(began)
        assert set(made["completion_mask"].sum(1).tolist()) == {case.tokens}
        return made

    trainer._generate_and_score_completions = timed
    steps = Steps()
    steps.asked = asked_steps()
    trainer.add_callback(steps)
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=["incipit", "trl"])
    parser.add_argument("--pair", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = Case(opened_pair(arguments.pair, arguments.folder), arguments.batch, arguments.tokens, arguments.dtype)
    {"incipit": run_incipit, "trl": run_trl}[arguments.side](case)


if __name__ == "__main__":
    main()
