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
from typing import TYPE_CHECKING, Literal

from engine.errors import StopRequested

if TYPE_CHECKING:
    from engine.ranks import Ranks

PULSE = "pulse"
"""Name of the file in the attempt's folder that is touched while work goes on."""
PULSE_SECONDS = 5.0

_ORPHANED = 75  # exit status when the supervisor is gone

Wish = Literal["checkpoint", "stop", "stop with checkpoint", "stop without checkpoint"]


class Control:
    """Wishes that arrive while the engine works; it looks at them where its state is whole."""

    def __init__(self, pulse: Path | None = None, *, is_shared: bool = False) -> None:
        """`pulse` is a file that is touched now and then while work goes on; a supervisor watches it.

        `is_shared` is whether the run has other processes: what is heard then counts from the next `agree` on.
        """
        self.stop = False
        self.stop_with_checkpoint = True
        self.is_supervised = False
        self._is_shared = is_shared
        self._heard: set[Wish] = set()
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
        """Raise StopRequested once a stop was asked for. To be called at every step of work, each sampled token included.

        In one of several processes that is what this one alone has heard: only a sampler, which tells the others, calls it there.
        """
        self.show_life()
        if self.stop or any(wish != "checkpoint" for wish in self._heard.copy()):
            raise StopRequested

    def show_life(self) -> None:
        """Touch the pulse file, now and then; for work that must not be stopped in its middle."""
        if self._pulse is not None and time.monotonic() - self._pulsed_at >= PULSE_SECONDS:
            self._pulsed_at = time.monotonic()
            with suppress(OSError):  # on a full disk the file cannot be made; the work itself will say so
                self._pulse.touch()

    def agree(self, ranks: Ranks) -> None:
        """Let all processes of a run know what any of them was told. To be called by all, where none is in a step."""
        if self._is_shared:
            mine = self._heard.copy()
            self._heard.difference_update(mine & {"checkpoint"})
            # In the order of their names: who wants no checkpoint has the last word.
            for wish in sorted({wish for told in ranks.gathered(sorted(mine)) for wish in told}):
                self._grant(wish)

    def begin_step(self) -> None:
        """Raise StopRequested once all have agreed to stop."""
        self.show_life()
        if self.stop:
            raise StopRequested

    def take_checkpoint_wish(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        wished = self._checkpoint.is_set()
        self._checkpoint.clear()
        return wished

    def _on_signal(self, number: int, frame: object) -> None:
        self._hear("stop")

    def _hear(self, wish: Wish) -> None:
        if self._is_shared:
            self._heard.add(wish)
        else:
            self._grant(wish)

    def _grant(self, wish: Wish) -> None:
        if wish == "checkpoint":
            self._checkpoint.set()
        else:
            if wish != "stop":
                self.stop_with_checkpoint = wish == "stop with checkpoint"
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
            self._hear("checkpoint")
        elif command.get("command") == "stop":
            self._hear("stop without checkpoint" if command.get("checkpoint") is False else "stop with checkpoint")
