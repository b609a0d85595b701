"""What runs leave in a store: checkpoints and token traces, by names that every machine understands."""

from typing import NamedTuple

UPLOADS = "prompts"
"""Where uploads are, beside the runs, whose names are ids."""
EXPORTS = "exports"
"""Where exports are in a bucket."""


class Artifact(NamedTuple):
    """A checkpoint's folder, or a file of token traces."""

    run_id: str
    fence: int
    """The attempt that wrote it."""
    path: str
    """Relative to that attempt's folder."""
    manifest_sha256: str = ""
    """Of a checkpoint; empty for a file of traces."""

    @property
    def above(self) -> str:
        """The attempt's folder below that of all runs."""
        return f"{self.run_id}/attempts/{self.fence}"

    @property
    def name(self) -> str:
        """Its place below the folder of all runs."""
        return f"{self.above}/{self.path}"


class ExportedFiles(NamedTuple):
    """What an export has made, below the folder of all exports."""

    path: str
    above: str = ""
    manifest_sha256: str = ""

    @property
    def name(self) -> str:
        """Its place below the folder of all exports."""
        return self.path


class StoredFile(NamedTuple):
    """A file on its way into a store, or what a store must hold of it."""

    name: str
    """Inside a checkpoint's folder; empty is the artifact itself."""
    num_bytes: int
    sha256: str


class Unreadable(Exception):
    """A file is not there or not what it was; the message completes a sentence that begins with its name."""


class OutOfPlace(Unreadable):
    """A name, or a link, that leads out of where the files are."""


def upload_key(sha256: str) -> str:
    """The name in a bucket of prompts that somebody uploaded, see engine/uploaded_prompts.py."""
    return f"{UPLOADS}/{sha256}.jsonl"
