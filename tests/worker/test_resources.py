"""Samples of what an engine uses: real processes, bounded rows, nothing from who does not hold the run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from backend.database import Database
from backend.queries.claims import LeaseLost, reap
from backend.queries.resources import MAX_SAMPLES, add_sample, run_resources
from backend.records import ResourceSample
from backend.resources import ResourceFigures
from tests.worker.runs import claim, queue_runs, set_columns, short_spec
from worker import resources
from worker.resources import ResourceWatch, parsed_figures, usage_of
from worker.slots import Slot


def test_a_process_is_measured_with_its_children() -> None:
    child = "import time; block = bytearray(60_000_000); time.sleep(60)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while usage_of(process.pid)[1] < 60_000_000 and time.monotonic() < deadline:
            time.sleep(0.1)
        seconds, rss = usage_of(process.pid)
        assert rss > 60_000_000
        assert seconds > 0
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_a_watched_process_leaves_samples_until_it_is_gone(
    database: Database, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_FIRST_SECONDS", 0.1)
    queue_runs(database, short_spec())
    claimed = claim(database)
    watch = ResourceWatch(database, claimed, Slot(0, None), home)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        watch.begin(busy.pid)
        deadline = time.monotonic() + 30
        found = []
        while len(found) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
            watch.keep()
            with database.read() as session:
                found = run_resources(session, claimed.run_id).samples
    finally:
        watch.end()
        busy.kill()
        busy.wait()
    last = found[-1]
    assert last.attempt == claimed.fence
    assert last.cpu_percent is not None
    assert last.cpu_percent > 5
    assert last.rss_bytes is not None
    assert last.rss_bytes > 1_000_000
    assert last.disk_free_bytes is not None
    assert (last.gpu_percent, last.gpu_memory_bytes) == (None, None)


def test_only_the_holder_of_a_run_adds_samples(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    lost = claim(database)
    set_columns(database, run_id, lease_until=None)
    with database.write() as session:
        assert reap(session, lambda owner: False) == [run_id]
    with pytest.raises(LeaseLost), database.write() as session:
        add_sample(session, run_id, lost.fence, ResourceFigures(cpu_percent=1.0))
    with database.read() as session:
        assert run_resources(session, run_id).samples == []


def test_a_long_run_keeps_a_bounded_number_of_samples_first_and_last_among_them(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    held = claim(database)
    with database.write() as session:
        for number in range(MAX_SAMPLES + 1):
            add_sample(session, run_id, held.fence, ResourceFigures(cpu_percent=float(number)))
    with database.read() as session:
        kept = session.scalars(select(ResourceSample.number).order_by(ResourceSample.number)).all()
    assert len(kept) == MAX_SAMPLES // 2 + 2
    assert (kept[:3], kept[-2:]) == ([0, 2, 4], [MAX_SAMPLES - 1, MAX_SAMPLES])


@pytest.mark.parametrize(
    ("said", "figures"),
    [
        ("37, 1024, 81559\n", {"a_percent": 37, "b_bytes": 1024 * 2**20, "c_bytes": 81559 * 2**20}),
        ("[N/A], 3, 4\n", {"b_bytes": 3 * 2**20, "c_bytes": 4 * 2**20}),
        ("No devices were found\n", {}),
        ("", {}),
    ],
)
def test_what_a_gpus_driver_says_is_taken_as_far_as_it_is_a_number(said: str, figures: dict[str, int]) -> None:
    assert parsed_figures(("a_percent", "b_bytes", "c_bytes"), said) == figures
