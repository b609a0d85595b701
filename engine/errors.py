"""What can end a run, each with the sentence that a person reads."""

import errno
import re

from engine.events import FailureKind
from engine.findings import Finding

_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch's allocator, C++, Rust, the loader of libraries and the C library say when the machine has no memory left for
# this process.
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|Cannot allocate memory|\(os error 12\)|bad_alloc|^memory allocation of|can't start new thread"
    r"|failed to map segment",
    re.MULTILINE,
)


class RunError(Exception):
    """A run cannot go on. `failure` names why; the message has the value, the limit and the fix."""

    def __init__(self, failure: FailureKind, message: str, findings: list[Finding] | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message
        self.findings = findings or []


class StopRequested(Exception):
    """Somebody asked the run to stop; raised where no training state is half-changed."""


def is_out_of_space(error: BaseException) -> bool:
    """Whether the operating system refused a write for want of space: disk, quota or limit on the size of files."""
    if isinstance(error, OSError):
        return error.errno in _OUT_OF_SPACE
    # Libraries in Rust, such as safetensors, hide the number in their words.
    return any(int(number) in _OUT_OF_SPACE for number in re.findall(r"\(os error ([0-9]+)\)", str(error)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine's own memory ran out, or what this process may have of it; that of a GPU is another matter."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, MemoryError) or speaks_of_memory(str(error))


def speaks_of_memory(words: str) -> bool:
    """Whether these words, an error's or the last of a process, say that the machine's memory ran out."""
    return _OUT_OF_MEMORY.search(words) is not None


def first_line(error: BaseException) -> str:
    """What an error says, without the traceback of a library behind it; at most 300 characters."""
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
