"""Figures of the installation for Prometheus, at /metrics: read from the database when somebody asks, by short queries."""

from collections.abc import Iterable
from typing import get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from backend.database import Database, now_of
from backend.event_stream import StreamPlaces
from backend.queries.workers import num_present
from backend.run_states import HELD_STATES, RunState
from backend.tables import Run


class InstallationCollector(Collector):
    """Runs by state, how long the oldest waits, how old the oldest heartbeat is, workers and open streams."""

    def __init__(self, database: Database, places: StreamPlaces) -> None:
        self._database = database
        self._places = places

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The figures as they are now; without a database only that it is down, and the streams."""
        streams = GaugeMetricFamily("incipit_streams_open", "Event streams that are open on this API process.")
        streams.add_metric([], self._places.num_open)
        yield streams
        up = GaugeMetricFamily("incipit_database_up", "Whether the database answers.")
        try:
            figures = list(self._figures())
            up.add_metric([], 1)
        except SQLAlchemyError:
            figures = []
            up.add_metric([], 0)
        yield up
        yield from figures

    def _figures(self) -> Iterable[GaugeMetricFamily]:
        with self._database.read() as session:
            counts = {row.state: row.num for row in session.execute(_COUNTS)}
            oldest_queued = session.scalar(select(func.min(Run.created_at)).where(Run.state == "queued"))
            oldest_heartbeat = session.scalar(select(func.min(Run.heartbeat_at)).where(Run.state.in_(HELD_STATES)))
            now, workers = now_of(session), num_present(session)
        runs = GaugeMetricFamily("incipit_runs", "Runs by state.", labels=["state"])
        for state in get_args(RunState):
            runs.add_metric([state], counts.get(state, 0))
        yield runs
        for name, help, since in (
            ("incipit_queue_oldest_seconds", "Age of the oldest queued run; 0 without one.", oldest_queued),
            ("incipit_heartbeat_oldest_seconds", "Age of the oldest heartbeat of a run at work.", oldest_heartbeat),
        ):
            gauge = GaugeMetricFamily(name, help)
            gauge.add_metric([], 0.0 if since is None else max(0.0, (now - since).total_seconds()))
            yield gauge
        present = GaugeMetricFamily("incipit_workers", "Worker slots that were heard of within the last minute.")
        present.add_metric([], workers)
        yield present


_COUNTS = select(Run.state, func.count().label("num")).group_by(Run.state)
