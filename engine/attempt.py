"""One try at a run as a process: journal, control, progress, and an exit status for every ending."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import transformers
from pydantic import ValidationError

from engine.checkpoint import newest_checkpoint
from engine.control import PULSE, Control
from engine.errors import RunError
from engine.events import Failed
from engine.exit_codes import DONE, OF_FAILURE, STOPPED
from engine.journal import Journal
from engine.progress import TerminalProgress
from engine.ranks import is_launched, joined_ranks
from engine.spec import RunSpec
from engine.staging import remove_leftovers
from engine.train import failure_of, train

_PR_SET_PDEATHSIG = 1
# Between an attempt and the one that goes on from it: how far, on how many processes, and what is kept.
_MAY_DIFFER = ("name", "num_steps", "parallelism", "checkpoints", "traces")
_log = logging.getLogger("engine")


def run_attempt(spec: RunSpec, folder: Path, *, attempt: int | None, resume: str | None, supervised: bool) -> int:
    """Train below folder/attempts/<attempt>, None is the next free number; the exit status of the process.

    Started by torchrun as one of several processes, it is one of the run's ranks, and the first of them writes.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if supervised or is_launched():
        # torchrun is process 1 of a container that runs nothing else; a supervisor never is.
        _die_with_parent(may_be_orphaned=supervised)
    try:
        ranks = joined_ranks(spec)
        attempt = ranks.first_does(lambda: next_attempt(folder) if attempt is None else attempt)
    except RunError as error:
        print(error.message, file=sys.stderr)
        return OF_FAILURE[error.failure]
    pulse = folder / "attempts" / str(attempt) / PULSE if supervised and ranks.is_first else None
    control = Control(pulse=pulse, is_shared=ranks.size > 1)
    # The ranks of a machine have one stdin: the first reads it for all.
    control.listen(supervised=supervised and ranks.is_first)
    try:
        if not supervised and ranks.is_first:  # a supervised attempt writes into its own folder alone
            remove_leftovers(folder)
        damaged: list[str] = []
        start = ranks.first_does(lambda: _checkpoint(folder, resume, damaged.append))
        folder.mkdir(parents=True, exist_ok=True)
        if ranks.is_first:
            _keep_spec(spec, folder / "spec.json", is_resumed=resume is not None)
        progress = TerminalProgress(spec, enabled=sys.stderr.isatty() and not supervised and ranks.is_first)
        events = folder / "attempts" / str(attempt) / "events.jsonl" if ranks.is_first else Path(os.devnull)
        journal = Journal(events, progress.show)
    except OSError as error:
        print(f"The run folder {folder} cannot be written ({error.strerror}); choose another --out.", file=sys.stderr)
        return OF_FAILURE["disk_full"]
    except RunError as error:  # of another spec, or of a rank that is gone already
        print(error.message, file=sys.stderr)
        return OF_FAILURE[error.failure]
    checkpoint = None if start is None else Path(start)
    with journal, progress:
        try:
            finished = train(
                spec,
                folder,
                attempt=attempt,
                journal=journal,
                control=control,
                resume=checkpoint,
                ranks=ranks,
                damaged=damaged,
            )
        except Exception as error:  # the outermost frame: whatever happens must become an event and an exit status
            failure = failure_of(error)
            if failure.failure == "internal":
                _log.exception("the run failed")
            ranks.tell_failure(failure)
            failure = ranks.cause_of(failure)
            _emit_failure(journal, failure)
            with suppress(OSError):  # the log is on the full disk, too: the exit status still tells
                print(failure.message, file=sys.stderr)
            return OF_FAILURE[failure.failure]
    ranks.close()
    return DONE if finished else STOPPED


def next_attempt(folder: Path) -> int:
    """The number behind the last attempt in a run folder; 1 for a fresh one."""
    return 1 + max((int(path.name) for path in folder.glob("attempts/*") if path.name.isdecimal()), default=0)


def _checkpoint(folder: Path, resume: str | None, on_damage: Callable[[str], None]) -> str | None:
    if resume is None:
        return None
    found = newest_checkpoint(folder, on_damage) if resume == "newest" else folder / resume
    return None if found is None else str(found)


def _keep_spec(spec: RunSpec, path: Path, *, is_resumed: bool) -> None:
    """Write the spec down; RunError("bad_spec") when a run of another one would be gone on with.

    With more steps it is still the same: that is how a run is made longer.
    """
    begun = None
    if is_resumed and path.exists():
        try:
            begun = RunSpec.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise RunError(
                "bad_spec", f"{path} is no spec of this version ({error.error_count()} problems); choose another --out."
            ) from None
        differing = [
            name
            for name in RunSpec.model_fields
            if name not in _MAY_DIFFER and getattr(spec, name) != getattr(begun, name)
        ]
        if differing:
            raise RunError(
                "bad_spec",
                f"The spec differs from {path}, with which this run was begun, in {', '.join(differing)}; resume with that file, or "
                f"begin a new run with the checkpoint as its student.path. Only {', '.join(_MAY_DIFFER)} may change.",
            )
    if spec != begun and (begun is not None or not path.exists()):
        path.write_text(spec.model_dump_json(indent=1) + "\n")


def _emit_failure(journal: Journal, failure: RunError) -> None:
    try:
        journal.emit(Failed, failure=failure.failure, message=failure.message, findings=failure.findings)
    except OSError as error:  # a full disk: the exit status and stderr still tell
        _log.warning("The failure could not be written to the journal (%s).", error.strerror)


def _die_with_parent(*, may_be_orphaned: bool) -> None:
    """Linux: get SIGKILL when the supervisor dies, also while stdin is not being read; at once when it is dead already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if may_be_orphaned and os.getppid() == 1:
            os._exit(75)
