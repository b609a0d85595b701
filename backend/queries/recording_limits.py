"""What of an engine's record is stored: a faulty or hostile engine must not fill the database. What is left out is told."""

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.limits import Limits
from backend.queries.metrics import stored_keys
from backend.records import Event
from engine.events import RolloutSummary, TracesWritten, Warned


class RecordingLimits:
    """Watches one batch of a run's events."""

    def __init__(self, session: Session, run_id: str, limits: Limits, known_keys: set[str]) -> None:
        """`known_keys` are metrics that the run has, as batches before have found them; new ones are added."""
        self._session = session
        self._run_id = run_id
        self._limits = limits
        self._keys = known_keys
        self._has_asked = False
        self._told: dict[str, Warned] = {}

    def metrics(self, step: int, time: float, values: Mapping[str, float | None]) -> dict[str, float | None]:
        """The metrics of a step that are stored."""
        most = self._limits.metric_points
        if step > most:
            self._tell("metric_points", step, most, time, f"The metrics of step {step} and later ones are left out")
            return {}
        stored = {}
        for name in sorted(values):
            length = len(name)
            if length > self._limits.metric_name_characters:
                words = f"The metric {name[:40]!r}… has a name of {length} characters and is left out"
                self._tell("metric_name_characters", length, self._limits.metric_name_characters, time, words)
            elif self._is_known(name):
                stored[name] = values[name]
            else:
                words = f"The run has {self._limits.metric_keys} different metrics; {name[:40]!r} and further ones are left out"
                self._tell("metric_keys", self._limits.metric_keys + 1, self._limits.metric_keys, time, words)
        return stored

    def rollouts(self, event: TracesWritten) -> list[RolloutSummary]:
        """The rollouts of a trace file that are stored, their texts cut."""
        if event.top_k > self._limits.rollout_top_k:
            words = f"A trace of step {event.step} has {event.top_k} candidates per token and is left out"
            self._tell("rollout_top_k", event.top_k, self._limits.rollout_top_k, event.time, words)
            return []
        stored = []
        for rollout in event.rollouts:
            if rollout.num_tokens > self._limits.rollout_tokens:
                words = f"A rollout of step {event.step} has {rollout.num_tokens} tokens and is left out"
                self._tell("rollout_tokens", rollout.num_tokens, self._limits.rollout_tokens, event.time, words)
            else:
                stored.append(self._cut(rollout, event))
        return stored

    def warnings(self) -> list[Warned]:
        """What was left out of this batch and was not told of this run before."""
        if not self._told:
            return []
        query = select(Event.payload).where(Event.run_id == self._run_id, Event.kind == "warning")
        known = {payload.get("code") for payload in self._session.scalars(query)}
        return [warning for code, warning in self._told.items() if code not in known]

    def _cut(self, rollout: RolloutSummary, event: TracesWritten) -> RolloutSummary:
        most, changes = self._limits.rollout_text_bytes, {}
        for name in ("prompt", "completion", "answer"):
            text = (getattr(rollout, name) or "").encode("utf-8", "replace")
            if len(text) > most:
                changes[name] = text[:most].decode("utf-8", "ignore")
                words = f"The {name} of a rollout of step {event.step} has {len(text)} bytes and is cut"
                self._tell("rollout_text_bytes", len(text), most, event.time, words)
        return rollout.model_copy(update=changes)

    def _is_known(self, name: str) -> bool:
        """Whether the run has this metric, or may still have it from now on."""
        if name in self._keys:
            return True
        if not self._has_asked:
            self._keys |= set(stored_keys(self._session, self._run_id))
            self._has_asked = True
            return self._is_known(name)
        if len(self._keys) >= self._limits.metric_keys:
            return False
        self._keys.add(name)
        return True

    def _tell(self, name: str, value: int, limit: int, time: float, words: str) -> None:
        advice = f"Raise INCIPIT_LIMITS__{name.upper()} of the workers, if this is meant."
        code = f"limit_{name}"
        message = f"{words}: the limit is {limit}."
        self._told.setdefault(
            code,
            Warned(time=time, code=code, message=message, value=float(value), limit=float(limit), advice=advice),
        )
