"""A worker tells how much memory its runs have: the machine's, or a container's limit, by both versions of control groups."""

from pathlib import Path

import psutil
import pytest

from engine.machine_memory import machine_memory
from worker import resources
from worker.slots import Slot

_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def write_group(folder: Path, names: tuple[str, str, str], limit: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"active_file 7\n{names[2]} {cached}\n")


@pytest.mark.parametrize(
    ("line", "mount", "names"), [("0::/box/inner", "", _V2), ("4:cpu,memory:/box/inner", "memory", _V1)]
)
def test_the_narrowest_limit_above_the_process_counts_and_caches_of_files_are_free(
    tmp_path: Path, line: str, mount: str, names: tuple[str, str, str]
) -> None:
    (tmp_path / "cgroup").write_text(f"9:pids:/elsewhere\n{line}\n")
    root = tmp_path / "sys" / mount
    write_group(root / "box", names, "1000000", 700_000, 200_000)
    write_group(root / "box" / "inner", names, "3000000", 600_000, 0)
    memory = machine_memory(tmp_path / "cgroup", tmp_path / "sys")
    assert (memory.total_bytes, memory.available_bytes) == (1_000_000, 500_000)


def test_a_path_that_is_the_hosts_leads_to_the_containers_own_limit(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("4:memory:/docker/abc\n")
    write_group(tmp_path / "sys" / "memory", _V1, "2000000", 2_500_000, 0)
    memory = machine_memory(tmp_path / "cgroup", tmp_path / "sys")
    assert (memory.total_bytes, memory.available_bytes) == (2_000_000, 0)


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", "nonsense"])
def test_without_a_limit_it_is_the_machines(tmp_path: Path, limit: str) -> None:
    (tmp_path / "cgroup").write_text("0::/\n")
    write_group(tmp_path / "sys", _V2, limit, 0, 0)
    assert machine_memory(tmp_path / "cgroup", tmp_path / "sys").total_bytes == psutil.virtual_memory().total
    assert machine_memory(tmp_path / "nowhere", tmp_path / "sys").total_bytes == psutil.virtual_memory().total


def test_a_slot_tells_its_gpus_memory_and_asks_the_driver_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\necho '37, 1024, 81559'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    resources.gpu_memory_total_bytes.cache_clear()
    told = [resources.capabilities(Slot(0, "GPU-of-this-test"), ["lab"]) for _ in range(2)]
    assert {one.gpu_memory_total_bytes for one in told} == {81559 * 2**20}
    assert (tmp_path / "asked").read_text() == "asked\n"
    assert told[0].device == "cuda"
    without = resources.capabilities(Slot(0, None), [])
    assert (without.device, without.gpu_memory_total_bytes) == ("cpu", None)
    assert without.memory_total_bytes is not None
    assert 0 < (without.memory_available_bytes or 0) <= without.memory_total_bytes
