"""A real store with S3's interface for the tests, started once for each process of pytest."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backend.s3_bucket import S3Bucket
from backend.store_settings import StoreSettings

PYTHON = Path(__file__).parents[2] / ".venv-s3" / "bin" / "python"
ACCESS_KEY, SECRET_KEY = "incipit:tester", "canary-secret-of-the-store"
REGION = "eu-test-1"
_START_SECONDS = 30.0


@contextmanager
def object_store(folder: Path) -> Iterator[str]:
    """Its address, as long as the block lasts."""
    port = _free_port()
    with (folder / "server.log").open("wb") as log:
        process = start(folder, port, log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def start(folder: Path, port: int, log: object = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
    """The server on what the folder holds; it listens when this returns."""
    script = Path(__file__).with_name("swift_process.py")
    environment = {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen([PYTHON, script, folder, str(port)], stdout=log, stderr=log, env=environment)  # type: ignore[call-overload]
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"The object store did not start; see {folder / 'server.log'}, or run `make s3` again.")


def store_settings(endpoint: str, folder: Path, *, bucket: str, prefix: str = "incipit") -> StoreSettings:
    """Settings with key files in `folder`."""
    access, secret = folder / "store_access_key", folder / "store_secret_key"
    access.write_text(ACCESS_KEY + "\n")
    secret.write_text(SECRET_KEY + "\n")
    return StoreSettings(
        url=f"s3://{bucket}/{prefix}", endpoint=endpoint, region=REGION, access_key_file=access, secret_key_file=secret
    )


def make_bucket(settings: StoreSettings) -> S3Bucket:
    """The bucket of the settings, made now."""
    bucket = S3Bucket(settings)
    place = {"LocationConstraint": REGION}
    bucket._files.call_s3("create_bucket", Bucket=settings.bucket, CreateBucketConfiguration=place)
    return bucket


def is_installed() -> bool:
    """Whether `make s3` was run."""
    return PYTHON.exists() and shutil.which(PYTHON) is not None


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def environment_of(settings: StoreSettings) -> dict[str, str]:
    """The settings as a process is given them."""
    return {f"INCIPIT_STORE__{name.upper()}": str(value) for name, value in settings if value}
