"""Believable token traces for the dashboard's tests, hostile texts among them. Never shipped."""

from typing import Any

import numpy as np

from backend import schemas
from engine.token_trace import FRAGMENT, NORMAL, SPECIAL, TokenTrace

HOSTILE = '<img src=x onerror="window.pwned=1">'


def trace(num_tokens: int, texts: list[str] | None = None, seed: int = 0) -> TokenTrace:
    """A trace of a small vocabulary; without texts, the tiny task's own words."""
    rng = np.random.default_rng(seed)
    words = ["m3", " 1+1", " 2-3", " 3+1", ";", "\n", " r2", " 4", " =", " 5", " 7", " #", " r1", "m1", " 1-2", "<eos>"]
    said = texts or [words[at % 5] if at < 5 else str(rng.choice(words[5:13])) for at in range(num_tokens - 1)] + [
        "<eos>"
    ]
    vocabulary = sorted(set(said) | set(words) | {HOSTILE})
    id_of = {text: at for at, text in enumerate(vocabulary)}
    size = len(vocabulary)
    columns: dict[str, list[Any]] = {name: [] for name in TokenTrace.model_fields}
    for at, text in enumerate(said):
        student, teacher = rng.normal(0, 2, size), rng.normal(0, 2, size)
        chosen = id_of[text]
        student[chosen] += 7
        teacher[chosen] += 6.5
        if at in (0, 3) or rng.random() < 0.02:
            teacher[(chosen + 3) % size] += 9  # here the teacher would have gone elsewhere
        log_student, log_teacher = _log_softmax(student), _log_softmax(teacher)
        p, q = np.exp(log_student), np.exp(log_teacher)
        middle = np.log((p + q) / 2)
        top = sorted(set(np.argsort(-p)[:8]) | set(np.argsort(-q)[:8]) | {chosen}, key=lambda one: -max(p[one], q[one]))
        row = {
            "token_ids": chosen, "texts": text, "flags": SPECIAL if text == "<eos>" else FRAGMENT if text.startswith("⟨") else NORMAL,
            "student_logprob": log_student[chosen], "teacher_logprob": log_teacher[chosen],
            "reverse_kl": float((p * (log_student - log_teacher)).sum()), "forward_kl": float((q * (log_teacher - log_student)).sum()),
            "jsd": float(((p * (log_student - middle)).sum() + (q * (log_teacher - middle)).sum()) / 2),
            "student_entropy": float(-(p * log_student).sum()), "teacher_entropy": float(-(q * log_teacher).sum()),
            "student_rank": int((p > p[chosen]).sum()) + 1, "teacher_rank": int((q > q[chosen]).sum()) + 1,
            "candidate_ids": [int(one) for one in top], "candidate_student_logprob": [float(log_student[one]) for one in top],
            "candidate_teacher_logprob": [float(log_teacher[one]) for one in top],
        }  # fmt: skip
        for name, value in row.items():
            columns[name].append(value)
    columns["prompt_texts"] = ["<bos>", " k3", " k0", " c3", " c2", " c3", " 4", " N13", " |"]
    columns["vocabulary_ids"], columns["vocabulary_texts"] = list(range(size)), vocabulary
    return TokenTrace.model_validate(columns)


def _log_softmax(scores: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max())


def rollout(run_id: str, step: int, row: int) -> schemas.RolloutDetail:
    texts = None
    if row == 1:
        texts = [
            "Let",
            " me",
            " compute",
            "\n",
            "\t",
            "the",
            " sum",
            ":",
            " ",
            HOSTILE,
            "⟨E2 80⟩",
            "⟨A6⟩",
            " 4",
            "2",
            ".",
            "<eos>",
        ]
    made = trace(190 + row, texts, seed=step * 100 + row)
    kl = made.reverse_kl
    horizon = 8
    return schemas.RolloutDetail(
        id=f"{run_id}.{step}.{row}", run_id=run_id, step=step, subject="student" if step else "base", horizon=horizon, row=row,
        prompt_index=row, prompt="k3 k0 c3 c2 c3 4 N13 |", completion="".join(made.texts), answer="2", is_right=row % 3 == 0,
        num_prompt_tokens=9, num_tokens=len(made.texts), finish_reason="eos", mean_reverse_kl=sum(kl) / len(kl), max_reverse_kl=max(kl),
        inside_share=sum(kl[:horizon]) / sum(kl), trace=made, run_p99_reverse_kl=3.9,
    )  # fmt: skip
