"""Files go into a real bucket and come back: in one piece, in parts, refused when they are not what they were."""

import hashlib
import os
from pathlib import Path

import httpx
import pytest

from backend.s3_bucket import ContentChanged, S3Bucket

_PARTS_BYTES = 16 * 1024**2 + 5


def put(bucket: S3Bucket, key: str, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    bucket.put(key, path, sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content))


@pytest.mark.parametrize("num_bytes", [0, 1, 300_001, _PARTS_BYTES])
def test_a_file_comes_back_as_it_was(bucket: S3Bucket, tmp_path: Path, num_bytes: int) -> None:
    content = os.urandom(num_bytes)
    put(bucket, "run/a file", tmp_path / "f", content)
    facts = bucket.facts("run/a file")
    assert facts == (num_bytes, hashlib.sha256(content).hexdigest())
    assert b"".join(bucket.chunks("run/a file", num_bytes)) == content
    assert [(one.key, one.num_bytes) for one in bucket.listed("run/")] == [("run/a file", num_bytes)]
    bucket.remove("run/a file")
    assert bucket.facts("run/a file") is None
    assert list(bucket.listed("")) == []


@pytest.mark.parametrize("num_bytes", [10, _PARTS_BYTES])
def test_a_file_that_has_changed_is_not_stored(bucket: S3Bucket, tmp_path: Path, num_bytes: int) -> None:
    (tmp_path / "f").write_bytes(bytes(num_bytes))
    with pytest.raises(ContentChanged, match="another content"):
        bucket.put("run/f", tmp_path / "f", sha256="0" * 64, num_bytes=num_bytes)
    with pytest.raises(ContentChanged, match=f"has {num_bytes} bytes instead of 3"):
        bucket.put("run/f", tmp_path / "f", sha256="0" * 64, num_bytes=3)
    assert bucket.facts("run/f") is None
    assert list(bucket.unfinished_uploads()) == []


def test_a_signed_address_gives_the_file_under_our_name_and_in_parts(bucket: S3Bucket, tmp_path: Path) -> None:
    content = os.urandom(1000)
    put(bucket, "run/f", tmp_path / "f", content)
    address = bucket.link("run/f", saved_as="prefix-8.bin", seconds=300)
    whole = httpx.get(address)
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["content-disposition"] == 'attachment; filename="prefix-8.bin"'
    part = httpx.get(address, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    assert httpx.get(address.replace("Expires=300", "Expires=301")).status_code == 403
    assert httpx.get(address.split("?")[0]).status_code in (400, 403)
