"""What becomes of a run is said in words that name why it ended, and what may pass is tried again."""

import signal
from pathlib import Path
from typing import get_args

import pytest

from backend.queries.wishes import Wish
from engine.events import EndReason, Failed, FailureKind, Finished, Stopped
from engine.exit_codes import OF_FAILURE, STOPPED
from worker.endings import ending_of, failed, finished
from worker.memory_kills import num_memory_kills

_ALIVE = {"wish": "run", "leaving": None, "log_tail": ""}


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("steps", "all steps"),
        ("flops_budget", "FLOPs budget"),
        ("sentinel", "tail"),
        ("early_stopping", "no longer improved"),
    ],
)
def test_a_finished_run_succeeds_and_says_why(reason: EndReason, words: str) -> None:
    event = Finished(time=0.0, step=7, best_step=5, reason=reason, seconds=1.0, training_seconds=1.0)
    ending = finished(event, 0)
    assert ending.state == "succeeded"
    assert "step 7" in ending.reason
    assert words in ending.reason


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_memory_gpu_disk_servers_and_lost_processes_are_tried_again_and_nothing_else_that_an_engine_names(
    kind: FailureKind,
) -> None:
    state = "queued" if kind in ("oom_host", "gpu_error", "disk_full", "server_unreachable", "rank_lost") else "failed"
    named = failed(Failed(time=0.0, failure=kind, message="It is so."), OF_FAILURE[kind])
    assert (named.state, named.failure_kind, named.counts) == (state, kind, True)
    if kind != "internal":
        by_code = ending_of(OF_FAILURE[kind], None, **_ALIVE)  # type: ignore[arg-type]
        assert (by_code.state, by_code.failure_kind) == (state, kind)


def test_a_sigkill_has_a_cause_when_the_kernel_counted_one_and_is_a_crash_otherwise() -> None:
    killed = ending_of(-signal.SIGKILL, None, was_memory_kill=True, **_ALIVE)  # type: ignore[arg-type]
    assert (killed.state, killed.failure_kind) == ("queued", "oom_host")
    assert "memory ran out and the kernel ended the engine; lower micro_batch_rollouts" in killed.reason
    crashed = ending_of(-signal.SIGKILL, None, was_memory_kill=False, **_ALIVE)  # type: ignore[arg-type]
    assert (crashed.state, crashed.failure_kind) == ("queued", "engine_crashed")


@pytest.mark.parametrize(
    "tail",
    [
        "MemoryError",
        "terminate called …\n  what():  std::bad_alloc",
        "mmap: Cannot allocate memory",
        "ImportError: libtorch_cpu.so: failed to map segment from shared object",
        "memory allocation of 152 bytes failed",
    ],
)
def test_an_engine_without_memory_for_its_last_words_is_recognised_by_its_log(tail: str) -> None:
    ended = ending_of(1, None, wish="run", leaving=None, log_tail=f"Traceback …\n{tail}")
    assert ended.failure_kind == "oom_host"
    assert "Traceback" not in (ended.failure_message or "")


@pytest.mark.parametrize("leaving", ["is shutting down", "is drained", None])
def test_whoever_is_told_to_stop_from_outside_has_not_failed(leaving: str | None) -> None:
    ended = ending_of(STOPPED, None, wish="run", leaving=leaving, log_tail="")
    assert leaving is None or f"The worker {leaving}; the run goes on" in ended.reason
    assert (ended.state, ended.counts) == ("queued", False)


@pytest.mark.parametrize(
    ("checkpointed", "words"), [(True, "after a checkpoint."), (False, "without a checkpoint of its")]
)
def test_a_pause_says_whether_the_step_that_it_stopped_at_is_saved(checkpointed: bool, words: str) -> None:
    stopped = Stopped(time=0.0, step=7, checkpointed=checkpointed)
    ended = ending_of(STOPPED, stopped, wish="pause", leaving=None, log_tail="")
    assert (ended.state, ended.counts) == ("paused", False)
    assert ended.reason.startswith(f"Paused as asked, {words}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("wish", "state"), [("pause", "paused"), ("run", "queued")])
def test_an_engine_that_the_worker_had_to_end_is_not_told_as_one_that_crashed(
    number: signal.Signals, wish: Wish, state: str
) -> None:
    ended = ending_of(-number, None, wish=wish, leaving=None, log_tail="", was_pressed=True, was_memory_kill=True)
    assert (ended.state, ended.failure_kind, ended.counts) == (state, None, False)
    assert "did not stop in the time that INCIPIT_STOP_SECONDS allows" in ended.reason
    assert "memory" not in ended.reason


def test_the_kernels_count_of_memory_kills_is_read(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 9\noom_kill 3\nnuma_hit 8\n")
    assert num_memory_kills(tmp_path / "vmstat") == 3
    assert num_memory_kills(tmp_path / "nowhere") == 0
    assert num_memory_kills() >= 0
