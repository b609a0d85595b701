"""Faults 23, 24 and 26: memory runs out, numbers are not finite, people cancel at the worst moment."""

import random
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from backend.queries.wishes import WishRefused, ask_to_cancel
from tests.engine.models import TINY
from tests.faults.installation import Installation, until
from tests.faults.trial import Trial
from tests.worker.runs import run_row, short_spec

pytestmark = pytest.mark.timeout(240)

# Python reads this at its start; a GPU's allocator raises the same error. The file of the name in it fails one attempt.
_NO_GPU_MEMORY = """
import os, sys
if "train" in sys.orig_argv and os.path.exists({armed!r}):
    import torch
    from engine.student import Student
    update = Student.update
    def fail(student, *arguments, **named):
        if os.path.exists({armed!r}) and int(os.environ.get("_STEPS", "0")) >= 12:
            os.unlink({armed!r})
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        os.environ["_STEPS"] = str(int(os.environ.get("_STEPS", "0")) + 1)
        return update(student, *arguments, **named)
    Student.update = fail
"""


@contextmanager
def _engines_alone(installation: Installation, **environment: str) -> Iterator[None]:
    """The fault is one of what an engine does at its start, which forks of the worker's server do not repeat."""
    installation.worker.stop(seconds=20)
    ordinary = installation.worker.environment
    installation.worker.environment = {**ordinary, "INCIPIT_ENGINE_SERVER": "false", **environment}
    installation.mend()
    try:
        yield
    finally:
        installation.worker.stop(seconds=20)
        installation.worker.environment = ordinary


def _await_retry(installation: Installation, run_id: str, kind: str) -> str:
    """The message of a run that waits for its next attempt because of `kind`."""
    try:
        until(lambda: run_row(installation.database, run_id).failure_kind == kind, f"a return to the queue as {kind}")
    except AssertionError as error:
        one = run_row(installation.database, run_id)
        error.add_note(f"the run is {one.state} at step {one.last_step}, {one.failure_kind}: {one.failure_message}")
        raise
    run = run_row(installation.database, run_id)
    assert run.state == "queued"
    assert run.not_before is not None
    return run.failure_message or ""


_memory_runs_out = pytest.mark.fault(
    23,
    "memory runs out: the machine's, a GPU's",
    "limit on the engine's address space (RLIMIT_AS); torch.OutOfMemoryError raised in an engine on the CPU",
)


@_memory_runs_out
def test_23_an_engine_without_memory(fault: Trial, installation: Installation) -> None:
    """The run waits as oom_host, with advice and without a traceback, whichever library noticed it."""
    with _engines_alone(installation):
        (run_id,) = installation.submit(short_spec())
        for number, mebibytes in enumerate((500, 800), start=1):  # not enough for torch's library; enough for it alone
            until(lambda number=number: installation.has_engine(run_id, number), "an engine")  # type: ignore[misc]
            fault.inject()
            num_bytes = mebibytes * 1024**2
            resource.prlimit(installation.engine_of(run_id).pid, resource.RLIMIT_AS, (num_bytes, num_bytes))
            message = _await_retry(installation, run_id, "oom_host")
            assert "The machine's memory ran out" in message
            assert "Traceback" not in message
            assert "micro_batch_rollouts" in message
        until(lambda: installation.is_resumed(run_id, 2), "new steps")
        fault.recovered()
        installation.await_end(run_id)
        fault.check(installation, run_id)


@_memory_runs_out
def test_23_a_gpu_without_memory(fault: Trial, installation: Installation, tmp_path: Path) -> None:
    """The run waits as gpu_error, with advice, and goes on from its last checkpoint."""
    armed = tmp_path / "armed"
    armed.touch()
    (tmp_path / "sitecustomize.py").write_text(_NO_GPU_MEMORY.format(armed=str(armed)))
    with _engines_alone(installation, PYTHONPATH=str(tmp_path)):
        (run_id,) = installation.submit(short_spec(num_steps=40, checkpoints={"every_steps": 10}))
        until(lambda: not armed.exists(), "the injected error")
        fault.inject()
        message = _await_retry(installation, run_id, "gpu_error")
        assert message.startswith("The GPU's memory ran out (CUDA out of memory.")
        assert "halve micro_batch_rollouts" in message
        until(lambda: installation.is_resumed(run_id, 1), "new steps")
        fault.recovered()
        installation.await_end(run_id)
        assert installation.attempts(run_id)[-1].resumed_from_step == 10
        fault.check(installation, run_id)


@pytest.mark.fault(24, "numbers that are not finite", "a teacher whose weights make the gradient overflow")
def test_24_a_loss_that_is_not_finite(fault: Trial, installation: Installation, tmp_path: Path) -> None:
    """The run fails as nan_loss, at once: trying again would end the same way."""
    teacher = Path(shutil.copytree(TINY / "models" / "teacher", tmp_path / "teacher"))
    weights = load_file(teacher / "model.safetensors")
    weights["model.norm.weight"] *= 1e36
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    fault.inject()
    (run_id,) = installation.submit(short_spec(teacher={"path": str(teacher)}))
    installation.await_state(run_id, "failed")
    run = run_row(installation.database, run_id)
    assert run.failure_kind == "nan_loss"
    assert "not finite" in (run.failure_message or "")
    time.sleep(2)
    assert installation.num_attempts(run_id) == 1
    fault.check(installation, run_id)


@pytest.mark.fault(26, "cancellations at bad moments", "7 around the claim, one at the last step, one after the end")
def test_26_cancellations_that_race(fault: Trial, installation: Installation) -> None:
    """A run is cancelled or has succeeded, never something between; one that has succeeded refuses."""
    moments = random.Random(26)
    raced = []
    for _ in range(7):
        raced += installation.submit(short_spec(num_steps=10_000))
        time.sleep(moments.uniform(0.0, 0.08))
        fault.inject()
        with installation.database.write() as session:
            ask_to_cancel(session, raced[-1], checkpoint=False)
    (last_step,) = installation.submit(short_spec(num_steps=30))
    until(lambda: run_row(installation.database, last_step).last_step >= 29, "the last step but one")
    fault.inject()
    try:
        with installation.database.write() as session:
            ask_to_cancel(session, last_step, checkpoint=False)
    except WishRefused:
        assert installation.state_of(last_step) == "succeeded"
    for run_id in (*raced, last_step):
        installation.await_state(run_id, "cancelled", "succeeded")
    assert {installation.state_of(run_id) for run_id in raced} == {"cancelled"}
    (ended,) = installation.submit(short_spec())
    installation.await_end(ended)
    fault.inject()
    with pytest.raises(WishRefused, match="has already succeeded"), installation.database.write() as session:
        ask_to_cancel(session, ended, checkpoint=False)
    until(lambda: not [run_id for run_id in raced if installation.state_of(run_id) != "cancelled"], "quiet")
    fault.check(installation, *raced, last_step, ended)
