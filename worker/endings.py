"""From how an engine process ended to what becomes of its run."""

import re
import signal
from pathlib import Path

from backend.queries.claims import Ending
from backend.queries.retries import RETRYABLE
from backend.queries.wishes import Wish
from backend.run_states import RunState
from engine.errors import is_out_of_space, speaks_of_memory
from engine.events import Failed, FailureKind, Finished, Stopped
from engine.exit_codes import FAILURE_OF, OF_FAILURE, STOPPED

_NAMES = {number.value: number.name for number in signal.Signals}
_OOM_HINT = "often the system's memory ran out: lower micro_batch_rollouts or run fewer slots"
_DISK_ADVICE = "Free some, lower checkpoints.keep_last, or move INCIPIT_HOME to a larger disk."
_OOM_ADVICE = "lower micro_batch_rollouts, run fewer slots or use a machine with more memory"
_GOES_ON = "the run goes on from its last checkpoint, or from its first step where it has none"
# How an interpreter ends that got no memory before it could say so in an event.
_MEMORY_ERROR = re.compile("^MemoryError", re.MULTILINE)


class UnwritableFolder(Exception):
    """The worker cannot write into a run's folder."""

    def __init__(self, folder: Path, error: OSError) -> None:
        super().__init__(f"{folder}: {error}")
        self.folder = folder
        self.error = error


def ending_of(
    exit_code: int,
    last_word: Finished | Failed | Stopped | None,
    *,
    wish: Wish,
    leaving: str | None,
    log_tail: str,
    was_pressed: bool = False,
    was_memory_kill: bool = False,
) -> Ending:
    """What becomes of the run. `leaving` says why the worker lets its runs go, if it does, such as `is shutting down`;
    `was_pressed` is whether the worker ended the engine itself, since it did not stop in time; `was_memory_kill` whether the
    kernel killed a process for want of memory meanwhile."""
    if isinstance(last_word, Finished):  # its last word, behind the last checkpoint: what came after cannot undo it
        return finished(last_word, exit_code)
    if isinstance(last_word, Failed):
        return failed(last_word, exit_code)
    if wish in ("cancel", "cancel_with_checkpoint"):
        return Ending("cancelled", "Cancelled as asked.", exit_code)
    if exit_code == STOPPED and wish == "pause":
        has_saved = isinstance(last_word, Stopped) and last_word.checkpointed
        how = "after a checkpoint." if has_saved else f"without a checkpoint of its last step; {_GOES_ON}."
        return Ending("paused", f"Paused as asked, {how}", exit_code, counts=False)
    if exit_code == STOPPED:
        reason = f"The worker {leaving}" if leaving else "The engine was told to stop from outside"
        reason += "; the run goes on from its last checkpoint."
        return Ending("queued", reason, exit_code, counts=False)
    if exit_code in FAILURE_OF and exit_code != OF_FAILURE["internal"]:
        kind = FAILURE_OF[exit_code]
        reason = f"The engine ended with {kind} but did not say why."
        return Ending(_state_after(kind), reason, exit_code, kind, reason + _quoted(log_tail))
    if leaving:
        reason = f"The worker {leaving} and the engine could not write a checkpoint; the run goes on from its last one."
        return Ending("queued", reason, exit_code, counts=False)
    if was_pressed and exit_code in (-signal.SIGTERM, -signal.SIGKILL):
        reason = f"The engine did not stop in the time that INCIPIT_STOP_SECONDS allows and was ended; {_GOES_ON}."
        if wish == "pause":
            return Ending("paused", f"Paused as asked. {reason}", exit_code, counts=False)
        return Ending("queued", reason, exit_code, counts=False)
    spoke_of_memory = speaks_of_memory(log_tail) or _MEMORY_ERROR.search(log_tail)
    if (exit_code == -signal.SIGKILL and was_memory_kill) or spoke_of_memory:
        who = "and the kernel ended the engine" if exit_code == -signal.SIGKILL else f"(exit code {exit_code})"
        reason = f"The machine's memory ran out {who}; {_OOM_ADVICE}."
        return Ending("queued", reason, exit_code, "oom_host", reason)
    return crashed(exit_code, _cause(exit_code), log_tail)


