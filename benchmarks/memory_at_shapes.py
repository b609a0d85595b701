"""Memory of a run on one GPU at the shapes of published models, by the estimate that every run is shown before its start.

    python -m benchmarks.memory_at_shapes [--json]

16 rollouts a step, a prefix of 512 tokens, evaluations of at most 2,048, prompts of 128, bfloat16. `usual`: micro-batches of 16
and no block recomputed; `least`: all that is `auto` at its least. Estimated, not measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from backend.estimate import estimate
from benchmarks.paper_shapes import spec_of
from benchmarks.shapes import write_config
from engine.spec import RunSpec

_PAIRS = (
    ("Qwen3-0.6B", "Qwen3-1.7B"),
    ("Qwen3-0.6B", "Qwen3-4B"),
    ("Qwen3-1.7B", "Qwen3-4B"),
    ("Qwen3-1.7B", "Qwen3-8B"),
    ("Qwen3-4B", "Qwen3-8B"),
)
_ADAPTERS: dict[str, dict[str, Any]] = {"all weights": {"kind": "none"}, "LoRA, rank 16": {"kind": "lora", "rank": 16}}
_CHANGES: dict[str, Any] = {
    "max_completion_tokens": 2048,
    "prefix": {"kind": "constant", "tokens": 512},
    "micro_batch_rollouts": "auto",
    "gradient_checkpointing": "auto",
}


def results() -> list[dict[str, Any]]:
    """Bytes for each pair and each way to train it."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for student, teacher in _PAIRS:
            models = write_config(folder, student), write_config(folder, teacher)
            base = spec_of(*models, folder / "prompts.jsonl", 512, device="cuda", num_steps=1).model_dump()
            for trained, adapter in _ADAPTERS.items():
                told = estimate(RunSpec.model_validate(base | _CHANGES | {"adapter": adapter}), [])
                found.append(
                    {
                        "student": student, "teacher": teacher, "trained": trained,
                        "usual_bytes": told.memory_total_bytes, "least_bytes": told.memory_least_bytes,
                    }
                )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    found = results()
    print(json.dumps({"results": found}) if parser.parse_args().json else "\n".join(map(str, found)))


if __name__ == "__main__":
    main()
