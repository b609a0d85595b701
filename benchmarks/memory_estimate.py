"""Memory of whole runs on a CPU: the estimate before the start, and the peak of a process that trains.

    python -m benchmarks.memory_estimate [--json]

The tiny pair, a random Llama pair of middle size (hidden 512 and 768, vocabulary 32,000) as it is, in small micro-batches and
with recomputed blocks, and SmolLM2 if it was fetched; all but the first in float32 and in bfloat16. Two steps each, in a
process of its own. Target: within 15 %. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from backend.estimate import estimate
from benchmarks.divergence_memory import memory_bytes
from engine.locations import resolve
from engine.model_spec import ModelSpec
from engine.spec import RunSpec

_MIDDLE = {"student": (512, 8, 1408), "teacher": (768, 10, 2048)}
VOCABULARY = 32_000
_EVALUATION = {
    "path": "builtin:tiny/data/dev.jsonl",
    "num_prompts": 1,
    "num_sampled": 1,
    "every_steps": 1000,
    "scorer": {"kind": "after_marker", "marker": "#"},
}
# A run keeps its own caches of what it has measured; a fresh home makes every case measure everything.
CASES: dict[str, dict[str, Any]] = {
    "tiny": {
        "student": {"path": "builtin:tiny/models/student-plan"},
        "teacher": {"path": "builtin:tiny/models/teacher"},
        "max_completion_tokens": 224,
    },
    "middle": {},
    "middle, 4 a micro-batch": {"micro_batch_rollouts": 4},
    "middle, recomputed": {"gradient_checkpointing": "always"},
    "middle, LoRA": {"adapter": {"kind": "lora", "rank": 16}},
    "middle, 128 evaluated": {"evaluation": _EVALUATION | {"num_prompts": 128}, "max_completion_tokens": 24},
    "SmolLM2": {
        "student": {"path": "home:models/smollm2/student-26"},
        "teacher": {"path": "home:models/smollm2/teacher"},
    },
}
# The tiny pair gains nothing by bfloat16, and `precision: auto` never chooses it there.
CASES |= {f"{case}, bfloat16": CASES[case] | {"precision": "bfloat16"} for case in CASES if case != "tiny"}


def spec_of(case: str, models: Path) -> RunSpec:
    """The run of a case; the models of middle size lie below `models`."""
    document = {
        "name": case,
        "student": {"path": str(models / "student")},
        "teacher": {"path": str(models / "teacher")},
        "prompts": {"path": "builtin:tiny/data/train.jsonl"},
        "max_completion_tokens": 64,
        "prefix": {"kind": "full"},
        "num_steps": 2,
        "prompts_per_step": 16,
        "optimizer": {"warmup_steps": 0},
        "evaluation": _EVALUATION,
        "traces": {"num_rollouts": 0},
        "checkpoints": {"every_steps": 1000},
        "device": "cpu",
        "precision": "float32",
    }
    spec = RunSpec.model_validate(document | CASES[case])
    # The run has a home of its own, which has no models.
    return spec.model_copy(update={field: _at_its_place(getattr(spec, field)) for field in ("student", "teacher")})


def _at_its_place(model: ModelSpec) -> ModelSpec:
    return model if model.path.startswith("builtin:") else ModelSpec(path=resolve(model.path))


def write_models(folder: Path) -> None:
    """The random pair of middle size, with the tiny pair's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    for seed, (name, (hidden, layers, intermediate)) in enumerate(_MIDDLE.items()):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(Path(resolve("builtin:tiny")) / "models" / "teacher").save_pretrained(
            folder / name
        )


def train_here(document: str, folder: Path) -> dict[str, int]:
    """Train in this process: resident bytes before the models are opened, and at the peak."""
    import torch

    from engine.control import Control
    from engine.journal import Journal
    from engine.train import train

    torch.set_num_threads(1)
    before = memory_bytes("VmRSS")
    with Journal(folder / "attempts" / "1" / "events.jsonl") as journal:
        train(RunSpec.model_validate_json(document), folder, attempt=1, journal=journal, control=Control())
    return {"process_bytes": before, "peak_bytes": memory_bytes("VmHWM")}


def measured(spec: RunSpec) -> dict[str, int]:
    """`train_here` in a process and a home of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.memory_estimate", "--one", spec.model_dump_json(), folder]
        home = Path(folder) / "home"
        home.mkdir()
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"INCIPIT_HOME": str(home)}, check=False
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-1500:])
    result: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def results(cases: Iterable[str] = CASES) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        for case in cases:
            spec = spec_of(case, Path(folder))
            if not (Path(resolve(spec.student.path)) / "config.json").is_file():
                continue
            used, predicted = measured(spec), estimate(spec, [])
            found.append({"case": case, "estimate_bytes": predicted.memory_total_bytes, **used})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--case", help="this one alone, such as 'middle, bfloat16'", choices=CASES)
    parser.add_argument("--one", nargs=2, metavar=("SPEC", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(train_here(arguments.one[0], Path(arguments.one[1]))))
        return
    found = results([arguments.case] if arguments.case else CASES)
    if arguments.json:
        print(json.dumps({"results": found}))
        return
    for one in found:
        ratio = one["estimate_bytes"] / one["peak_bytes"]
        print(
            f"{one['case']:24}: estimate {one['estimate_bytes'] / 1e6:6.0f} MB, peak {one['peak_bytes'] / 1e6:6.0f} MB "
            f"({ratio:.2f}), of which {one['process_bytes'] / 1e6:.0f} MB before the models are opened"
        )


if __name__ == "__main__":
    main()
