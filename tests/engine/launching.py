"""Runs of several processes for tests: forked from a server that has imported the engine, and really started by torchrun."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from engine.events import RunEvent
from tests.engine.running import EngineProcess, events_of

_PATIENCE_SECONDS = 240


class ForkedRanks:
    """The ranks of a run as torchrun would start them, without its import of torch for each."""

    def __init__(
        self,
        folder: Path,
        document: Mapping[str, object],
        size: int,
        *options: str,
        homes: Sequence[str] | None = None,
    ) -> None:
        """`homes` are their INCIPIT_HOME, by rank, where each has its own."""
        shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        shared["MASTER_PORT"] = str(free_port())
        self.ranks = [
            EngineProcess(
                folder,
                document,
                *options,
                log=folder.with_suffix(f".{rank}.log"),
                environment=shared
                | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                | ({} if homes is None else {"INCIPIT_HOME": homes[rank]}),
            )
            for rank in range(size)
        ]

    def exit_codes(self) -> list[int]:
        """How they ended, by rank."""
        return [rank.exit_code() for rank in self.ranks]

    @property
    def logs(self) -> str:
        return "\n".join(rank.log for rank in self.ranks)


class TorchRun:
    """`torchrun … -m engine train`, its stdin in the test's hands."""

    def __init__(self, folder: Path, document: Mapping[str, object], launch: list[str], *options: str) -> None:
        self.folder = folder
        spec = folder.with_suffix(".json")
        spec.write_text(json.dumps(document))
        self._log = folder.with_suffix(f".{time.monotonic_ns()}.log")
        command = [sys.executable, "-P", "-m", "torch.distributed.run", *launch, "-m", "engine", "train"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--spec", str(spec), "--out", str(folder), *options],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def ranks(self) -> list[psutil.Process]:
        """Its processes that train, those of the lower local rank first."""
        children = psutil.Process(self.process.pid).children()
        return sorted(children, key=lambda child: int(child.environ()["RANK"]))

    def wait_for(self, condition: Callable[[list[RunEvent]], bool], attempt: int = 1) -> list[RunEvent]:
        """The events once they fulfil the condition."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while not condition(events := events_of(self.folder, attempt)):
            assert time.monotonic() < end, f"still waiting; {self.log}"
            assert self.process.poll() is None, f"ended with {self.process.returncode}; {self.log}"
            time.sleep(0.05)
        return events

    def tell(self, command: object) -> None:
        """A line on its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def exit_code(self) -> int:
        return self.process.wait(_PATIENCE_SECONDS)

    def end(self) -> None:
        """Whatever is left of it is gone afterwards."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    @property
    def log(self) -> str:
        return self._log.read_text()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
