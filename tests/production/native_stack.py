"""The services of docker-compose.yml as processes of this machine: their own commands, environments, checks and ends.

What a container would give is given by other means: ports of its own by free ones, the names of hosts by 127.0.0.1, mounted
secrets and volumes by folders. Nothing of this process's environment is handed on. The servers are real ones, of the packages that the
tests have: PostgreSQL set up as its image does (a user with a password, asked for over TCP), and Valkey.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from incipit.stack.broker import broker_binary
from tests import databases
from tests.production.compose_file import ROOT, ComposeService

_PORTS = {"postgres": 5432, "redis": 6379, "api": 8000, "dashboard": 8501}
_HEALTHY_SECONDS = 120.0
_IMAGE_STOP_SIGNALS = {"postgres": signal.SIGINT}  # STOPSIGNAL of its image: a fast shutdown
# Valkey's package here has the server alone.
_VALKEY_CLI = """#!{python}
import os, sys, redis
assert sys.argv[1:] == ["-e", "ping"]
try:
    answer = redis.Redis(port=int(os.environ["VALKEY_PORT"]), socket_timeout=3).ping()
except redis.RedisError as error:
    sys.exit(str(error))
"""


class NativeStack:
    """Starts, checks and stops services one by one."""

    def __init__(self, folder: Path, services: Mapping[str, ComposeService], password: str) -> None:
        """`folder` is readable by every user, since PostgreSQL refuses to run as root."""
        self.services = services
        self.folder = folder
        self.ports = {port: _free_port() for port in _PORTS.values()}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._programs = databases.postgres_programs()
        self._user = databases.SERVER_USER if os.geteuid() == 0 else None
        for name in ("secrets", "data", "redis", "bin", "home"):
            (folder / name).mkdir(mode=0o700)
        (folder / "secrets" / "postgres_password").write_text(password + "\n")
        cli = folder / "bin" / "valkey-cli"
        cli.write_text(_VALKEY_CLI.format(python=sys.executable))
        cli.chmod(0o755)
        (folder / "bin" / "valkey-server").symlink_to(broker_binary())

    def native(self, text: str) -> str:
        """A value of the compose file as it is on this machine."""
        text = text.replace("/run/secrets/", f"{self.folder}/secrets/")
        text = re.sub(r"^/data(?=/|$)", f"{self.folder}/data", text)
        text = text.replace("0.0.0.0", "127.0.0.1")
        hosts = "|".join([*_PORTS, "localhost", r"127\.0\.0\.1"])
        return re.sub(
            rf"(?:((?<=[/@])(?:{hosts}):)|(?<==)|^)({'|'.join(map(str, self.ports))})(?=/|'|$)",
            lambda found: ("127.0.0.1:" if found[1] else "") + str(self.ports[int(found[2])]),
            text,
        )

    def environment(self, name: str) -> dict[str, str]:
        """What the service's process gets, and nothing else."""
        given = {key: self.native(value) for key, value in self.services[name].environment.items()}
        paths = [str(self.folder / "bin"), str(Path(sys.executable).parent), str(self._programs), "/usr/bin", "/bin"]
        machine = {"PATH": ":".join(paths), "HOME": str(self.folder / "home"), "OMP_NUM_THREADS": "1"}
        return machine | given | {"PGPORT": str(self.ports[5432]), "VALKEY_PORT": str(self.ports[6379])}

    def start(self, *names: str) -> None:
        """Start services as Compose does, each when what it needs is ready, and wait until all are."""
        waiting: list[str] = []
        for name in names:
            for needed in [one for one in waiting if one in self.services[name].needs]:
                self._await(needed)
                waiting.remove(needed)
            self._launch(name)
            waiting.append(name)
        for name in waiting:
            self._await(name)

    def _await(self, name: str) -> None:
        """Wait as those that need a service do: for its health, or for its end where it ends."""
        if "healthcheck" in self.services[name].document:
            self.await_health(name)
        else:
            assert self.processes[name].wait(_HEALTHY_SECONDS) == 0, self.log(name)

    def _launch(self, name: str) -> None:
        command = [self.native(part) for part in self.services[name].command]
        cwd, user = ROOT, None
        if name == "postgres":
            command, cwd, user = self._set_up_postgres(), self.folder, self._user
        elif name == "redis":
            command += ["--port", str(self.ports[6379]), "--bind", "127.0.0.1"]
            cwd = self.folder / "redis"
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=self.environment(name), cwd=cwd, user=user, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def is_healthy(self, name: str) -> bool:
        """Whether the service's own check passes, within its own time."""
        service = self.services[name]
        command = [self.native(part) for part in service.health_command]
        seconds = float(service.document["healthcheck"]["timeout"].removesuffix("s"))
        try:
            checked = subprocess.run(
                command, env=self.environment(name), cwd=ROOT, capture_output=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return checked.returncode == 0

    def await_health(self, name: str) -> None:
        """Wait until the check passes; a service that ends meanwhile, or takes too long, fails the test with its log."""
        deadline = time.monotonic() + _HEALTHY_SECONDS
        while not self.is_healthy(name):
            assert self.processes[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.5)

    def run(self, name: str, *command: str) -> str:
        """`docker compose run --rm NAME COMMAND…`: what it printed."""
        done = subprocess.run(
            command, env=self.environment(name), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self, name: str) -> float:
        """End a service as Compose does; the seconds that it took of its grace period, within which it must end."""
        process, begun = self.processes.pop(name), time.monotonic()
        process.send_signal(_IMAGE_STOP_SIGNALS.get(name, signal.SIGTERM))
        status = process.wait(self.services[name].grace_seconds)
        assert status in (0, -signal.SIGTERM, 128 + signal.SIGTERM), f"{name}: {status}\n{self.log(name)}"
        return time.monotonic() - begun

    def log(self, name: str) -> str:
        """The end of what a service wrote."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def kill(self) -> None:
        """End whatever a failed test has left."""
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    def _set_up_postgres(self) -> list[str]:
        """What the image's entrypoint does with POSTGRES_USER, POSTGRES_DB and POSTGRES_PASSWORD_FILE; the server's command."""
        data, given = self.folder / "postgres", self.environment("postgres")
        command = [str(self._programs / "postgres"), "-D", str(data), "-k", str(self.folder), "-h", "127.0.0.1"]
        if data.exists():
            return [*command, "-p", str(self.ports[5432])]
        data.mkdir(mode=0o700)
        password = self.folder / "pwfile"
        shutil.copy(given["POSTGRES_PASSWORD_FILE"], password)
        for path in (data, password):
            if self._user:
                shutil.chown(path, self._user)
        self._as_postgres(
            "initdb", "-D", str(data), f"--username={given['POSTGRES_USER']}", f"--pwfile={password}",
            "--auth-host=scram-sha-256", "--auth-local=trust", "--no-sync",
        )  # fmt: skip
        assert given["POSTGRES_DB"] == given["POSTGRES_USER"], "made below under one name"
        single = [str(self._programs / "postgres"), "--single", "-D", str(data), "postgres"]
        subprocess.run(
            single, input=f'CREATE DATABASE "{given["POSTGRES_DB"]}"\n', text=True, user=self._user, cwd=self.folder,
            capture_output=True, check=True,
        )  # fmt: skip
        return [*command, "-p", str(self.ports[5432])]

    def _as_postgres(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments], user=self._user, cwd=self.folder, capture_output=True, check=True
        )


@contextmanager
def native_stack(services: Mapping[str, ComposeService], password: str) -> Iterator[NativeStack]:
    """A stack of which nothing runs yet; behind the block nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="incipit-compose-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        stack = NativeStack(folder, services, password)
        if stack._user:
            shutil.chown(folder, stack._user)  # for the server's socket
        try:
            yield stack
        finally:
            stack.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
