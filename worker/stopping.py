"""Makes an engine stop: it is told to, later ended by SIGTERM and at last by SIGKILL."""

import time

from worker.engine_process import EngineProcess
from worker.settings import WorkerSettings


class Stopping:
    """How far it is with one engine."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._told_at: float | None = None
        self._told_checkpoint: bool | None = None
        self.is_pressed = False
        """Whether the engine was ended because it did not stop in time."""

    def tell(self, engine: EngineProcess, *, with_checkpoint: bool) -> None:
        """Tell the engine to stop, unless it was told so; its time begins with the first time."""
        if self._told_checkpoint == with_checkpoint:
            return
        engine.tell({"command": "stop", "checkpoint": with_checkpoint})
        self._told_checkpoint = with_checkpoint
        self._told_at = self._told_at or time.monotonic()

    def press(self, engine: EngineProcess) -> None:
        """End an engine that was told to stop and still runs when its time is over."""
        if self._told_at is None:
            return
        seconds = time.monotonic() - self._told_at
        if seconds > self._settings.stop_seconds + self._settings.terminate_seconds:
            engine.kill()
        elif seconds > self._settings.stop_seconds and not self.is_pressed:
            engine.terminate()
            self.is_pressed = True
