"""Peak memory that loss and gradient add at T tokens: the fused loss, and the same from whole [T, V] logits.

    python -m benchmarks.divergence_memory [--tokens 256 1024 4096] [--vocabulary 32768] [--json]

Every figure comes from a process of its own. Target: the fused loss does not grow with T beyond the hidden states
(2 · T · H · 4 bytes here: their gradient, and its product with the gradient from behind). Linux only: it resets and reads
the kernel's high-water mark.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from engine.divergences import ReverseKL
from engine.fused_loss import Heads, fused_divergence
from engine.language_model import OutputHead
from engine.objective import Objective

VOCABULARY = 32_768
STUDENT_WIDTH, TEACHER_WIDTH = 64, 96
WAYS = ("fused", "naive")


def memory_bytes(kind: str) -> int:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {kind}; this benchmark needs Linux.")


def peak_bytes(way: str, tokens: int, vocabulary: int) -> int:
    """What one loss and its gradient add to this process, at their peak."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, STUDENT_WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(vocabulary, STUDENT_WIDTH, generator=generator).requires_grad_()
    teacher_hidden = torch.randn(tokens, TEACHER_WIDTH, generator=generator)
    teacher_weight = torch.randn(vocabulary, TEACHER_WIDTH, generator=generator)
    target_ids = torch.randint(vocabulary, (tokens,), generator=generator)
    student_head = OutputHead(weight, None, 1.0, None, vocabulary)
    teacher_head = OutputHead(teacher_weight, None, 1.0, None, vocabulary)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = memory_bytes("VmRSS")
    if way == "fused":
        loss = fused_divergence(
            hidden,
            teacher_hidden,
            target_ids,
            heads=Heads(student_head, teacher_head, 1.0),
            objective=Objective(ReverseKL()),
            num_supervised_tokens=tokens,
        ).total
    else:
        with torch.no_grad():
            teacher = torch.log_softmax(teacher_head.logits(teacher_hidden), -1)
        loss = ReverseKL().between(torch.log_softmax(student_head.logits(hidden), -1), teacher).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return memory_bytes("VmHWM") - before


def measured(way: str, tokens: int, vocabulary: int = VOCABULARY) -> int:
    """`peak_bytes` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.divergence_memory", "--one", way, str(tokens), str(vocabulary)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "TOKENS", "VOCABULARY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(1)
        print(peak_bytes(arguments.one[0], *map(int, arguments.one[1:])))
        return
    results = [
        {"tokens": tokens, **{f"{way}_bytes": measured(way, tokens, arguments.vocabulary) for way in WAYS}}
        for tokens in arguments.tokens
    ]
    first = results[0]
    for result in results:
        states = 2 * 4 * STUDENT_WIDTH * (result["tokens"] - first["tokens"])
        result["fused_growth_beyond_states_bytes"] = result["fused_bytes"] - first["fused_bytes"] - states
    if arguments.json:
        print(json.dumps({"vocabulary": arguments.vocabulary, "results": results}))
        return
    for result in results:
        print(
            f"T {result['tokens']:5}: fused {result['fused_bytes'] / 1e6:6.0f} MB, whole logits "
            f"{result['naive_bytes'] / 1e6:6.0f} MB; fused grew by "
            f"{result['fused_growth_beyond_states_bytes'] / 1e6:.0f} MB beyond the hidden states"
        )


if __name__ == "__main__":
    main()
