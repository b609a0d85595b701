"""Real vLLM servers for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil

PYTHON = os.environ.get("INCIPIT_VLLM_PYTHON", ".venv-vllm/bin/python")
START_SECONDS = 300


class Server:
    """A vLLM server as a user starts it, or as vLLM itself would be started (`plain`)."""

    def __init__(
        self, model: Path, log: Path, *, plain: bool = False, port: int | None = None, options: Sequence[str] = ()
    ) -> None:
        self.port = free_port() if port is None else port
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = log
        options = ["--max-num-seqs", "16", "--dtype", "float32", "--port", str(self.port), *options]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [
            str(Path(sys.executable).parent / "incipit"),
            "rollout-server",
            str(model),
            "--python",
            PYTHON,
            *options,
        ]
        if plain:
            entry = [str(Path(PYTHON).absolute()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
            command = [*entry, "--host", "127.0.0.1", "--enforce-eager", *options]
            environment |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_SERVER_DEV_MODE": "1"}
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        end = time.monotonic() + START_SECONDS
        while not self.is_up():
            assert self.process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-3000:]  # noqa: PT018
            time.sleep(0.5)

    def is_up(self) -> bool:
        try:
            return httpx.get(f"{self.address}/health", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        if number == signal.SIGKILL:
            for one in family:
                one.kill()
        self.process.send_signal(number)
        _, alive = psutil.wait_procs(family, timeout=30)
        for one in alive:
            one.kill()
        self.process.wait(30)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
