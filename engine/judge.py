"""Marks completions in a process of its own: parsing hostile mathematics can hang, eat memory or run into a defect.

One process per process that asks, started at the first question, without our environment, with limits on memory and
time; when it does not answer in time it is killed and the completion is wrong. JSON lines go in and come out.
"""

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.errors import RunError
from engine.findings import Finding

_START_SECONDS = 120.0  # importing sympy takes a second, on a loaded machine many
_MAX_CHARACTERS = 20_000  # of a completion, from its end, where the answer is


class Verdict(NamedTuple):
    """What the process said."""

    is_right: bool
    found: str | None


def judged(request: Mapping[str, object], timeout_seconds: float) -> Verdict:
    """The verdict on one completion; wrong when it took longer than the timeout or broke the process.

    Raises RunError("bad_spec") when the package that the scorer needs is not installed.
    """
    completion = str(request["completion"])[-_MAX_CHARACTERS:]
    with _LOCK:
        return _JUDGE.answer({**request, "completion": completion}, timeout_seconds)


class _Judge:
    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        """The process that started it: a fork must not talk to its parent's."""
        self.ready: set[str] = set()

    def answer(self, request: Mapping[str, object], timeout_seconds: float) -> Verdict:
        self._make_ready(str(request["kind"]))
        reply = self._asked(dict(request) | {"timeout_seconds": timeout_seconds}, timeout_seconds)
        return Verdict(False, None) if reply is None else Verdict(bool(reply["is_right"]), reply["found"])

    def _make_ready(self, kind: str) -> None:
        """Have a process that has imported what this kind of scorer needs: that time is not the completion's."""
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            self._start()
        if kind in self.ready:
            return
        reply = self._asked({"kind": kind, "timeout_seconds": _START_SECONDS}, _START_SECONDS)
        if reply is None:
            raise RunError("internal", f"The process that marks completions was not ready after {_START_SECONDS:g} s.")
        if "missing" in reply:
            message = (
                f"evaluation.scorer is {kind!r} but the package {reply['missing']} is not installed; "
                f"install incipit[{reply['extra']}] or choose another scorer."
            )
            raise RunError("bad_spec", message, [Finding(field="evaluation.scorer", message=message)])
        self.ready.add(kind)

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-W", "ignore", "-m", "engine.judge_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # a Ctrl-C for the run is none for this process
        )
        self.owner = os.getpid()
        self.ready = set()

    def _asked(self, request: dict[str, object], timeout_seconds: float) -> dict[str, Any] | None:
        """The reply; None after the process was killed, because it took too long or broke."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            if select.select([self.process.stdout], [], [], timeout_seconds)[0]:
                line = self.process.stdout.readline()
                if line:
                    return dict(json.loads(line))
        except BrokenPipeError:
            pass  # it died: the same as no reply
        self.end()
        return None

    def end(self) -> None:
        """Kill the process, if it is this one's."""
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]
        self.process = None


_JUDGE = _Judge()
_LOCK = threading.Lock()
atexit.register(_JUDGE.end)
