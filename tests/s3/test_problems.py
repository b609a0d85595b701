"""What is wrong with a store is one sentence with the value and the fix, never with a secret."""

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from backend.redaction import Redaction
from backend.s3_bucket import S3Bucket
from backend.settings import Settings
from backend.store_problem import StoreProblem
from backend.store_settings import StoreSettings
from incipit.cli import app
from tests.s3.object_store import ACCESS_KEY, SECRET_KEY, environment_of


def test_a_working_store_has_no_problem(bucket: S3Bucket) -> None:
    bucket.check(writes=True)
    assert list(bucket.listed("")) == []


@pytest.mark.parametrize("which", ["access", "secret"])
def test_wrong_keys_are_named_by_their_files(bucket: S3Bucket, tmp_path: Path, which: str) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("canary-of-wrong-keys")
    broken = S3Bucket(bucket.settings.model_copy(update={f"{which}_key_file": wrong}))
    with pytest.raises(StoreProblem) as caught:
        broken.check(writes=True)
    said = str(caught.value)
    assert said.startswith(f"The store at {bucket.settings.endpoint} refuses the keys of '")
    assert str(wrong) in said
    assert said.endswith("correct them there.")
    assert not any(secret in said for secret in ("canary-of-wrong-keys", SECRET_KEY, ACCESS_KEY))


def test_a_missing_bucket_is_named(store: StoreSettings, tmp_path: Path) -> None:
    for writes in (False, True):
        with pytest.raises(
            StoreProblem, match=rf"There is no bucket '{store.bucket}' at the store at http.*; create it, or"
        ):
            S3Bucket(store).check(writes=writes)
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(StoreProblem, match=f"There is no bucket '{store.bucket}'"):
        S3Bucket(store).put(
            "a/b",
            tmp_path / "f",
            sha256="2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
            num_bytes=1,
        )


def test_a_server_that_is_not_there_is_named(store: StoreSettings) -> None:
    nowhere = S3Bucket(store.model_copy(update={"endpoint": "http://127.0.0.1:9"}))
    with pytest.raises(
        StoreProblem, match=r"^The store at http://127.0.0.1:9 does not answer \(.*INCIPIT_STORE__ENDPOINT.$"
    ):
        nowhere.check(writes=False)


def test_no_keys_at_all_are_asked_for(store: StoreSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    without = store.model_copy(update={"access_key_file": None, "secret_key_file": None})
    with pytest.raises(StoreProblem, match="there are no keys for it; set INCIPIT_STORE__ACCESS_KEY_FILE and"):
        S3Bucket(without).check(writes=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreProblem, match="refuses the keys of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        S3Bucket(without).check(writes=False)


def test_bytes_that_change_on_their_way_are_not_stored(bucket: S3Bucket, tmp_path: Path) -> None:
    content = b"m" * 100_000
    (tmp_path / "f").write_bytes(content)
    with changing_proxy(bucket.settings.endpoint) as address:
        behind = S3Bucket(bucket.settings.model_copy(update={"endpoint": address}))
        sha256 = hashlib.sha256(content).hexdigest()
        with pytest.raises(StoreProblem, match=r"answered XAmzContentSHA256Mismatch|answered BadDigest"):
            behind.put("a/b", tmp_path / "f", sha256=sha256, num_bytes=len(content))
    assert bucket.facts("a/b") is None


@contextmanager
def changing_proxy(endpoint: str) -> Iterator[str]:
    """Between us and a server, whose last byte of each large piece becomes another one."""
    host, port = endpoint.removeprefix("http://").split(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def relay(source: socket.socket, target: socket.socket, changes: bool) -> None:
            with source, target:
                while piece := source.recv(65536):
                    target.sendall(piece[:-1] + b"X" if changes and piece.endswith(b"mm") else piece)

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                server = socket.create_connection((host, int(port)))
                threading.Thread(target=relay, args=(client.dup(), server.dup(), True), daemon=True).start()
                threading.Thread(target=relay, args=(server, client, False), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"url": "s3://Bucket/x"},
            "INCIPIT_STORE__URL is 's3://Bucket/x': the files of runs are kept in s3://bucket/prefix",
        ),
        ({"url": "gs://bucket"}, "INCIPIT_STORE__URL is 'gs://bucket'"),
        ({"url": "s3://bucket/../x"}, "INCIPIT_STORE__URL is 's3://bucket/../x'"),
        ({"url": ""}, "INCIPIT_STORE__ENDPOINT is set but INCIPIT_STORE__URL is empty; set it"),
        ({"endpoint": "minio:9000"}, "INCIPIT_STORE__ENDPOINT is 'minio:9000', which is no address of a server"),
        ({"endpoint": "http://me:hidden@minio"}, "INCIPIT_STORE__ENDPOINT is 'http://…@minio', which"),
        ({"public_endpoint": "ftp://x"}, "INCIPIT_STORE__PUBLIC_ENDPOINT is 'ftp://x'"),
        ({"secret_key_file": None}, "INCIPIT_STORE__SECRET_KEY_FILE is empty but the other is not"),
        (
            {"secret_key_file": Path("/nowhere")},
            "INCIPIT_STORE__SECRET_KEY_FILE is '/nowhere', which cannot be read (No such",
        ),
        ({"access_key_file": Path("/dev/null")}, "INCIPIT_STORE__ACCESS_KEY_FILE is '/dev/null', which is empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    store: StoreSettings, home: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(home=home, store=store.model_copy(update=changes))
    message = caught.value.errors()[0]["msg"]
    assert said in message
    assert "hidden" not in message


def test_keys_and_signed_addresses_are_cut_out_of_logs(store: StoreSettings) -> None:
    cleaned = Redaction(environment_of(store) | {"AWS_SECRET_ACCESS_KEY": "canary-of-the-environment"})
    said = cleaned(
        f"{ACCESS_KEY} {SECRET_KEY} canary-of-the-environment http://x/y?X-Amz-Signature=0123456789abcdef&b=1"
    )
    assert said == "… … … http://x/y?X-Amz-Signature=…&b=1"


def test_bucket_and_prefix_come_from_the_address() -> None:
    parts = {
        url: (one.bucket, one.prefix)
        for url in ("s3://abc", "s3://abc/", "s3://abc/x/y", "s3://abc/x/")
        if (one := StoreSettings(url=url))
    }
    assert parts == {
        "s3://abc": ("abc", ""),
        "s3://abc/": ("abc", ""),
        "s3://abc/x/y": ("abc", "x/y/"),
        "s3://abc/x/": ("abc", "x/"),
    }


@pytest.mark.usefixtures("home")
def test_the_doctor_says_what_is_wrong_with_the_store(store: StoreSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_of(store).items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, ["doctor"])
    (line,) = [line for line in done.output.splitlines() if " store " in line]
    assert line.startswith("problem")
    assert f"There is no bucket '{store.bucket}'" in line
    assert done.exit_code == 1
    assert SECRET_KEY not in done.output
