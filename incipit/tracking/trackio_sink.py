"""trackio: a local SQLite store. A replay deletes the run of that name, which holds the run's id, and writes it anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from incipit.tracking.record import Measurement, Note, Outcome, Resumed, TrackedRun


class TrackioSink:
    """A run `<name> <id>` in the project's store in `out`; alarms, links, facts and the units are alerts."""

    def __init__(self, out: Path, project: str) -> None:
        self._out = out
        self._project = project
        self._run: Any = None
        self._alert_levels: Any = None
        self._units: dict[str, str] = {}

    def begin(self, run: TrackedRun) -> None:
        os.environ["TRACKIO_DIR"] = str(self._out.absolute())  # it is read when the library is imported
        import trackio

        name = f"{run.name} {run.id}"
        if any(self._out.glob(f"{self._project}*.db")):
            for old in trackio.Api().runs(self._project):
                if old.name == name:
                    old.delete()
        self._alert_levels = trackio.AlertLevel
        self._run = trackio.init(
            project=self._project,
            name=name,
            config=dict(run.parameters),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def measure(self, measurement: Measurement) -> None:
        self._units |= {metric.name: metric.unit for metric in measurement.metrics}
        self._run.log({metric.name: metric.value for metric in measurement.metrics}, step=measurement.step)

    def note(self, note: Note | Resumed) -> None:
        if isinstance(note, Resumed):
            return
        level = self._alert_levels.WARN if note.kind == "alarm" else self._alert_levels.INFO
        self._run.alert(title=f"{note.kind}/{note.name}", text=note.text, level=level)

    def end(self, outcome: Outcome | None) -> None:
        import trackio

        # The configuration would be the place, but trackio keeps what it was at the first figure.
        self._run.alert(title="fact/units", text=json.dumps(self._units), level=self._alert_levels.INFO)
        trackio.finish()