_WHY = {
    "steps": "all steps are done",
    "flops_budget": "the FLOPs budget is used up",
    "early_stopping": "its evaluation no longer improved",
    "sentinel": "its sentinel found the tail of the texts drifting",
}


def finished(event: Finished, exit_code: int | None = None) -> Ending:
    """The engine is done with it."""
    told = event.detail or f"Finished at step {event.step}: {_WHY[event.reason]}."
    return Ending("succeeded", told, exit_code)


def stalled(seconds: float, last_word: Finished | Failed | Stopped | None) -> Ending:
    """The engine is there, but nothing comes from it: it is ended, and a person looks before it is tried again.

    One that hangs behind its last word has done its work: what it said counts, as when it had ended by itself.
    """
    if isinstance(last_word, Finished):
        return finished(last_word)
    if isinstance(last_word, Failed):
        return failed(last_word)
    message = (
        f"The engine did nothing for {seconds:.0f} s and was ended; see its log, then retry the run from its last "
        "checkpoint, or allow more with INCIPIT_STALL_SECONDS."
    )
    return Ending("failed", message, None, "stalled", message)


def failed(event: Failed, exit_code: int | None = None) -> Ending:
    """The engine named the reason itself: the run waits and goes on where that may pass, else it would end the same way."""
    return Ending(_state_after(event.failure), event.message, exit_code, event.failure, event.message)


def unwritable(error: UnwritableFolder) -> Ending:
    """The disk is full, or the folder belongs to somebody else or was mounted to be read only; either may be mended."""
    if is_out_of_space(error.error):
        reason = f"No space is left for the files of the run ({error.folder}). {_DISK_ADVICE}"
        return Ending("queued", reason, None, "disk_full", reason)
    reason = (
        f"The folder {error.folder} cannot be written ({error.error.strerror}); make it writable for the worker, or set "
        "INCIPIT_HOME to another folder."
    )
    return Ending("queued", reason, None, "folder_unwritable", reason)


def unstored(problem: str, *, wish: Wish) -> Ending:
    """The store has failed for too long. Nothing is lost: the files are on this disk, and what they are of is recorded later."""
    if wish in ("cancel", "cancel_with_checkpoint"):
        return Ending(
            "cancelled", f"Cancelled as asked. Its last files could not be stored: {problem}", has_unrecorded=True
        )
    reason = f"{problem} What is not stored yet stays on the disk of the run's worker, which stores it before the run goes on there."
    return Ending("queued", reason, None, "store_unavailable", reason, has_unrecorded=True)


def cut_short() -> Ending:
    """The worker has to go before everything is stored."""
    reason = (
        "The worker is shutting down before all files were stored; its disk keeps them until the run goes on there."
    )
    return Ending("queued", reason, counts=False, has_unrecorded=True)


def crashed(exit_code: int | None, cause: str, log_tail: str) -> Ending:
    """Back to the queue, as long as there are attempts left; `cause` is a sentence."""
    return Ending("queued", cause, exit_code, "engine_crashed", cause + _quoted(log_tail))


def _state_after(kind: FailureKind) -> RunState:
    return "queued" if kind in RETRYABLE else "failed"


def _cause(exit_code: int) -> str:
    if exit_code >= 0:
        return f"The engine ended unexpectedly with exit code {exit_code}."
    hint = f" ({_OOM_HINT})" if -exit_code == signal.SIGKILL else ""
    return f"The engine was ended by {_NAMES.get(-exit_code, f'signal {-exit_code}')}{hint}."


def _quoted(log_tail: str) -> str:
    return f"\n\nThe last lines of its log:\n{log_tail}" if log_tail else ""
