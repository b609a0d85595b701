"""Runs for tests: in this process, and in real ones that are signalled, killed and resumed."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from engine.control import Control
from engine.events import RunEvent, StepDone, read_events
from engine.journal import Journal
from engine.spec import RunSpec
from engine.train import train
from tests.forks import FORKS

_PATIENCE_SECONDS = 120


def quick_document(**changes: object) -> dict[str, object]:
    """A run of a second: 4 prompts a step, 6 tokens, evaluation of 2 completions of 24 tokens."""
    return {
        "name": "quick",
        "student": {"path": "builtin:tiny/models/student-plan"},
        "teacher": {"path": "builtin:tiny/models/teacher"},
        "prompts": {"path": "builtin:tiny/data/train.jsonl"},
        "max_completion_tokens": 24,
        "prefix": {"kind": "constant", "tokens": 6},
        "num_steps": 6,
        "prompts_per_step": 4,
        "optimizer": {"learning_rate": 5e-4, "warmup_steps": 2, "eps": 1e-4},
        "evaluation": {
            "path": "builtin:tiny/data/dev.jsonl",
            "num_prompts": 2,
            "num_sampled": 1,
            "every_steps": 1000,
            "scorer": {"kind": "after_marker", "marker": "#"},
        },
        "traces": {"num_rollouts": 0},
        "checkpoints": {"every_steps": 1000},
    } | changes


def quick_spec(**changes: object) -> RunSpec:
    return RunSpec.model_validate(quick_document(**changes))


def train_here(spec: RunSpec, folder: Path, *, attempt: int = 1, resume: Path | None = None) -> list[RunEvent]:
    """Train in this process; the events of the attempt."""
    events: list[RunEvent] = []
    with Journal(folder / "attempts" / str(attempt) / "events.jsonl", events.append) as journal:
        train(spec, folder, attempt=attempt, journal=journal, control=Control(), resume=resume)
    return events


def events_of(folder: Path, attempt: int = 1) -> list[RunEvent]:
    """What an attempt has written so far."""
    path = folder / "attempts" / str(attempt) / "events.jsonl"
    return [event for event, _ in read_events(path)] if path.exists() else []


def steps_of(events: list[RunEvent]) -> list[int]:
    return [event.step for event in events if isinstance(event, StepDone)]


class EngineProcess:
    """`python -m engine train` on a spec, its stdin in the test's hands."""

    def __init__(
        self,
        folder: Path,
        document: Mapping[str, object],
        *options: str,
        max_file_bytes: int | None = None,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`environment` is what the process has beside this one's; `log` is beside the folder unless said otherwise."""
        self.folder = folder
        spec = folder.with_suffix(".json")
        spec.write_text(json.dumps(document))
        self._log = log or folder.with_suffix(".log")
        reader, self._stdin = FORKS.Pipe(duplex=False)
        argv = ["engine", "train", "--spec", str(spec), "--out", str(folder), *options]
        self._process = FORKS.Process(
            target=_run_engine, args=(argv, str(self._log), reader, os.environ | (environment or {}), max_file_bytes)
        )
        self._process.start()
        reader.close()

    def tell(self, command: object) -> None:
        """A line on its stdin."""
        self.tell_bytes(json.dumps(command).encode())

    def tell_bytes(self, line: bytes) -> None:
        os.write(self._stdin.fileno(), line + b"\n")

    def close_stdin(self) -> None:
        self._stdin.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, signal: int) -> None:
        os.kill(self.pid, signal)

    def wait_for(self, condition: Callable[[list[RunEvent]], bool], attempt: int = 1) -> list[RunEvent]:
        """The events once they fulfil the condition."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while not condition(events := events_of(self.folder, attempt)):
            assert time.monotonic() < end, f"still waiting; {self.log}"
            assert self._process.is_alive(), f"ended with {self._process.exitcode}; {self.log}"
            time.sleep(0.02)
        return events

    def exit_code(self) -> int:
        """Its exit status (negative: killed by that signal), after its end."""
        self._process.join(_PATIENCE_SECONDS)
        assert self._process.exitcode is not None, f"still running; {self.log}"
        return self._process.exitcode

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""


def _run_engine(
    argv: list[str], log: str, stdin: Connection, environment: dict[str, str], max_file_bytes: int | None
) -> None:
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.dup2(stdin.fileno(), 0)
    stdin.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it is stdin, for the life of the process
    if max_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    import torch

    from engine.__main__ import main

    torch.set_num_threads(1)
    sys.argv = argv
    sys.exit(main())
