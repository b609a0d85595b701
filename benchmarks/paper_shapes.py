"""One training step at the paper's shapes (arXiv 2602.15260: Qwen3-1.7B from Qwen3-8B) by prefix length: counted, or measured.

    python -m benchmarks.paper_shapes [--measure --device cuda] [--student Qwen3-1.7B] [--teacher Qwen3-8B] [--json]

Counted: FLOPs by phase and memory by the estimate that every run is shown before its start; needs no GPU and no weights. Measured:
three steps of the engine on random weights, in bfloat16, the median second of the last two; random models do not end their texts, so
each rollout has all its tokens. Prompts have 128 tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from backend.estimate import estimate
from benchmarks.shapes import SHAPES, write_config, write_random_model
from engine.spec import RunSpec

PREFIXES = (256, 512, 1024, 2048, 4096, 8192)
_PHASES = ("rollout", "teacher", "student_forward", "student_backward", "recompute")
_PROMPT_TOKENS = 128
_ROLLOUTS = 16


def spec_of(student: Path, teacher: Path, prompts: Path, tokens: int, *, device: str, num_steps: int) -> RunSpec:
    """A step of 16 rollouts of at most `tokens` tokens; nothing is longer, so that evaluations do not decide the peak."""
    return RunSpec.model_validate(
        {
            "name": f"prefix {tokens}",
            "student": {"path": str(student)},
            "teacher": {"path": str(teacher)},
            "prompts": {"path": str(prompts)},
            "max_completion_tokens": tokens,
            "prefix": {"kind": "full"},
            "num_steps": num_steps,
            "prompts_per_step": _ROLLOUTS,
            "micro_batch_rollouts": 1,
            "gradient_checkpointing": "always",
            "optimizer": {"warmup_steps": 0},
            "evaluation": {
                "path": str(prompts),
                "num_prompts": 1,
                "num_sampled": 1,
                "every_steps": 1000,
                "scorer": {"kind": "after_marker", "marker": "#"},
            },
            "traces": {"num_rollouts": 0},
            "checkpoints": {"every_steps": 1000, "keep_last": 1},
            "device": device,
            "precision": "bfloat16",
        }
    )


def counted(student: str, teacher: str, prefixes: Iterable[int] = PREFIXES) -> list[dict[str, Any]]:
    """FLOPs and bytes of a step on a GPU, for each prefix."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        models = [write_config(Path(folder), name) for name in (student, teacher)]
        # No such file: the estimate then takes 128 tokens a prompt.
        missing = Path(folder) / "prompts.jsonl"
        for tokens in prefixes:
            told = estimate(spec_of(*models, missing, tokens, device="cuda", num_steps=1), [])
            phases = told.flops.model_dump()
            found.append(
                {
                    "prefix": tokens,
                    "training_flops": told.flops.training,
                    "shares": {name: value / told.flops.training for name, value in phases.items() if name in _PHASES},
                    "memory_bytes": told.memory_total_bytes,
                }
            )
    return found


def measured(student: str, teacher: str, prefixes: Iterable[int], device: str) -> list[dict[str, Any]]:
    """Seconds, FLOPs and peak bytes of a step, for each prefix."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = [write_random_model(folder, shape, device) for shape in dict.fromkeys((student, teacher))]
        prompts = folder / "prompts.jsonl"
        _write_prompts(prompts)
        for tokens in prefixes:
            spec = spec_of(models[0], models[-1], prompts, tokens, device=device, num_steps=3)
            found.append({"prefix": tokens} | _trained(spec, folder / f"run-{tokens}"))
    return found


def _trained(spec: RunSpec, folder: Path) -> dict[str, float]:
    from engine.control import Control
    from engine.events import StepDone, read_events
    from engine.journal import Journal
    from engine.train import train

    path = folder / "attempts" / "1" / "events.jsonl"
    with Journal(path) as journal:
        train(spec, folder, attempt=1, journal=journal, control=Control())
    first, *rest = [event for event, _ in read_events(path) if isinstance(event, StepDone)]
    seconds = {phase: statistics.median(one.seconds[phase] for one in rest) for phase in ("rollout", "update", "total")}
    return {
        "training_flops": (rest[-1].flops.training - first.flops.training) / len(rest),
        "rollout_seconds": seconds["rollout"],
        "update_seconds": seconds["update"],
        "seconds": seconds["total"],
        "peak_bytes": rest[-1].peak_memory_bytes or 0,
    }


def _write_prompts(path: Path) -> None:
    from transformers import AutoTokenizer

    from engine.locations import resolve

    tokenizer = AutoTokenizer.from_pretrained(Path(resolve("builtin:tiny")) / "models" / "teacher")
    # The first behind the special ones: the order of get_vocab differs from process to process, and a model may have fewer tokens.
    word = tokenizer.convert_ids_to_tokens(max(tokenizer.all_special_ids) + 1)
    line = json.dumps({"prompt": " ".join([word] * _PROMPT_TOKENS), "answer": word})
    path.write_text(f"{line}\n" * _ROLLOUTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="run the steps instead of counting them")
    parser.add_argument("--device", default="cuda", help="of the measurement: cuda or cpu")
    parser.add_argument("--student", choices=SHAPES, default="Qwen3-1.7B")
    parser.add_argument("--teacher", choices=SHAPES, default="Qwen3-8B")
    parser.add_argument("--prefixes", type=int, nargs="+", default=list(PREFIXES))
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    pair = (arguments.student, arguments.teacher)
    found = (
        measured(*pair, arguments.prefixes, arguments.device)
        if arguments.measure
        else counted(*pair, arguments.prefixes)
    )
    result = {"student": arguments.student, "teacher": arguments.teacher, "results": found}
    print(json.dumps(result) if arguments.json else "\n".join(map(str, found)))


if __name__ == "__main__":
    main()
