"""TensorBoard: event files in a folder of the run. A replay replaces the files that were there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from incipit.tracking.record import Measurement, Note, Outcome, Resumed, TrackedRun

_FLUSH_SECONDS = 2


class TensorBoardSink:
    """Event files below `out`/<run id>; the unit of a figure is its description."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._writer: Any = None

    def begin(self, run: TrackedRun) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = self._out / run.id
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = EventFileWriter(str(folder), flush_secs=_FLUSH_SECONDS)
        self._write(hparams_pb(run.parameters, trial_id=run.id, start_time_secs=run.started), 0, run.started)
        self._write_text("run", f"{run.name} ({run.id})", 0, run.started)

    def measure(self, measurement: Measurement) -> None:
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        for metric in measurement.metrics:
            summary = scalar_pb(metric.name, metric.value, description=metric.unit)
            self._write(summary, measurement.step, measurement.time)

    def note(self, note: Note | Resumed) -> None:
        if isinstance(note, Note):
            self._write_text(f"{note.kind}/{note.name}", note.text, note.step, note.time)
            return
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        # Readers drop what they hold of this step and later ones.
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(step=note.step + 1, wall_time=note.time, session_log=start))

    def end(self, outcome: Outcome | None) -> None:
        self._writer.close()

    def _write_text(self, name: str, text: str, step: int, time: float) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._write(text_pb(name, text), step, time)

    def _write(self, summary: Any, step: int, time: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(step=step, wall_time=time, summary=summary))
