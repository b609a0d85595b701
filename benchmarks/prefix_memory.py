"""Peak memory of a whole run on a CPU by prefix length, split by part, and what whole logits would add to it.

    python -m benchmarks.prefix_memory [--prefixes 32 128 512 1024] [--json]

A random Llama pair (hidden 512 and 768, vocabulary 32,000, see benchmarks/memory_estimate.py), 4 rollouts in one micro-batch, float32,
two steps in a process of its own. The peak is measured, the parts are the estimate's, and loss with its gradient is measured by itself both
ways, see benchmarks/divergence_memory.py. Linux only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from backend.estimate import estimate
from benchmarks.divergence_memory import measured as loss_bytes
from benchmarks.memory_estimate import VOCABULARY, measured, spec_of, write_models

_ROLLOUTS = 4
_HELD = ("process", "student_weights", "teacher_weights", "optimizer", "gradients")


def results(prefixes: list[int]) -> list[dict[str, Any]]:
    """Bytes for each prefix."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        for tokens in prefixes:
            # Nothing is longer than the prefix here, so that full-length evaluations do not decide the peak.
            changes = {
                "prompts_per_step": _ROLLOUTS,
                "micro_batch_rollouts": _ROLLOUTS,
                "max_completion_tokens": tokens,
            }
            spec = spec_of("middle", Path(folder)).model_copy(update=changes)
            predicted = estimate(spec, [])
            parts = predicted.memory_bytes
            fused, whole = (loss_bytes(way, _ROLLOUTS * tokens, VOCABULARY) for way in ("fused", "naive"))
            peak = measured(spec)["peak_bytes"]
            found.append(
                {
                    "prefix": tokens, "peak_bytes": peak, "estimate_bytes": predicted.memory_total_bytes,
                    "held_bytes": sum(parts[name] for name in _HELD), "activations_bytes": parts["activations"],
                    "cache_bytes": parts["cache"], "divergence_bytes": parts["divergence"],
                    "loss_fused_bytes": fused, "loss_whole_bytes": whole, "peak_with_whole_logits_bytes": peak - fused + whole,
                }
            )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefixes", type=int, nargs="+", default=[32, 128, 512, 1024])
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    found = results(arguments.prefixes)
    if arguments.json:
        print(json.dumps({"results": found}))
        return
    for one in found:
        print(
            ", ".join(
                f"{name.removesuffix('_bytes')} {value / 1e6:.0f} MB" for name, value in one.items() if name != "prefix"
            )
        )


if __name__ == "__main__":
    main()
