"""Believable records for the dashboard's tests, all instances of the API's own models. Never shipped, never shown as a run."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from backend import schemas
from backend.needs import RunNeeds
from backend.prompt_files import PromptFile
from engine.flops import FlopLedger
from engine.prompt_map import PromptMap
from engine.spec import RunSpec

NOW = datetime.now(UTC)
FULL_LENGTH = 216

PROMPT_FILE = PromptFile(
    id="f-1", name="questions.csv", reference=f"upload:{'a' * 64}", sha256="a" * 64, num_rows=2, num_bytes=60,
    map=PromptMap(prompt="question", answer="result"), system_message="Be brief.", first=[{"prompt": "2+3=", "answer": "5"}],
    num_runs=1, created_at=NOW, created_by="local",
)  # fmt: skip

BASE: dict[str, Any] = {
    "name": "plan student",
    "student": {"path": "builtin:tiny/models/plan"},
    "teacher": {"path": "builtin:tiny/models/teacher"},
    "prompts": {"path": "builtin:tiny/prompts.jsonl"},
    "max_completion_tokens": FULL_LENGTH,
    "num_steps": 120,
    "optimizer": {"learning_rate": 5e-4, "eps": 1e-4, "decay_fraction": 0.5},
    "evaluation": {"path": "builtin:tiny/dev.jsonl", "report_path": "builtin:tiny/report.jsonl"},
}
PREFIX_8 = {"kind": "constant", "tokens": 8}
# id, arm, changes, state, final accuracy, steps at half way, GFLOP, seconds, prefix in words, tail reverse KL at the end
ARMS: list[tuple[str, str, dict[str, Any], str, float, int, float, float, str, float]] = [
    (
        "r-full",
        "full, 240 steps",
        {"prefix": {"kind": "full"}, "num_steps": 240},
        "succeeded",
        0.997,
        118,
        1534,
        44.5,
        "full",
        0.0004,
    ),
    ("r-p8", "prefix 8", {"prefix": PREFIX_8}, "succeeded", 0.973, 42, 50.2, 1.7, "8", 0.082),
    (
        "r-p16",
        "prefix 16",
        {"prefix": {"kind": "constant", "tokens": 16}},
        "succeeded",
        0.64,
        38,
        76.1,
        2.4,
        "16",
        0.59,
    ),
    (
        "r-mix8",
        "prefix 8, anchored",
        {"prefix": PREFIX_8, "anchoring": {"kind": "every_nth_step", "n": 8}},
        "succeeded",
        1.0,
        36,
        140.0,
        4.4,
        "8, every 8th full",
        0.004,
    ),
    (
        "r-batch1",
        "full at batch 1",
        {"prefix": {"kind": "full"}, "prompts_per_step": 1},
        "succeeded",
        0.72,
        60,
        64.0,
        5.6,
        "full",
        0.002,
    ),
    (
        "r-running",
        "prefix 32",
        {"prefix": {"kind": "constant", "tokens": 32}},
        "running",
        0.9,
        52,
        129.0,
        3.9,
        "32",
        0.17,
    ),
    (
        "r-failed",
        "prefix 8, batch 4096",
        {"prefix": PREFIX_8, "prompts_per_step": 4096},
        "failed",
        0.43,
        40,
        0.0,
        0.0,
        "8",
        0.0,
    ),
    ("r-queued", "prefix 64", {"prefix": {"kind": "constant", "tokens": 64}}, "queued", 0.0, 40, 0.0, 0.0, "64", 0.0),
]
LISTED = [arm[0] for arm in ARMS]
# An earlier run of the same name that the lists no longer have.
ARM_OF = {arm[0]: arm for arm in [*ARMS, ("r-twin", *ARMS[1][1:4], 0.81, *ARMS[1][5:])]}


def spec_of(run_id: str) -> RunSpec:
    _, name, changes, *_ = ARM_OF[run_id]
    return RunSpec.model_validate({**BASE, **changes, "name": name})


def steps_done(run_id: str) -> int:
    state, num_steps = ARM_OF[run_id][3], spec_of(run_id).num_steps
    return {"succeeded": num_steps, "running": 71, "failed": 0, "queued": 0}[state]


def ledger(run_id: str) -> FlopLedger:
    flops = ARM_OF[run_id][6] * 1e9
    return FlopLedger(
        rollout=flops * 0.16,
        teacher=flops * 0.42,
        student_forward=flops * 0.14,
        student_backward=flops * 0.28,
        evaluation=2.1e11 if flops else 0.0,
    )


# The payload of the run's `estimated` event, and what its last evaluation told of executed FLOPs.
ESTIMATED: dict[str, object] = {
    "flops": FlopLedger(rollout=8e9, teacher=21e9, student_forward=7e9, student_backward=14e9).model_dump(),
    "seconds": {"low": 8.0, "high": 14.0}, "memory_total_bytes": 520_000_000,
}  # fmt: skip
STUCK = (
    "The run needs at least 40.00 GB of memory, but the roomiest connected worker that could take it (laptop, cpu) has 16.00 GB; "
    "start a worker on a larger machine, or clone the run with less at once (prompts_per_step, a LoRA adapter, a smaller teacher) "
    "or with another amount for its worker."
)
EXECUTED = FlopLedger(rollout=9e9, rollout_prefill=4e9, teacher=22e9, student_forward=8e9, student_backward=16e9)


def run(run_id: str) -> schemas.Run:
    _, name, _, state, final, _, gflop, seconds, prefix, _ = ARM_OF[run_id]
    spec, done = spec_of(run_id), steps_done(run_id)
    started = None if state == "queued" else NOW - timedelta(seconds=140 if state == "running" else 900)
    best = max(
        (e.metrics["accuracy"] or 0.0 for e in evaluations(run_id) if e.subject == "student" and e.split == "dev"),
        default=None,
    )
    return schemas.Run(
        id=run_id,
        experiment_id="e-demo",
        experiment_name="tiny plan",
        name=name,
        variant=name,
        note="",
        seed=0,
        state=state,  # type: ignore[arg-type]
        desired_state="run",
        priority=0,
        phase="training" if state == "running" else "",
        step=done,
        num_steps=spec.num_steps,
        student=spec.student.path,
        teacher=spec.teacher.path,
        prefix=prefix,
        divergence="reverse KL",
        attempt=0 if state == "queued" else 1,
        best_accuracy=best,
        report_accuracy=final if state == "succeeded" else None,
        training_flops=gflop * 1e9 * done / spec.num_steps if done else None,
        training_seconds=seconds * done / spec.num_steps if done else None,
        failure_kind="gpu_error" if state == "failed" else None,
        failure_message="The update needed 31.2 GB but 7.6 GB are free; lower micro_batch_rollouts from 16 to 4.\n\n"
        "The last lines of its log:\n\nstep 39\nKilled"
        if state == "failed"
        else None,
        created_at=NOW - timedelta(minutes=20),
        started_at=started,
        finished_at=NOW - timedelta(minutes=4 if state == "failed" else 5)
        if state in ("succeeded", "failed")
        else None,
        heartbeat_at=NOW - timedelta(seconds=3) if state == "running" else None,
        spec=spec,
        flops=ledger(run_id) if done else None,
        executed_flops=gflop * 1.07e9 if done else None,
        done_share=0.25 if state == "running" else None,
        eta_seconds=(41.0, 55.0) if state == "running" else None,
        queue_position=1 if state == "queued" else None,
        needs=RunNeeds.stated(spec),
        waits_because=STUCK if state == "queued" else None,
        row_version=1,
        last_seq=3,
    )


def summary(run_id: str) -> schemas.RunSummary:
    fields = schemas.RunSummary.model_fields
    return schemas.RunSummary.model_validate({name: value for name, value in run(run_id) if name in fields})


def evaluations(run_id: str) -> list[schemas.Evaluation]:
    _, _, _, state, final, half, gflop, seconds, prefix, tail = ARM_OF[run_id]
    if state in ("failed", "queued"):
        return []
    horizon = FULL_LENGTH if prefix == "full" else int(prefix.split(",")[0])
    inside = 0.91 if horizon < FULL_LENGTH else 1.0
    made = [
        _evaluation(0, "base", "dev", 0.43, 0.05, 0.004, inside, horizon, 0.0, 0.0, False),
        _evaluation(0, "teacher", "dev", 1.0, 0.0, 0.0, None, horizon, 0.0, 0.0, False),
    ]
    num_steps = spec_of(run_id).num_steps
    for step in range(20, steps_done(run_id) + 1, 20):
        accuracy = 0.43 + (final - 0.43) / (1 + math.exp(-(step - half) / 12))
        drift = tail * step / num_steps
        best = accuracy >= final - 0.01
        share = step / num_steps
        made.append(
            _evaluation(
                step,
                "student",
                "dev",
                round(accuracy, 2),
                0.05 * (1 - share),
                drift,
                inside * 0.6,
                horizon,
                gflop * 1e9 * share,
                seconds * share,
                best,
            )
        )
    if state == "succeeded":
        made.append(
            _evaluation(
                num_steps, "student", "report", final, 0.002, tail, inside * 0.5, horizon, gflop * 1e9, seconds, True
            )
        )
    return made


def _evaluation(
    step: int,
    subject: Any,
    split: Any,
    accuracy: float,
    inside_kl: float,
    beyond: float,
    share: float | None,
    horizon: int,
    flops: float,
    seconds: float,
    best: bool,
) -> schemas.Evaluation:
    teacher = subject == "teacher"
    metrics: dict[str, float | None] = {
        "accuracy": accuracy, "exact": max(0.0, accuracy - 0.02), "mean_tokens": 196.6, "eos_rate": 0.99, "repetition": 0.02,
        "sampled_mean_tokens": 197.1, "sampled_eos_rate": 0.98, "sampled_repetition": 0.02,
        "reverse_kl": None if teacher else inside_kl + beyond, "forward_kl": None if teacher else 1.2 * (inside_kl + beyond),
        "reverse_kl_inside": None if teacher else inside_kl, "reverse_kl_beyond": None if teacher or horizon >= FULL_LENGTH else beyond,
        "share_inside": share, "top1_agreement": None if teacher else 0.98,
    }  # fmt: skip
    return schemas.Evaluation(
        step=step,
        subject=subject,
        split=split,
        num_prompts=300 if split == "report" else 100,
        horizon=horizon,
        metrics=metrics,
        training_flops=flops,
        training_seconds=seconds,
        sampled_tokens=40.0 * step * horizon,
        trained_tokens=16.0 * step * horizon,
        is_best=best,
    )


def metrics(run_id: str) -> list[schemas.Metric]:
    steps = list(range(1, steps_done(run_id) + 1))
    noise = np.random.default_rng(7).normal(1.0, 0.12, len(steps))
    loss = [float(0.19 * math.exp(-step / 30) * wobble + 0.004) for step, wobble in zip(steps, noise, strict=True)]
    columns = {
        "loss": loss,
        "grad_norm": [4 * value for value in loss],
        "learning_rate": [5e-4] * len(steps),
        "horizon": [float(spec_of(run_id).horizon_at(step - 1, spec_of(run_id).prefix_state())) for step in steps],
        "student_entropy": [0.3 + value for value in loss],
        "teacher_entropy": [0.28] * len(steps),
        "natural_stop_rate": [0.0] * len(steps),
        "tokens_per_second": [9000.0] * len(steps),
    }
    if not steps:
        return []
    measured = list(range(0, len(steps), 10))
    tail = {
        "sentinel_reverse_kl_beyond": [0.01 * step for step in measured],
        "sentinel_eos_rate": [1.0 - step / 500 for step in measured],
        "sentinel_teacher_eos_rate": [1.0] * len(measured),
        "sentinel_stop_probability": [None] * len(measured),
    }
    return [schemas.Metric(key=key, steps=steps, values=list(values)) for key, values in columns.items()] + [
        schemas.Metric(key=key, steps=measured, values=list(values))
        for key, values in tail.items()
        if run_id != "r-p16"
    ]


def positions(run_id: str) -> list[schemas.Positions]:
    if steps_done(run_id) == 0:
        return []
    prefix = ARM_OF[run_id][8]
    horizon = FULL_LENGTH if prefix == "full" else int(prefix.split(",")[0])
    return [_positions(0, "base", horizon, FULL_LENGTH, 1.3, 0.003), _positions(60, "student", horizon, FULL_LENGTH, 0.3, 0.01),
            _positions(steps_done(run_id), "student", horizon, FULL_LENGTH, 0.02, ARM_OF[run_id][9] + 0.001),
            _positions(steps_done(run_id), "training", horizon, horizon, 0.04, 0.001)]  # fmt: skip


def _positions(step: int, source: Any, horizon: int, length: int, early: float, late: float) -> schemas.Positions:
    wobble = np.random.default_rng(step).uniform(0.6, 1.4, length)
    mean = [float((early * math.exp(-at / 2.5) + late) * wobble[at]) for at in range(length)]
    return schemas.Positions(
        step=step,
        source=source,
        split="train" if source == "training" else "dev",
        horizon=horizon,
        mean=mean,
        p90=[2.2 * value for value in mean],
        teacher_entropy=[0.2] * length,
        count=[16] * length,
    )
