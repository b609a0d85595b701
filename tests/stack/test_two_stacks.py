"""Two people, or two clones, start at the same moment."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from incipit.stack.state import running_stack

_SECONDS = 150.0


@pytest.mark.full
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("home")
def test_two_stacks_that_start_at_once_get_ports_of_their_own(tmp_path: Path) -> None:
    homes = [tmp_path / "one", tmp_path / "two"]
    code = "from incipit.cli import app; app()"
    environment = {name: value for name, value in os.environ.items() if name != "INCIPIT_HOME"}
    launchers = [
        subprocess.Popen(
            [sys.executable, "-c", code, "up", "--no-dashboard", "--home", str(folder)],
            env=environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        for folder in homes
    ]
    try:
        deadline = time.monotonic() + _SECONDS
        while not all(running_stack(folder) for folder in homes):
            assert time.monotonic() < deadline, f"not ready within {_SECONDS} s"
            assert [launcher.poll() for launcher in launchers] == [None, None]
            time.sleep(0.2)
        addresses = {state.api_url for folder in homes if (state := running_stack(folder))}
        assert len(addresses) == 2
    finally:
        for launcher in launchers:
            launcher.send_signal(signal.SIGTERM)
        assert [launcher.wait(timeout=60) for launcher in launchers] == [0, 0]
