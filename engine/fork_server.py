"""`python -m engine.fork_server NAME [ROOM]`: imports the engine once and becomes an engine process for each one that is asked for.

Importing torch and transformers is most of what an engine does until it is ready. Here it is done once, without a thread and
without a device, and each engine is a fork that shares this memory until it writes to it. Linux only.

Who asks connects to the abstract Unix socket NAME, once for each engine, and sends one packet: {"arguments": …, "folder": …,
"environment": …} with the descriptors of stdin, stdout and stderr. The answer is {"pid": …} with a descriptor of the process, or
{"refused": "why"}; at the engine's end {"exit_code": …} comes, negative for a signal. The end of the connection ends the
engine with its process group, and so does the end of this process. A pid is not given to another process before that.
`ps` shows an engine's own command line as far as this one's has room; ROOM is there to make some.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_ORPHANED = 75
_MAX_PACKET_BYTES = 65_536
# Without a question nobody waits for the import, and a computer that has just started the services has other work.
_IDLE_SECONDS = 30.0
_NOT_FOR_SERVER = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Sent to all processes of a worker at once, by a terminal or a service manager: engines have their own answers."""


@dataclass
class _Engine:
    pid: int
    descriptor: int
    """Becomes readable at the end of the process."""
    connection: socket.socket | None
    """None once whoever asked for it is gone."""


class ForkServer:
    """The process that waits. It does one thing after the other: a fork takes milliseconds."""

    def __init__(self, name: str, prepare: Callable[[], None]) -> None:
        """`prepare` imports what the engines need; it is called at the first question, or when there was none for a while."""
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # and so in the engines, as in all that the worker's children start
        # Not ignored: what is sent to an engine that has just begun must wait for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_SERVER)
        os.close(os.pidfd_open(os.getpid()))  # a kernel without them cannot keep what is promised above: end here
        self._pid = os.getpid()
        self._prepare: Callable[[], None] | None = prepare
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(f"\0{name}")
        self._listener.listen(64)
        self._connections: dict[int, socket.socket] = {}
        self._engines: dict[int, _Engine] = {}
        """By the descriptor of the process."""
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)

    def next_engine(self) -> list[str]:
        """Serve; it returns in each engine alone, with the arguments of that."""
        while True:
            events = self._poll.poll(None if self._prepare is None else _IDLE_SECONDS * 1000)
            if not events:
                self._get_ready()
            for descriptor, _ in events:
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._engines:
                    self._note_end(self._engines[descriptor])
                elif descriptor in self._connections:
                    asked = self._read(self._connections[descriptor])
                    if asked is not None and self._fork(descriptor, *asked):
                        return self._become(*asked)

    def _get_ready(self) -> None:
        if self._prepare is not None:
            self._prepare()
            gc.collect()
            gc.freeze()  # a collection in an engine would write to all objects, and so copy their memory
            self._prepare = None

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        # An abstract socket has no permissions.
        _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != os.getuid():
            connection.close()
            return
        self._connections[connection.fileno()] = connection
        self._poll.register(connection, select.POLLIN)

    def _read(self, connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
        """What is asked for; None when there is nothing to fork."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(connection, _MAX_PACKET_BYTES, 3, socket.MSG_DONTWAIT)
        except BlockingIOError:  # the event was that of a connection that had this number before
            return None
        except ConnectionResetError:
            packet, descriptors = b"", []
        if not packet:
            self._hang_up(connection)
            return None
        self._get_ready()
        if _has_hung_up(connection):  # it did not want to wait so long, and may have started its engine otherwise
            _close(descriptors)
            self._hang_up(connection)
            return None
        threads = len(os.listdir("/proc/self/task"))
        if threads == 1 and len(descriptors) == 3:
            return json.loads(packet), descriptors
        self._answer(connection, {"refused": f"{threads} threads, {len(descriptors)} descriptors"})
        _close(descriptors)
        return None

    def _fork(self, asking: int, _asked: dict[str, Any], descriptors: list[int]) -> bool:
        """Whether this is the new process."""
        connection = self._connections[asking]
        try:
            pid = os.fork()
        except OSError as error:  # too many processes, or too little memory
            self._answer(connection, {"refused": str(error)})
            _close(descriptors)
            return False
        if pid == 0:
            return True
        _close(descriptors)
        started = _Engine(pid, os.pidfd_open(pid), connection)
        self._engines[started.descriptor] = started
        self._poll.register(started.descriptor, select.POLLIN)
        with suppress(BrokenPipeError):  # the end of the connection is read next
            socket.send_fds(connection, [json.dumps({"pid": pid}).encode()], [started.descriptor])
        return False

    def _become(self, asked: dict[str, Any], descriptors: list[int]) -> list[str]:
        """Make this fork what a process is that was started by itself."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._pid:  # it was killed before the line above
            os._exit(_ORPHANED)
        os.setsid()
        for standard, descriptor in enumerate(descriptors):
            os.dup2(descriptor, standard)
        _close([*descriptors, *self._engines])
        for connection in (self._listener, *self._connections.values()):
            connection.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOT_FOR_SERVER)
        for name, value in asked["environment"].items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        os.chdir(asked["folder"])
        _show_command([sys.executable, "-P", "-m", "engine", *asked["arguments"]])
        return list(asked["arguments"])

    def _hang_up(self, connection: socket.socket) -> None:
        """Whoever asked is gone: its engine ends with all that it has started."""
        del self._connections[connection.fileno()]
        self._poll.unregister(connection)
        for engine in [one for one in self._engines.values() if one.connection is connection]:
            engine.connection = None
            with suppress(ProcessLookupError):  # it has ended, or is not yet the leader of its group
                os.killpg(engine.pid, signal.SIGKILL)
            signal.pidfd_send_signal(engine.descriptor, signal.SIGKILL)
            self._note_end(engine)
        connection.close()

    def _note_end(self, engine: _Engine) -> None:
        """Tell how an engine has ended; forget it when nobody asks any more, which sets its pid free."""
        if engine.connection is None:
            if os.waitpid(engine.pid, os.WNOHANG)[0] == 0:
                return
            with suppress(KeyError):  # its end was told before
                self._poll.unregister(engine.descriptor)
            del self._engines[engine.descriptor]
            os.close(engine.descriptor)
            return
        ended = os.waitid(os.P_PID, engine.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        self._poll.unregister(engine.descriptor)
        exit_code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        self._answer(engine.connection, {"exit_code": exit_code})

    def _answer(self, connection: socket.socket, answer: dict[str, object]) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # its end is read next
            connection.send(json.dumps(answer).encode())


def _has_hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, 0)
    return bool(poll.poll(0))


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _show_command(command: list[str]) -> None:
    """Let `ps` show what this process does, as far as the command line that it was started with has room."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5); 0 where they are not told
    room = end - start - 1
    if start and room > 0:
        ctypes.memmove(start, b"\0".join(map(os.fsencode, command))[:room].ljust(room), room)


def import_engine() -> None:
    """Import all that engine processes do."""
    import engine.analyze
    import engine.attempt
    import engine.check
    import engine.playground  # noqa: F401


def main() -> None:
    """Serve until the worker is gone."""
    arguments = ForkServer(sys.argv[1], import_engine).next_engine()
    import engine.__main__ as command

    sys.argv = [command.__file__, *arguments]
    logging.basicConfig(level=logging.WARNING)
    sys.exit(command.main())


if __name__ == "__main__":
    main()
