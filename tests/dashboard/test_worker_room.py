"""The estimate of a run against the connected workers: what fits, what does not, how to mend it, how long a grid takes."""

from datetime import UTC, datetime
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from backend.estimates import Estimate
from backend.resources import WorkerCapabilities
from backend.schemas import Worker
from dashboard.estimate_card import memory_row
from dashboard.worker_room import fit, on_their_device, queue_seconds, time_sentence
from engine.flops import FlopLedger

GB = 10**9


def a_worker(host: str = "laptop", slot: str = "cpu0", *, is_connected: bool = True, **capabilities: Any) -> Worker:
    return Worker(
        id=host + slot, host=host, pid=1, slot=slot, run_id=None, heartbeat_at=datetime.now(UTC), is_connected=is_connected,
        capabilities=WorkerCapabilities.model_validate({"device": "cpu"} | capabilities),
    )  # fmt: skip


def needing(gigabytes: float, **parts: float) -> Estimate:
    return Estimate(
        flops=FlopLedger(rollout=1), full_length_flops=FlopLedger(rollout=2), saving=2, seconds=None, horizons=[], horizon_steps=[],
        memory_bytes={name: round(size * GB) for name, size in parts.items()}, memory_total_bytes=round(gigabytes * GB), assumptions=[],
    )  # fmt: skip


def test_what_does_not_fit_says_both_numbers_the_biggest_parts_and_the_fix() -> None:
    workers = [a_worker(memory_total_bytes=16 * GB), a_worker("station", memory_total_bytes=24 * GB)]
    found = fit(needing(31, teacher_weights=16.2, optimizer=8.1, process=0.4, cache=3.0), {}, workers)
    assert (found.verdict, found.room_bytes) == ("too large", 24 * GB)
    assert "about **31.0 GB**" in found.sentence
    assert "(station) has **24.0 GB**" in found.sentence
    assert "teacher weights 16.2 GB, optimizer 8.10 GB, cache 3.00 GB" in found.sentence
    assert "set *precision* to bfloat16" in found.sentence
    assert "the run would wait until a worker with as much is connected" in found.sentence
    within_the_error = fit(needing(27), {}, workers)
    assert within_the_error.verdict == "too large"
    assert "you can start all the same" in within_the_error.sentence


@pytest.mark.parametrize(
    ("need", "capabilities", "verdict", "words"),
    [
        (10, {"memory_total_bytes": 16 * GB, "memory_available_bytes": 12 * GB}, "fits", "Fits: about **10.0 GB** of the **16.0 GB**"),
        (15, {"memory_total_bytes": 16 * GB}, "doubtful", "within the estimate's 15 %"),
        (10, {"memory_total_bytes": 16 * GB, "memory_available_bytes": 2 * GB}, "doubtful", "leave only 2.00 GB"),
        (10, {}, "unknown", "have not said how much memory"),
    ],
)  # fmt: skip
def test_the_verdict_depends_on_what_the_worker_has(
    need: float, capabilities: dict[str, Any], verdict: str, words: str
) -> None:
    found = fit(needing(need, activations=5), {}, [a_worker(**capabilities)])
    assert found.verdict == verdict
    assert words in found.sentence


def test_a_worker_that_is_silent_does_not_count() -> None:
    silent = a_worker(is_connected=False, memory_total_bytes=64 * GB)
    assert fit(needing(10), {}, []).verdict == "unknown"
    assert "No worker is connected" in fit(needing(10), {}, [silent]).sentence
    assert fit(needing(10), {}, [silent, a_worker(memory_total_bytes=8 * GB)]).verdict == "too large"


def test_a_smaller_worker_that_may_take_the_run_is_named() -> None:
    workers = [a_worker(memory_total_bytes=8 * GB), a_worker("station", memory_total_bytes=24 * GB)]
    found = fit(needing(9), {}, workers)
    assert found.verdict == "doubtful"
    assert "laptop has 8.00 GB and may take it" in found.sentence
    assert fit(needing(10), {}, workers).verdict == "fits", "the smaller one leaves it to the other"


