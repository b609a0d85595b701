"""An archive or a file of any size passes through the API in constant memory, to a reader that is slow as well."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import update

from backend.database import Database
from backend.records import Checkpoint
from tests import databases
from tests.access import SIGNED_IN
from tests.api_process import served
from tests.backend.checkpoints import attempt_folder, commit_checkpoint
from tests.worker.runs import queue_runs, short_spec

_LARGE_BYTES = 1024**3
_MAX_GROWTH_BYTES = 48 * 1024**2


@pytest.fixture
def large(home: Path) -> Iterator[tuple[httpx.Client, psutil.Process, str]]:
    """A client of an API process, the process, and the address of a checkpoint with 1 GiB of weights that take no disk."""
    address = databases.sqlite_copy(home)
    database = Database(address)
    (run_id,) = queue_runs(database, short_spec())
    checkpoint_id = commit_checkpoint(database, home / "runs", run_id)
    weights = attempt_folder(home / "runs", run_id) / "checkpoints" / "step-20" / "model.safetensors"
    os.truncate(weights, _LARGE_BYTES)
    files = [{"name": "model.safetensors", "num_bytes": _LARGE_BYTES, "sha256": "0" * 64}]
    with database.write() as session:
        session.execute(update(Checkpoint).values(files=files, num_bytes=_LARGE_BYTES))
    database.close()
    with (
        served(address) as api,
        httpx.Client(base_url=api.url, timeout=60, headers=SIGNED_IN) as client,
    ):
        yield client, psutil.Process(api.pid), f"/api/v1/checkpoints/{checkpoint_id}"


@pytest.mark.parametrize("part", ["archive", "files/model.safetensors"])
def test_a_gigabyte_leaves_without_the_api_growing(large: tuple[httpx.Client, psutil.Process, str], part: str) -> None:
    client, process, address = large
    client.get(f"{address}/files/model.safetensors", headers={"Range": "bytes=0-999999"})  # all code is loaded
    before, most, received, is_slow = process.memory_info().rss, 0, 0, False
    with client.stream("GET", f"{address}/{part}") as response:
        expected = int(response.headers["content-length"])
        for chunk in response.iter_raw(1024 * 1024):
            received += len(chunk)
            most = max(most, process.memory_info().rss)
            if received > expected // 2 and not is_slow:
                time.sleep(1.0)  # what the reader does not take must not pile up in the server
                most, is_slow = max(most, process.memory_info().rss), True
    assert received == expected >= _LARGE_BYTES
    assert most - before < _MAX_GROWTH_BYTES
    print(f"{part}: {(most - before) / 1024**2:.1f} MiB more at most")


def test_a_part_far_inside_comes_alone(large: tuple[httpx.Client, psutil.Process, str]) -> None:
    client, _, address = large
    wanted = {"Range": f"bytes={_LARGE_BYTES - 10}-", "If-Range": f'"{"0" * 64}"'}
    response = client.get(f"{address}/files/model.safetensors", headers=wanted)
    assert (response.status_code, len(response.content)) == (206, 10)
    assert response.headers["content-range"] == f"bytes {_LARGE_BYTES - 10}-{_LARGE_BYTES - 1}/{_LARGE_BYTES}"
