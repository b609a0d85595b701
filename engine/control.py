"""How a running engine is told things: JSON lines on stdin, SIGTERM, and the end of stdin.

`{"command": "checkpoint"}` · `{"command": "stop", "checkpoint": true | false}`
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

from engine.errors import StopRequested

PULSE = "pulse"
"""Name of the file in the attempt's folder that is touched while work goes on."""
PULSE_SECONDS = 5.0

_ORPHANED = 75  # exit status when the supervisor is gone


class Control:
    """Wishes that arrive while the engine works; it looks at them where its state is whole."""

    def __init__(self, pulse: Path | None = None) -> None:
        """`pulse` is a file that is touched now and then while work goes on; a supervisor watches it."""
        self.stop = False
        self.stop_with_checkpoint = True
        self.is_supervised = False
        self._checkpoint = threading.Event()
        self._pulse = pulse
        self._pulsed_at = -PULSE_SECONDS

    def listen(self, *, supervised: bool) -> None:
        """Take SIGTERM and SIGINT as stop with checkpoint; when supervised, read commands from stdin."""
        self.is_supervised = supervised
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN if supervised else self._on_signal)
        if supervised:
            threading.Thread(target=self._read_commands, name="control", daemon=True).start()

    def raise_if_stopped(self) -> None:
        """Raise StopRequested once a stop was asked for. To be called at every step of work, each sampled token included."""
        self.show_life()
        if self.stop:
            raise StopRequested

    def show_life(self) -> None:
        """Touch the pulse file, now and then; for work that must not be stopped in its middle."""
        if self._pulse is not None and time.monotonic() - self._pulsed_at >= PULSE_SECONDS:
            self._pulsed_at = time.monotonic()
            with suppress(OSError):  # on a full disk the file cannot be made; the work itself will say so
                self._pulse.touch()

    def take_checkpoint_wish(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        wished = self._checkpoint.is_set()
        self._checkpoint.clear()
        return wished

    def _on_signal(self, number: int, frame: object) -> None:
        self.stop = True

    def _read_commands(self) -> None:
        # Bytes, since what is not UTF-8 is no command and must not end this thread. Unbuffered, since the interpreter
        # aborts at its end when a thread still holds the lock of a buffered stdin.
        with open(0, "rb", buffering=0, closefd=False) as stdin:
            for line in stdin:
                self._take(line)
        # The supervisor is dead and another may own the run already: nothing may be written any more.
        os._exit(_ORPHANED)

    def _take(self, line: bytes) -> None:
        try:
            command = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(command, dict):
            return
        if command.get("command") == "checkpoint":
            self._checkpoint.set()
        elif command.get("command") == "stop":
            self.stop_with_checkpoint = command.get("checkpoint") is not False
            self.stop = True
