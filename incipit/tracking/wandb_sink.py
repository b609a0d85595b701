"""Weights & Biases, offline: nothing leaves this machine until `wandb sync`. A replay replaces the run's offline folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from incipit.tracking.record import Measurement, Note, Outcome, Resumed, TrackedRun

_MAX_TAG = 64  # characters, says W&B


class WandbSink:
    """An offline run below `out`/wandb whose id is the run's, so that a second sync goes to the same run.

    The step is a figure of its own, `step`: evaluations of a step come after its training figures, and W&B's own step only grows.
    """

    def __init__(self, out: Path, project: str) -> None:
        self._out = out
        self._project = project
        self._run: Any = None
        self._units: dict[str, str] = {}

    def begin(self, run: TrackedRun) -> None:
        import wandb

        for old in (self._out / "wandb").glob(f"offline-run-*-{run.id}"):
            shutil.rmtree(old)
        self._out.mkdir(parents=True, exist_ok=True)
        # What the process, its folder and its machine look like is not part of the run.
        settings = wandb.Settings(
            console="off",
            disable_git=True,
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=self._project,
            id=run.id,
            name=run.name,
            dir=str(self._out),
            mode="offline",
            config=dict(run.parameters),
            settings=settings,
        )
        self._run.define_metric("*", step_metric="step")

    def measure(self, measurement: Measurement) -> None:
        fresh = {m.name: m.unit for m in measurement.metrics if m.name not in self._units}
        if fresh:
            self._units |= fresh
            self._run.config.update({"units": self._units}, allow_val_change=True)
        figures = {metric.name: metric.value for metric in measurement.metrics}
        self._run.log(figures | {"step": measurement.step, "_timestamp": measurement.time})

    def note(self, note: Note | Resumed) -> None:
        if isinstance(note, Resumed):
            return
        self._run.summary[f"{note.kind}/{note.name}"] = note.text
        tag = note.name[:_MAX_TAG]
        if note.kind == "alarm" and tag not in (self._run.tags or ()):
            self._run.tags = (*(self._run.tags or ()), tag)

    def end(self, outcome: Outcome | None) -> None:
        self._run.finish(exit_code=1 if outcome == "failed" else 0)
