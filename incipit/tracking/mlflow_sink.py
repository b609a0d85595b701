"""MLflow: a run found again by a tag with its id. A replay writes only the points that the store does not have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from incipit.tracking.record import Measurement, Note, Outcome, Resumed, TrackedRun

_RUN_TAG = "incipit.run_id"
_MAX_PARAMETERS = 100  # of one call, says MLflow
_MAX_CHARACTERS = 5000  # of a tag; parameters may have 6000
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
# Nobody hears of this run but the server at `uri`; one that does not answer is given up after seconds, not minutes.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class MlflowSink:
    """A run in the experiment `project` of the store at `uri`; alarms and links are tags, units tags `unit.<metric>`."""

    def __init__(self, uri: str, project: str) -> None:
        self._uri = uri
        self._project = project
        self._client: Any = None
        self._run = ""
        self._known: set[tuple[str, int, int]] = set()
        self._units: set[str] = set()
        self._time = 0.0

    def begin(self, run: TrackedRun) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=self._uri)
        experiment = self._client.get_experiment_by_name(self._project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self._project)
        found = self._client.search_runs([number], filter_string=f"tags.`{_RUN_TAG}` = '{run.id}'", max_results=1)
        if found:
            self._remember(found[0])
        else:
            tags = {_RUN_TAG: run.id}
            started = int(run.started * 1000)
            created = self._client.create_run(number, start_time=started, tags=tags, run_name=run.name)
            self._run = created.info.run_id
        given = [Param(name, str(value)[:_MAX_CHARACTERS]) for name, value in run.parameters.items()]
        for start in range(0, len(given), _MAX_PARAMETERS):
            self._client.log_batch(self._run, params=given[start : start + _MAX_PARAMETERS])

    def measure(self, measurement: Measurement) -> None:
        from mlflow.entities import Metric, RunTag

        time = int(measurement.time * 1000)
        self._time = measurement.time
        fresh = [m for m in measurement.metrics if (m.name, measurement.step, time) not in self._known]
        points = [Metric(metric.name, metric.value, time, measurement.step) for metric in fresh]
        tags = [RunTag(f"unit.{metric.name}", metric.unit) for metric in fresh if metric.name not in self._units]
        self._units.update(metric.name for metric in fresh)
        self._client.log_batch(self._run, metrics=points, tags=tags)

    def note(self, note: Note | Resumed) -> None:
        if isinstance(note, Note):
            self._time = note.time
            text = f"step {note.step}: {note.text}" if note.kind == "alarm" else note.text
            self._client.set_tag(self._run, f"{note.kind}.{note.name}", text[:_MAX_CHARACTERS])

    def end(self, outcome: Outcome | None) -> None:
        if outcome is not None:
            self._client.set_terminated(self._run, _STATUS[outcome], end_time=int(self._time * 1000))

    def _remember(self, run: Any) -> None:
        self._run = run.info.run_id
        for name in run.data.metrics:
            history: Sequence[Any] = self._client.get_metric_history(self._run, name)
            self._known.update((name, point.step, point.timestamp) for point in history)
