"""One try at a run as a process: journal, control, progress, and an exit status for every ending."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import transformers

from engine.checkpoint import newest_checkpoint
from engine.control import PULSE, Control
from engine.errors import RunError
from engine.events import Failed
from engine.exit_codes import DONE, OF_FAILURE, STOPPED
from engine.journal import Journal
from engine.progress import TerminalProgress
from engine.spec import RunSpec
from engine.staging import remove_leftovers
from engine.train import failure_of, train

_PR_SET_PDEATHSIG = 1
_log = logging.getLogger("engine")


def run_attempt(spec: RunSpec, folder: Path, *, attempt: int, resume: str | None, supervised: bool) -> int:
    """Train below folder/attempts/<attempt>; the exit status of the process."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    control = Control(pulse=folder / "attempts" / str(attempt) / PULSE if supervised else None)
    control.listen(supervised=supervised)
    if supervised:
        _die_with_parent()
    try:
        if not supervised:  # a supervised attempt writes into its own folder alone
            remove_leftovers(folder)
        start = _checkpoint(folder, resume)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "spec.json").exists():
            (folder / "spec.json").write_text(spec.model_dump_json(indent=1) + "\n")
        progress = TerminalProgress(spec, enabled=sys.stderr.isatty() and not supervised)
        journal = Journal(folder / "attempts" / str(attempt) / "events.jsonl", progress.show)
    except OSError as error:
        print(f"The run folder {folder} cannot be written ({error.strerror}); choose another --out.", file=sys.stderr)
        return OF_FAILURE["disk_full"]
    with journal, progress:
        try:
            finished = train(spec, folder, attempt=attempt, journal=journal, control=control, resume=start)
        except Exception as error:  # the outermost frame: whatever happens must become an event and an exit status
            failure = failure_of(error)
            if failure.failure == "internal":
                _log.exception("the run failed")
            _emit_failure(journal, failure)
            with suppress(OSError):  # the log is on the full disk, too: the exit status still tells
                print(failure.message, file=sys.stderr)
            return OF_FAILURE[failure.failure]
    return DONE if finished else STOPPED


def next_attempt(folder: Path) -> int:
    """The number behind the last attempt in a run folder; 1 for a fresh one."""
    return 1 + max((int(path.name) for path in folder.glob("attempts/*") if path.name.isdecimal()), default=0)


def _checkpoint(folder: Path, resume: str | None) -> Path | None:
    if resume is None:
        return None
    return newest_checkpoint(folder) if resume == "newest" else folder / resume


def _emit_failure(journal: Journal, failure: RunError) -> None:
    try:
        journal.emit(Failed, failure=failure.failure, message=failure.message, findings=failure.findings)
    except OSError as error:  # a full disk: the exit status and stderr still tell
        _log.warning("The failure could not be written to the journal (%s).", error.strerror)


def _die_with_parent() -> None:
    """Linux: get SIGKILL when the supervisor dies, also while stdin is not being read."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(75)
