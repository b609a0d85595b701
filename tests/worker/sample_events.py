"""Events as an engine emits them, with small figures."""

import hashlib
from pathlib import Path
from typing import get_args

from engine.events import CheckpointSaved, Evaluated, Ready, RolloutSummary, RunEvent, Started, StepDone, TracesWritten
from engine.flops import FlopLedger
from engine.manifest import Manifest, ManifestFile, spec_sha256
from engine.spec import RunSpec
from engine.trace_profile import BinValues, TokenType, TraceMetric, TraceProfile
from engine.verdicts import Verdicts
from tests.worker.runs import short_spec

TIME = 1_700_000_000.0
VERDICTS = Verdicts(problems="ab", right="10", samples_per_problem=4, samples_right=[3, 0])


def start_events(attempt: int, resumed_from_step: int = 0) -> list[RunEvent]:
    versions = {"torch": "2"}
    started = Started(
        time=TIME, attempt=attempt, pid=1, device="cpu", precision="float32", num_steps=10, versions=versions,
        resumed_from_step=resumed_from_step,
    )  # fmt: skip
    return [started, Ready(time=TIME, student_parameters=1, teacher_parameters=2, seconds=0.5)]


def step_event(step: int, loss: float = 0.5) -> StepDone:
    return StepDone(
        time=TIME + step, step=step, horizon=4, metrics={"loss": loss, "grad_norm": None}, position_loss=[1.0, 0.5],
        position_count=[2, 2], flops=FlopLedger(rollout=10.0 * step), executed_flops=20.0 * step,
        seconds={"total": 2.0},
    )  # fmt: skip


def evaluation_event(step: int, accuracy: float, *, is_best: bool, split: str = "dev") -> RunEvent:
    return Evaluated.model_validate(
        {
            "time": TIME, "step": step, "subject": "student", "split": split, "num_prompts": 2, "horizon": 4,
            "metrics": {"accuracy": accuracy}, "verdicts": VERDICTS, "position_reverse_kl": [0.1], "position_p90": [0.2],
            "position_teacher_entropy": [0.3], "position_count": [1], "is_best": is_best, "flops": FlopLedger(),
            "seconds": 1.0,
        }
    )  # fmt: skip


def traces_event(step: int, completion: str = "m3 1+1") -> RunEvent:
    rollout = RolloutSummary(
        row=0, prompt_index=0, prompt="k3", completion=completion, num_prompt_tokens=1, num_tokens=2,
        finish_reason="eos", mean_reverse_kl=0.1, max_reverse_kl=0.2,
    )  # fmt: skip
    kind = TokenType(token_id=5, text=completion[:2], count=2, reverse_kl=0.2)
    values = BinValues(mean=[0.1, 0.1], p10=[0.1, 0.1], p50=[0.1, 0.1], p90=[0.1, 0.1])
    profile = TraceProfile(
        length=16, num_rollouts=1, num_tokens=2, reverse_kl=0.2, rollouts=[1, 1], tokens=[1, 1],
        values=dict.fromkeys(get_args(TraceMetric), values), token_types=[kind],
    )  # fmt: skip
    return TracesWritten(
        time=TIME, step=step, horizon=4, path="traces/x.parquet", top_k=8, rollouts=[rollout], profile=profile
    )


def checkpoint_event(
    run_folder: Path, fence: int, step: int, *, is_best: bool = False, spec: RunSpec | None = None
) -> CheckpointSaved:
    """A checkpoint of small files, really on disk, and its event; `spec` is that of its run."""
    folder = run_folder / "attempts" / str(fence) / "checkpoints" / f"step-{step}"
    (folder / "trainer").mkdir(parents=True)
    contents = {"model.safetensors": f"weights of step {step}", "tokenizer.json": "{}", "trainer/state.json": "{}"}
    for name, text in contents.items():
        (folder / name).write_text(text)
    files = [
        ManifestFile(name=name, num_bytes=len(text), sha256=hashlib.sha256(text.encode()).hexdigest())
        for name, text in contents.items()
    ]
    known = spec_sha256(short_spec() if spec is None else spec)
    manifest = Manifest(step=step, attempt=fence, spec_sha256=known, files=files)
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    return CheckpointSaved(
        time=TIME, step=step, path=f"checkpoints/step-{step}", manifest_sha256=digest, num_bytes=manifest.num_bytes,
        accuracy=0.5 if is_best else None, is_best=is_best,
    )  # fmt: skip
