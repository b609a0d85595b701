"""Files on their way in: received piece by piece into a file beside its final place, within limits of size, time and number."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from fastapi import Request

from backend.limits import Limits
from backend.problems import Refusal

PREFIX = ".incoming-"


class UploadPlaces:
    """How many files one API process takes in at once; used from its event loop alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_open = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for the block; Refusal (503) when there is none."""
        if self.num_open >= self.limit:
            raise Refusal(
                503,
                f"{self.limit} files are being taken in, as many as one API process does at once; try again when one has ended.",
                headers={"Retry-After": "5"},
            )
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1


@asynccontextmanager
async def received(request: Request, folder: Path, suffix: str, limits: Limits) -> AsyncIterator[Path]:
    """The request's body as a file for the block, removed behind it; Refusal (413, 503) when it is too large or too slow."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{PREFIX}{secrets.token_hex(8)}{suffix}"
    try:
        async with asyncio.timeout(limits.upload_seconds):
            await _receive(request, path, limits.upload_bytes)
        yield path
    except TimeoutError:
        raise Refusal(
            503, f"The file had not arrived after {limits.upload_seconds:g} s, which is the limit; send a smaller one."
        ) from None
    finally:
        path.unlink(missing_ok=True)


async def _receive(request: Request, path: Path, max_bytes: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        num_bytes = 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise Refusal(413, f"The file is larger than {max_bytes} bytes, which is the limit; split it.")
            file.write(chunk)
    if not num_bytes:
        raise Refusal(422, "The file is empty; send one with at least one prompt.")
