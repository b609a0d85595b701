"""The API as a process of its own, for tests of what speaks to it over HTTP."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.access import TOKEN


@contextmanager
def api_process(database_url: str) -> Iterator[str]:
    """Address of an API that serves a database to whoever has the tests' token."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    own = {"INCIPIT_PORT": str(port), "INCIPIT_DATABASE_URL": database_url, "INCIPIT_LOCAL_TOKEN": TOKEN}
    process = subprocess.Popen(
        [sys.executable, "-m", "backend"], env=os.environ | own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                assert httpx.get(f"{url}/livez").status_code == 200
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)
