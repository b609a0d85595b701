"""Processes that know whether others live, and that die together."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from worker.identity import ProcessIdentity, is_dead
from worker.slots import Slot, free_slot, slots_of_this_machine, visible_gpus
from worker.tether import tethered

_SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_a_process_knows_another_as_alive_until_it_ends() -> None:
    process = subprocess.Popen(_SLEEP)
    identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    assert not is_dead(identity.name)
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert is_dead(identity.name), "a zombie writes nothing any more"
    process.wait()
    assert is_dead(identity.name)


def test_a_reused_pid_and_a_restarted_machine_are_other_processes() -> None:
    own = ProcessIdentity.own()
    assert is_dead(replace(own, started=own.started - 1).name)
    assert is_dead(replace(own, boot_id="0000aaaa").name)


def test_of_a_process_of_another_container_with_this_hosts_name_nobody_can_say_that_it_is_dead() -> None:
    assert not is_dead(replace(ProcessIdentity.own(), pid_namespace="1", pid=1, started=1).name)


def test_a_laptop_that_joins_another_network_locks_the_same_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ProcessIdentity.own()
    with free_slot([Slot(0, None)], tmp_path) as held:
        assert held is not None
        monkeypatch.setattr(socket, "gethostname", lambda: "another-network")
        with free_slot([Slot(0, None)], tmp_path) as second:
            assert second is None
    assert ProcessIdentity.own() == own
    assert not is_dead(own.name)


@pytest.mark.parametrize("name", ["elsewhere:0000aaaa:2:1:1", "", "nonsense", "a:b:c:d", "a:b:c:d:e"])
def test_of_a_process_of_another_machine_nobody_can_say_that_it_is_dead(name: str) -> None:
    assert not is_dead(name)


def test_a_tethered_process_dies_with_its_parent_even_when_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import subprocess, time
from worker.tether import tethered
child = subprocess.Popen(tethered({_SLEEP!r}, 9), start_new_session=True)
open({str(tmp_path / "pid")!r} + ".draft", "w").write(str(child.pid))
import os; os.rename({str(tmp_path / "pid")!r} + ".draft", {str(tmp_path / "pid")!r})
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "pid").exists():
        time.sleep(0.02)
    child = psutil.Process(int((tmp_path / "pid").read_text()))
    while child.cmdline() != _SLEEP:  # until the tether has become the command
        time.sleep(0.02)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    child.wait(timeout=5)


def test_a_command_is_not_even_started_when_its_parent_is_gone() -> None:
    command = tethered(["/bin/echo", "started"], signal.SIGKILL)
    command[command.index(str(os.getpid()))] = "1"
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")


def test_a_slot_has_one_user_and_is_free_again_when_that_is_killed(tmp_path: Path) -> None:
    slots = [Slot(0, None), Slot(1, None)]
    code = f"""
import sys, time
from pathlib import Path
from worker.slots import Slot, free_slot
with free_slot([Slot(0, None), Slot(1, None)], Path({str(tmp_path)!r})) as slot:
    print(slot.index, flush=True)
    time.sleep(60)
"""
    user = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert user.stdout is not None
    assert user.stdout.readline() == "0\n"
    with free_slot(slots, tmp_path) as mine:
        assert mine == slots[1]
        with free_slot(slots, tmp_path) as none_left:
            assert none_left is None
    user.kill()
    user.wait()
    user.stdout.close()
    with free_slot(slots, tmp_path) as again:
        assert again == slots[0]


def test_each_gpu_is_a_slot_and_a_cpu_has_at_most_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5a")
    assert visible_gpus() == ["2", "GPU-5a"]
    assert [slot.name for slot in slots_of_this_machine(None)] == ["gpu2", "gpuGPU-5a"]
    assert slots_of_this_machine(None)[1].environment()["CUDA_VISIBLE_DEVICES"] == "GPU-5a"
    assert [slot.gpu for slot in slots_of_this_machine(3)] == ["2", "GPU-5a", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 1 <= len(slots_of_this_machine(None)) <= 2
    assert slots_of_this_machine(5)[4].environment()["OMP_NUM_THREADS"] == "1"


def test_the_worker_loads_no_library_that_computes(home: Path) -> None:
    code = """
import sys
sys.modules.update({"torch": None, "transformers": None, "vllm": None, "numpy": None, "pyarrow": None})
import worker.app, worker.control, worker.supervisor
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "INCIPIT_HOME": str(home)})
