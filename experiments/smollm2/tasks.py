"""Which tasks of reasoning-gym the fetched pair can do: the page that a study of exact match has to start from.

    INCIPIT_HOME=HOME python -m experiments.smollm2.tasks [--problems 48] [--out docs/studies/smollm2-tasks.md]

Greedy completions of at most 64 tokens by teacher and student, asked in their chat template. HOME is the folder of
`incipit models fetch smollm2`. Some minutes of one core.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from engine.locations import resolve
from engine.model_evaluation import ModelEvaluation, evaluate_model
from engine.spec import RunSpec
from incipit.markdown_table import table

TASKS = {
    "chain_sum, two digits": "chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1",
    "products, two digits": "products?min_terms=2&max_terms=2&min_digits=1&max_digits=1",
    "basic_arithmetic, two digits": "basic_arithmetic?min_terms=2&max_terms=2&min_digits=1&max_digits=1",
    "leg_counting, one kind": "leg_counting?min_animals=1&max_animals=1&max_instances=3",
    "gcd, up to 10": "gcd?min_value=1&max_value=10",
    "chain_sum": "chain_sum?",
    "gcd": "gcd?",
    "letter_counting": "letter_counting?",
    "number_sequence": "number_sequence?",
    "gsm_symbolic": "gsm_symbolic?",
}
"""Name in the table, and the task with its settings; the last number of an answer is what counts."""
_MAX_TOKENS = 64
_MODELS = ("teacher", "student-26")
_ENOUGH = 0.2


def evaluated(task: str, model: str, num_problems: int) -> ModelEvaluation:
    """What a model makes of a task."""
    path = {"path": f"home:models/smollm2/{model}"}
    prompts = f"reasoning_gym:{TASKS[task]}&size={num_problems}&seed=7"
    return evaluate_model(
        RunSpec.model_validate(
            {
                "name": task,
                "student": path,
                "teacher": path,
                "prompts": {"path": prompts, "template": "chat"},
                "max_completion_tokens": _MAX_TOKENS,
                "evaluation": {
                    "path": prompts,
                    "num_prompts": num_problems,
                    "num_sampled": 1,
                    "scorer": {"kind": "final_number"},
                },
                "prefix": {"kind": "full"},
            }
        )
    )


def page(found: Mapping[str, Mapping[str, ModelEvaluation]], command: str, commit: str) -> str:
    """The page in Markdown."""
    able = [task for task, by_model in found.items() if by_model["teacher"].accuracy_low >= _ENOUGH]
    rows = []
    for task, by_model in sorted(found.items(), key=lambda one: -(one[1]["teacher"].metrics["accuracy"] or 0.0)):
        figures = [
            f"{one.metrics['accuracy']:.3f} [{one.accuracy_low:.3f}, {one.accuracy_high:.3f}]"
            for one in by_model.values()
        ]
        teacher = by_model["teacher"].metrics
        rows.append([task, *figures, f"{teacher['eos_rate']:.2f}", f"{teacher['mean_tokens']:.0f}"])
    said = (
        f"the whole interval lies there for {', '.join(able)}."
        if able
        else "of none does the whole interval lie there."
    )
    any_one = next(iter(found.values()))["teacher"]
    return "\n".join(
        [
            "# Which tasks can the real teacher do?",
            "",
            f"* **Tasks of which SmolLM2-135M-Instruct does {_ENOUGH:.0%} or more:** {said}",
            "",
            f"A study of exact match needs a task that its teacher can do. Greedy completions of at most {_MAX_TOKENS} tokens, chat "
            f"template, {any_one.num_prompts} problems of each task of reasoning-gym, seed 7, the first five made easier by their "
            "settings; the last number of an answer counts. Brackets are 95 % over problems (Wilson). A right answer may be luck: that "
            "of `gcd` is often 1.",
            "",
            *table(["task", "teacher", "student, 26 of 30 layers", "teacher ends by itself", "its mean tokens"], rows),
            "",
            f"Made by `{command}` at commit {commit}, {datetime.now(UTC):%Y-%m-%d}; nobody types it.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("docs/studies/smollm2-tasks.md"))
    arguments = parser.parse_args()
    if not Path(resolve("home:models/smollm2/teacher")).is_dir():
        parser.error("INCIPIT_HOME has no SmolLM2; fetch it with `incipit models fetch smollm2`.")
    found: dict[str, dict[str, ModelEvaluation]] = {}
    for number, task in enumerate(TASKS, start=1):
        print(f"{task} ({number} of {len(TASKS)})", file=sys.stderr, flush=True)
        found[task] = {model: evaluated(task, model, arguments.problems) for model in _MODELS}
    git = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    arguments.out.write_text(page(found, "python -m experiments.smollm2.tasks", commit))


if __name__ == "__main__":
    main()
