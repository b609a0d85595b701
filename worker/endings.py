"""From how an engine process ended to what becomes of its run."""

import signal

from backend.queries.claims import Claim, Ending
from backend.queries.wishes import Wish
from engine.events import Failed, Finished
from engine.exit_codes import FAILURE_OF, OF_FAILURE, STOPPED

_NAMES = {number.value: number.name for number in signal.Signals}
_OOM_HINT = "often the system's memory ran out: lower micro_batch_rollouts or run fewer slots"


def ending_of(
    claim: Claim, exit_code: int, last_word: Finished | Failed | None, *, wish: Wish, is_shutdown: bool, log_tail: str
) -> Ending:
    """What becomes of the run. `is_shutdown` is whether the worker is about to end."""
    if isinstance(last_word, Finished):  # its last word, behind the last checkpoint: what came after cannot undo it
        return finished(last_word, exit_code)
    if isinstance(last_word, Failed):
        return failed(last_word, exit_code)
    if wish in ("cancel", "cancel_with_checkpoint"):
        return Ending("cancelled", "Cancelled as asked.", exit_code)
    if exit_code == STOPPED and wish == "pause":
        return Ending("paused", "Paused as asked, after a checkpoint.", exit_code, counts=False)
    if exit_code == STOPPED:
        reason = "The worker is shutting down" if is_shutdown else "The engine was told to stop from outside"
        reason += "; the run goes on from its last checkpoint."
        return Ending("queued", reason, exit_code, counts=not is_shutdown)
    if exit_code in FAILURE_OF and exit_code != OF_FAILURE["internal"]:
        kind = FAILURE_OF[exit_code]
        message = f"The engine ended with {kind} but did not say why.{_quoted(log_tail)}"
        return Ending("failed", f"The engine ended with {kind}.", exit_code, kind, message)
    if is_shutdown:
        reason = "The worker shut down before the engine could write a checkpoint; the run goes on from its last one."
        return Ending("queued", reason, exit_code, counts=False)
    return crashed(claim, exit_code, _cause(exit_code), log_tail)


_WHY = {
    "steps": "all steps are done",
    "flops_budget": "the FLOPs budget is used up",
    "sentinel": "its sentinel found the tail of the texts drifting",
}


def finished(event: Finished, exit_code: int | None = None) -> Ending:
    """The engine is done with it."""
    why = _WHY[event.reason]
    return Ending("succeeded", f"Finished at step {event.step}: {why}.", exit_code)


def stalled(seconds: float) -> Ending:
    """The engine is there, but nothing comes from it: it is ended, and a person looks before it is tried again."""
    message = (
        f"The engine did nothing for {seconds:.0f} s and was ended; see its log, then retry the run from its last "
        "checkpoint, or allow more with INCIPIT_STALL_SECONDS."
    )
    return Ending("failed", message, None, "stalled", message)


def failed(event: Failed, exit_code: int | None = None) -> Ending:
    """The engine named the reason itself: trying again would end the same way."""
    return Ending("failed", event.message, exit_code, event.failure, event.message)


def crashed(claim: Claim, exit_code: int | None, cause: str, log_tail: str) -> Ending:
    """Back to the queue, or failed after max_attempts without a new checkpoint in between."""
    if claim.attempt < claim.max_attempts:
        return Ending("queued", f"{cause}; the run goes on from its last checkpoint.", exit_code)
    reason = f"{cause}, and so did {claim.max_attempts} attempts in a row without a new checkpoint in between."
    return Ending("failed", reason, exit_code, "engine_crashed", reason + _quoted(log_tail))


def _cause(exit_code: int) -> str:
    if exit_code >= 0:
        return f"The engine ended unexpectedly with exit code {exit_code}"
    hint = f" ({_OOM_HINT})" if -exit_code == signal.SIGKILL else ""
    return f"The engine was ended by {_NAMES.get(-exit_code, f'signal {-exit_code}')}{hint}"


def _quoted(log_tail: str) -> str:
    return f"\n\nThe last lines of its log:\n{log_tail}" if log_tail else ""