def test_runs_at_the_same_time_on_one_machine_share_its_memory() -> None:
    slots = [a_worker(slot=f"cpu{index}", memory_total_bytes=16 * GB) for index in range(2)]
    assert fit(needing(10), {}, slots).verdict == "fits"
    together = fit(needing(10), {}, slots, num_runs=6)
    assert together.verdict == "doubtful"
    assert "takes 2 runs at the same time, which need about **20.0 GB** of its **16.0 GB**" in together.sentence


def test_a_run_on_a_gpu_is_held_against_the_gpus_memory() -> None:
    with_gpu = a_worker(slot="gpu0", device="cuda", memory_total_bytes=128 * GB, gpu_memory_total_bytes=24 * GB)
    workers = [with_gpu, a_worker("small", memory_total_bytes=4 * GB)]
    assert on_their_device({"device": "auto"}, workers)["device"] == "cuda"
    assert on_their_device({}, workers)["device"] == "cuda"
    assert on_their_device({"device": "cpu"}, workers)["device"] == "cpu"
    assert on_their_device({"device": "auto"}, workers[1:])["device"] == "auto"
    assert "(laptop, gpu0) has **24.0 GB**" in fit(needing(31), {"device": "cuda"}, workers).sentence
    assert fit(needing(20), {"device": "cuda"}, workers).verdict == "fits"
    assert fit(needing(100), {"device": "cpu"}, [with_gpu]).verdict == "fits"
    assert "no connected worker has a GPU" in fit(needing(1), {"device": "cuda"}, workers[1:]).sentence


def test_a_host_cannot_write_markdown_into_the_page() -> None:
    assert "[" not in fit(needing(1), {}, [a_worker("[x](https://e)", memory_total_bytes=2 * GB)]).sentence.replace(
        "\\[", ""
    )


@pytest.mark.parametrize(
    ("durations", "num_workers", "seconds"),
    [([10, 10, 10], 1, 30), ([10, 10, 10], 2, 20), ([10, 10, 10], 8, 10), ([30, 10, 10, 10], 2, 30)],
)
def test_each_worker_takes_the_next_run_as_soon_as_it_is_free(
    durations: list[float], num_workers: int, seconds: float
) -> None:
    assert queue_seconds(durations, num_workers) == seconds


def test_the_time_of_many_runs_says_for_how_many_workers_it_is() -> None:
    grid = [(600.0, 1200.0)] * 4
    assert "**20–40 min** on the 2 connected workers, each one run at a time" in time_sentence(grid, 2)
    assert "40–80 min one after the other" in time_sentence(grid, 2)
    assert "**40–80 min** on the 1 connected worker" in time_sentence(grid, 1)
    assert "no worker is connected" in time_sentence(grid, 0)


def test_each_part_shows_its_share_of_the_workers_memory() -> None:
    assert memory_row("teacher_weights", 4 * GB, 16 * GB) == {
        "memory": "teacher weights", "size": "4.00 GB", "of the worker's": "25.0 %",
    }  # fmt: skip
    assert "of the worker's" not in memory_row("cache", 5, None)


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize("total", [1_000_000, 16 * GB])
def test_a_run_that_does_not_fit_is_red_and_one_that_does_is_quiet(total: int) -> None:
    def page(total_bytes: int) -> None:
        from dashboard import cached, estimate_card
        from tests.dashboard.test_worker_room import a_worker

        worker = a_worker(memory_total_bytes=total_bytes)
        document = cached.presets(cached.api())[0].spec.model_dump(mode="json")
        estimate = cached.estimate(cached.api(), document)
        estimate_card.show(estimate, document, [worker])
        estimate_card.show_total([(estimate, document)] * 2, 1, [worker])

    drawn = AppTest.from_function(page, args=(total,)).run(timeout=30)
    assert not drawn.exception
    assert len(drawn.error) == (2 if total == 1_000_000 else 0)  # of the run, and of the arm that needs most
    assert any("Fits: about" in one.value for one in drawn.caption) == (total > 1_000_000)
