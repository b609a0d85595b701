"""An address where nothing answers, not even that nobody listens: what a host does that is switched off or drops packets."""

import socket
from types import TracebackType


class SilentHost:
    """A listening port of loopback whose queue is full, so that the kernel drops who wants to connect."""

    def __enter__(self) -> "SilentHost":
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._waiting = [socket.socket() for _ in range(4)]
        for one in self._waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", self.port))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for one in [*self._waiting, self._listener]:
            one.close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"
