"""A bucket, through s3fs: files in and out in pieces, each checked by its sha256.

Every body that is sent is signed with its sha256, which the server must find the same; a key's object has the file's sha256 as metadata.
s3fs is imported with the first call: an installation without a bucket needs neither it nor its memory.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from backend.store_problem import StoreProblem, store_problem
from backend.store_settings import StoreSettings

_MIB = 1024**2
_PART_BYTES = 16 * _MIB
# S3 takes 10,000 parts.
_MAX_PARTS = 9_000
_READ_BYTES = 8 * _MIB
_CONNECT_SECONDS, _READ_SECONDS, _TRIES = 5, 60, 2
_SHA256 = "sha256"

OnChunk = Callable[[int], None]


class ContentChanged(Exception):
    """A file does not have the content that its sha256 says."""


class StoredObject(NamedTuple):
    """An object as a listing tells of it."""

    key: str
    """Without the store's prefix."""
    num_bytes: int
    modified_at: datetime


class ObjectFacts(NamedTuple):
    """What is known of an object without reading it."""

    num_bytes: int
    sha256: str | None
    """What we said when it was stored; None for what others have put there."""


def _ignore(_num_bytes: int) -> None:
    pass


class S3Bucket:
    """Keys are below the prefix of the settings. Every call may raise StoreProblem."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings

    def put(self, key: str, path: Path, *, sha256: str, num_bytes: int, on_chunk: OnChunk = _ignore) -> None:
        """Store a file; `on_chunk` is told of bytes that are there. Raises ContentChanged and stores nothing when it is another file."""
        part_bytes = max(_PART_BYTES, -(-num_bytes // _MAX_PARTS // _MIB) * _MIB)
        doing = f"storing {key}"
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != num_bytes:
                raise ContentChanged(f"{path} has {os.fstat(file.fileno()).st_size} bytes instead of {num_bytes}")
            if num_bytes <= part_bytes:
                body = _whole_read(file, part_bytes)
                _require(hashlib.sha256(body).hexdigest() == sha256, path)
                self._call(doing, "put_object", Key=self._full(key), Body=body, Metadata={_SHA256: sha256})
                on_chunk(len(body))
            else:
                self._put_parts(key, file, path, sha256=sha256, part_bytes=part_bytes, on_chunk=on_chunk)
        stored = self.facts(key)
        if stored is None or stored.num_bytes != num_bytes:
            raise StoreProblem(
                f"{key} was stored with {num_bytes} bytes but the bucket {self.settings.bucket!r} has "
                f"{'nothing' if stored is None else stored.num_bytes} there; see the server's log."
            )

    def _put_parts(self, key: str, file: Any, path: Path, *, sha256: str, part_bytes: int, on_chunk: OnChunk) -> None:
        doing, full = f"storing {key}", self._full(key)
        upload = self._call(doing, "create_multipart_upload", Key=full, Metadata={_SHA256: sha256})["UploadId"]
        try:
            digest = hashlib.sha256()
            parts: list[dict[str, Any]] = []
            while body := _whole_read(file, part_bytes):
                digest.update(body)
                number = len(parts) + 1
                sent = self._call(doing, "upload_part", Key=full, UploadId=upload, PartNumber=number, Body=body)
                parts.append({"PartNumber": number, "ETag": sent["ETag"]})
                on_chunk(len(body))
            _require(digest.hexdigest() == sha256, path)
            self._call(doing, "complete_multipart_upload", Key=full, UploadId=upload, MultipartUpload={"Parts": parts})
        except BaseException:
            self._abort(full, upload)
            raise

    def _abort(self, full: str, upload: str) -> None:
        with suppress(StoreProblem):  # the garbage collector removes what is left of it
            self._call("giving an upload up", "abort_multipart_upload", Key=full, UploadId=upload)

    def facts(self, key: str) -> ObjectFacts | None:
        """Size and sha256 of an object; None when there is none."""
        try:
            found = self._files.call_s3("head_object", Bucket=self.settings.bucket, Key=self._full(key))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise store_problem(error, self.settings, f"looking for {key}") from None
        return ObjectFacts(found["ContentLength"], found.get("Metadata", {}).get(_SHA256))

    def chunks(self, key: str, num_bytes: int) -> Iterator[bytes]:
        """The first bytes of an object in pieces of at most 8 MiB. Raises FileNotFoundError."""
        for start in range(0, num_bytes, _READ_BYTES):
            end = min(start + _READ_BYTES, num_bytes)
            try:
                chunk: bytes = self._files.cat_file(f"{self.settings.bucket}/{self._full(key)}", start=start, end=end)
            except FileNotFoundError:
                raise
            except Exception as error:
                raise store_problem(error, self.settings, f"reading {key}") from None
            if len(chunk) != end - start:
                raise StoreProblem(f"{key} ended {num_bytes - start - len(chunk)} bytes early; see the server's log.")
            yield chunk

    def listed(self, prefix: str) -> Iterator[StoredObject]:
        """Every object whose key begins so, in the order of the keys."""
        wanted = {"Prefix": self._full(prefix)}
        while True:
            page = self._call(f"listing {prefix}", "list_objects_v2", **wanted)
            for one in page.get("Contents", []):
                yield StoredObject(one["Key"].removeprefix(self.settings.prefix), one["Size"], one["LastModified"])
            if not page.get("IsTruncated"):
                return
            wanted["ContinuationToken"] = page["NextContinuationToken"]

    def remove(self, key: str) -> None:
        """Remove an object; nothing happens when there is none."""
        self._call(f"removing {key}", "delete_object", Key=self._full(key))

    def unfinished_uploads(self) -> Iterator[tuple[str, str, datetime]]:
        """Full key, id and beginning of uploads in parts that were never completed."""
        page = self._call("listing uploads", "list_multipart_uploads", Prefix=self.settings.prefix)
        for one in page.get("Uploads", []):
            yield one["Key"], one["UploadId"], one["Initiated"]

    def give_up_upload(self, full_key: str, upload: str) -> None:
        """Remove the parts of an upload that was never completed."""
        self._abort(full_key, upload)

    def link(self, key: str, *, saved_as: str, seconds: int) -> str:
        """An address that gives the object to whoever has it, for so long; it is saved under a name of ours."""
        try:
            address: str = self._public_files.sign(
                f"{self.settings.bucket}/{self._full(key)}",
                expiration=seconds,
                ResponseContentDisposition=f'attachment; filename="{saved_as}"',
                ResponseContentType="application/octet-stream",
            )
        except Exception as error:
            raise store_problem(error, self.settings, f"signing an address of {key}") from None
        return address

    def check(self, *, writes: bool) -> None:
        """Raises StoreProblem when the bucket cannot be listed, or, when asked, nothing be put there and taken away again."""
        self._call("looking whether it is there", "list_objects_v2", Prefix=self.settings.prefix, MaxKeys=1)
        if writes:
            key = f".incipit-probe-{os.getpid()}-{os.urandom(4).hex()}"
            self._call("trying to store a file", "put_object", Key=self._full(key), Body=b"incipit")
            self._call("trying to remove a file", "delete_object", Key=self._full(key))

    def _full(self, key: str) -> str:
        return self.settings.prefix + key

    def _call(self, doing: str, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._files.call_s3(operation, Bucket=self.settings.bucket, **arguments)
        except Exception as error:
            raise store_problem(error, self.settings, doing) from None
        return answer

    @cached_property
    def _files(self) -> Any:
        return self._opened(self.settings.endpoint)

    @cached_property
    def _public_files(self) -> Any:
        """A signature holds for one host."""
        public = self.settings.public_endpoint
        return self._opened(public) if public and public != self.settings.endpoint else self._files

    def _opened(self, endpoint: str) -> Any:
        try:
            import s3fs
        except ImportError:
            raise StoreProblem(
                f"INCIPIT_STORE__URL is {self.settings.url!r}, but s3fs is not installed here; pip install 'incipit[s3]'."
            ) from None
        keys = self.settings.keys() or (None, None)
        files = s3fs.S3FileSystem(
            key=keys[0],
            secret=keys[1],
            endpoint_url=endpoint or None,
            client_kwargs={"region_name": self.settings.region} if self.settings.region else {},
            config_kwargs={
                # By path: a server of one's own seldom has a name for each bucket.
                "s3": {"payload_signing_enabled": True, "addressing_style": "path" if endpoint else "auto"},
                # What only Amazon's newest servers know is not asked for.
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
                "connect_timeout": _CONNECT_SECONDS,
                "read_timeout": _READ_SECONDS,
                "retries": {"mode": "standard", "total_max_attempts": _TRIES},
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        files.retries = 1  # botocore has tried again already
        return files


def _whole_read(file: Any, num_bytes: int) -> bytes:
    """As many bytes as there are, up to so many."""
    pieces, missing = [], num_bytes
    while missing and (piece := file.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _require(is_same: bool, path: Path) -> None:
    if not is_same:
        raise ContentChanged(f"{path} has another content")
