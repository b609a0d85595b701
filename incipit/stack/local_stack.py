"""LocalStack: broker, database, API, worker, control process and dashboard of one home, as one process tree on loopback."""

import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx

from incipit.stack.broker import answers, broker_service, broker_url, private_folder
from incipit.stack.errors import StackError
from incipit.stack.home import opened_home
from incipit.stack.interrupts import let_the_end_be_orderly
from incipit.stack.local_token import new_local_token, remove_local_token
from incipit.stack.ports import LOOPBACK, choosing_ports, chosen_port
from incipit.stack.service import Service, end_orphan, started_at, worker_stop_seconds
from incipit.stack.state import ServiceState, StackState, only_stack, read_state, write_state
from worker.identity import ProcessIdentity

_READY_SECONDS = 90.0  # a cold disk on a busy 2-core laptop needs a third of this
_ORPHAN_SECONDS = 10.0
_RESTARTS, _RESTART_WINDOW_SECONDS = 5, 120.0
_WATCH_SECONDS = 0.5
# The worker first, so that its runs write checkpoints and tell the database; the broker when nobody needs it any more.
_TOKEN_HOLDERS = ("api", "dashboard")
_STOP_ORDER = (("worker",), ("control", "dashboard", "api"), ("broker",))


class LocalStack:
    """`with LocalStack(home) as stack:` everything runs and answers; behind the block everything has ended.

    Use it from the main thread: the services die with the thread that started them.
    """

    def __init__(
        self,
        home: Path,
        *,
        dashboard_port: int | None = None,
        api_port: int | None = None,
        with_dashboard: bool = True,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`report` gets a line for each thing that now runs, stops or was restarted."""
        self.home = home
        self.api_url = ""
        self.dashboard_url: str | None = None
        self.failure: str | None = None
        """One sentence, once a service died too often to be started again."""
        self._dashboard_port = dashboard_port
        self._api_port = api_port
        self._with_dashboard = with_dashboard
        self._report_to = report
        self._token = ""
        self._services: dict[str, Service] = {}
        self._cleanup = ExitStack()
        self._is_stopping = threading.Event()
        self._has_stopped = threading.Event()
        self._restarting = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="stack-watcher", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop(seconds=5)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        self._worker_seconds = worker_stop_seconds()
        self.home = opened_home(self.home, needs_local_disk="INCIPIT_DATABASE_URL" not in os.environ)
        self._cleanup.enter_context(only_stack(self.home))
        earlier = read_state(self.home)
        for service in earlier.services if earlier else []:
            end_orphan(service.pid, service.started_at, _ORPHAN_SECONDS)
        self._token = new_local_token(self.home)
        self._cleanup.callback(remove_local_token, self.home)
        with choosing_ports(private_folder()):
            self._choose_addresses(earlier)
            self._start_broker()
            self._migrate()
            self._start_services()
        self._watcher.start()
        self._write_state(is_ready=True)

    def _start_services(self) -> None:
        for name, command in self._commands().items():
            stop_seconds = self._worker_seconds if name == "worker" else 10.0
            self._services[name] = self._service(name, command, stop_seconds)
            self._services[name].start()
        self._write_state(is_ready=False)
        self._await_services()

    def _choose_addresses(self, earlier: StackState | None) -> None:
        """The same ports as last time if they are free, so that an open browser tab finds its page again."""
        api_before = [_port_of(earlier.api_url)] if earlier else []
        api_port = chosen_port(self._api_port, "--api-port", [*api_before, 8000])
        self.api_url = f"http://{LOOPBACK}:{api_port}"
        if self._with_dashboard:
            before = [_port_of(earlier.dashboard_url)] if earlier and earlier.dashboard_url else []
            port = chosen_port(self._dashboard_port, "--port", [*before, 8501])
            self.dashboard_url = f"http://{LOOPBACK}:{port}"

    def _start_broker(self) -> None:
        if "INCIPIT_BROKER_URL" in os.environ:
            self._broker_url = os.environ["INCIPIT_BROKER_URL"]
            return
        broker, socket = broker_service(self.home, os.environ)
        self._broker_url = broker_url(socket)
        self._services["broker"] = broker
        broker.start()
        self._await(broker, lambda: answers(socket))
        self._report(f"broker     Valkey on {socket}")

    def _migrate(self) -> None:
        environment = self._environment()
        migrated = subprocess.run(
            [sys.executable, "-P", "-m", "backend.migrate"],
            env=environment,
            cwd=self.home,
            capture_output=True,
            text=True,
        )
        (self.home / "logs" / "migrate.log").write_text(migrated.stdout + migrated.stderr)
        if migrated.returncode != 0:
            lines = migrated.stderr.strip().splitlines() or [f"exit code {migrated.returncode}"]
            raise StackError(
                f"The database cannot be brought up to date: {lines[-1]} (see {self.home}/logs/migrate.log)"
            )
        address = environment.get("INCIPIT_DATABASE_URL")
        self._report(f"database   {urlsplit(address).hostname if address else self.home / 'incipit.sqlite3'}")

    def _commands(self) -> dict[str, list[str]]:
        python = [sys.executable, "-P", "-m"]
        commands = {
            "api": [*python, "backend"],
            "worker": [*python, "worker"],
            "control": [*python, "worker.control"],
        }
        if self.dashboard_url is not None:
            commands["dashboard"] = [
                *python, "streamlit", "run", str(_dashboard_script()), "--server.headless", "true",
                "--server.fileWatcherType", "none", "--browser.gatherUsageStats", "false",
                "--server.address", LOOPBACK, "--server.port", str(_port_of(self.dashboard_url)),
            ]  # fmt: skip
        return commands

    def _service(self, name: str, command: list[str], stop_seconds: float) -> Service:
        log_path = self.home / "logs" / f"{name}.log"
        environment = self._environment()
        if name in _TOKEN_HOLDERS:  # not in an argument, which every user of the machine could read
            environment["INCIPIT_LOCAL_TOKEN"] = self._token
        return Service(name, command, environment=environment, log_path=log_path, stop_seconds=stop_seconds)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "INCIPIT_HOME": str(self.home),
            "INCIPIT_BROKER_URL": self._broker_url,
            "INCIPIT_HOST": LOOPBACK,
            "INCIPIT_PORT": str(_port_of(self.api_url)),
            "INCIPIT_API_URL": self.api_url,
            "PYTHONUNBUFFERED": "1",
        }

    def _await_services(self) -> None:
        api, worker = self._services["api"], self._services["worker"]
        credentials = {"Authorization": f"Bearer {self._token}"}
        with httpx.Client(base_url=self.api_url, timeout=5, trust_env=False, headers=credentials) as client:
            self._await(api, lambda: client.get("/readyz").is_success)
            self._report(f"api        {self.api_url}/docs")

            def workers() -> list[dict[str, object]]:
                answer = client.get("/api/v1/workers")
                return [seen for seen in answer.raise_for_status().json() if seen["pid"] == worker.pid]

            self._await(worker, lambda: bool(workers()))
            slots = ", ".join(sorted(str(seen["slot"]) for seen in workers()))
            self._report(f"worker     runs at the same time: {len(workers())} ({slots})")
            self._report("control    takes care of queue and leases")
            if self.dashboard_url is not None:
                health = f"{self.dashboard_url}/_stcore/health"
                self._await(self._services["dashboard"], lambda: client.get(health).is_success)
                self._report(f"dashboard  {self.dashboard_url}")

    def _await(self, service: Service, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            if service.exit_code() is not None:
                raise StackError(
                    f"The {service.name} ended at its start: {service.last_log_line()} (see {service.log_path})"
                )
            with suppress(httpx.HTTPError):  # nobody listens there yet
                if is_ready():
                    return
            if time.monotonic() > deadline:
                raise StackError(
                    f"The {service.name} did not answer within {_READY_SECONDS:.0f} s; see {service.log_path}."
                )
            time.sleep(0.1)

    def _watch(self) -> None:
        """Start again what dies. This thread lives until all is stopped, because what it starts dies with it."""
        restarts: dict[str, list[float]] = {}
        while not self._is_stopping.wait(_WATCH_SECONDS):
            with self._restarting:
                for service in self._services.values():
                    if service.exit_code() is not None and not self._is_stopping.is_set():
                        try:
                            self._restart(service, restarts.setdefault(service.name, []))
                        except Exception as error:  # what this thread started lives no longer than it
                            self.failure = f"The {service.name} ended and cannot be started again: {error}."
        self._has_stopped.wait()

    def _restart(self, service: Service, restarts: list[float]) -> None:
        if self.failure is not None:
            return
        now = time.monotonic()
        restarts[:] = [moment for moment in restarts if moment > now - _RESTART_WINDOW_SECONDS] + [now]
        if len(restarts) > _RESTARTS:
            self.failure = (
                f"The {service.name} ended {len(restarts)} times within {_RESTART_WINDOW_SECONDS:.0f} s, last with "
                f"{service.last_log_line()!r}; see {service.log_path}."
            )
            return
        self._report(f"The {service.name} ended (exit code {service.exit_code()}) and is started again.")
        service.kill()  # what is left of its group
        service.start()
        with suppress(OSError):  # it runs all the same when the disk is full
            self._write_state(is_ready=True)

    def stop(self, *, seconds: float | None = None) -> None:
        """End everything in order; `seconds` shortens the time that each service gets, 0 ends all at once."""
        let_the_end_be_orderly()
        self._is_stopping.set()
        if self._services and seconds is None:
            self._report("Stopping: runs at work write a checkpoint first. Ctrl-C again ends everything at once.")
        # None is started behind our back from here on, and on a full disk everything must end all the same.
        with self._restarting, suppress(OSError):
            if self._services:
                self._write_state(is_ready=False)
        for names in _STOP_ORDER:
            services = [self._services[name] for name in names if name in self._services]
            for service in services:
                service.ask_to_stop()
            for service in services:
                if not service.stop(seconds=seconds) and seconds is None:
                    self._report(f"The {service.name} did not end by itself and was killed.")
        self._has_stopped.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self._services.clear()
        self._cleanup.close()

    def _report(self, line: str) -> None:
        with suppress(OSError):  # the terminal may be closed already; the stack must still end in order
            self._report_to(line)

    def _write_state(self, *, is_ready: bool) -> None:
        services = [
            ServiceState(name=service.name, pid=service.pid, started_at=started)
            for service in self._services.values()
            if service.pid is not None and (started := started_at(service.pid)) is not None
        ]
        state = StackState(
            is_ready=is_ready,
            launcher=ProcessIdentity.own().name,
            api_url=self.api_url,
            dashboard_url=self.dashboard_url,
            broker_url=self._broker_url,
            services=services,
        )
        write_state(self.home, state)


def _dashboard_script() -> Path:
    found = importlib.util.find_spec("dashboard")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "app.py"


def _port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port
