"""Writes problems of one digit that SmolLM2 can do: products to train on and to hold out, and two other tasks.

    python -m experiments.smollm2.arithmetic [--out experiments/smollm2/data]

No problem is in two files. The table docs/studies/smollm2-tasks.md says how many of them the teacher does.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

_DIGIT = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
_SETTINGS: Mapping[str, Mapping[str, int]] = {
    "products": _DIGIT,
    "chain_sum": _DIGIT,
    "gcd": {"min_value": 1, "max_value": 10},
}
_SEED = 7
_DRAWN = 2000  # until every problem of one digit has come up
_NUM_TRAIN, _NUM_DEV, _NUM_OTHER = 60, 40, 48


def problems(task: str) -> list[dict[str, str]]:
    """All distinct problems of a task, in the order in which reasoning-gym draws them first."""
    import reasoning_gym

    drawn = reasoning_gym.create_dataset(task, size=_DRAWN, seed=_SEED, **_SETTINGS[task])
    answers = {item["question"]: str(item["answer"]) for item in drawn}
    return [{"prompt": question, "answer": answer} for question, answer in answers.items()]


def splits() -> dict[str, list[dict[str, str]]]:
    """Problems by file name: products for training and dev, sums and greatest common divisors for the report."""
    products = problems("products")
    others = [one for task in ("chain_sum", "gcd") for one in problems(task)[:_NUM_OTHER]]
    return {
        "products-train": products[:_NUM_TRAIN],
        "products-dev": products[_NUM_TRAIN : _NUM_TRAIN + _NUM_DEV],
        "sums-and-divisors": others,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/smollm2/data"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in splits().items():
        (out / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


if __name__ == "__main__":
    main()
