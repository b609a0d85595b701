"""A model folder becomes a GGUF file: llama.cpp's convert_hf_to_gguf.py, as it is, in a process of its own.

Which architectures and tokenizers there are in GGUF changes every week; only that program keeps up with it. It is no
dependency of this package, as it brings a copy of `gguf` that would replace the one that reads GGUF files. `make` puts it
into the environment (Makefile, CONVERTER); INCIPIT_GGUF_CONVERTER names another one, such as that of a llama.cpp checkout.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from engine.errors import RunError, is_out_of_space
from engine.export_spec import GgufFile
from engine.findings import Finding

_BYTES_OF_WEIGHT = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}
_HEADER_BYTES = 4 * 1024**2  # most of it the vocabulary
_LOOK_SECONDS = 0.2
_MAX_LOG_BYTES = 64 * 1024
_UNKNOWN_MODEL = re.compile(r"Model (?P<name>\w+) is not supported")
# Functions of the converter that only tokenizers pass through.
_OF_TOKENIZERS = re.compile(r"\bin (?:set_vocab|_set_vocab\w*|get_vocab_base\w*)$", re.MULTILINE)
# Would lead it to a network, or give what it must not know to code that we did not write.
_KEPT_BACK = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN")


def converter() -> Path:
    """Where convert_hf_to_gguf.py is, or would be."""
    configured = os.environ.get("INCIPIT_GGUF_CONVERTER")
    return (
        Path(configured).expanduser() if configured else Path(sys.prefix) / "gguf-converter" / "convert_hf_to_gguf.py"
    )


class Conversion:
    """One conversion of a model folder; RunError with a finding when there is no converter, or it cannot do it."""

    def __init__(self, choice: GgufFile) -> None:
        self.file_type = choice.file_type
        self._program = converter()
        if not self._program.is_file():
            raise _refused(
                f"The worker has no {self._program}, llama.cpp's converter; run `make gguf` there, or set INCIPIT_GGUF_CONVERTER to the "
                "convert_hf_to_gguf.py of a llama.cpp checkout.",
                field="export.kind",
            )

    def expected_bytes(self, num_weights: int) -> int:
        """About the size of the file."""
        return int(num_weights * _BYTES_OF_WEIGHT[self.file_type]) + _HEADER_BYTES

    def run(self, folder: Path, path: Path, name: str, on_bytes: Callable[[int], None]) -> None:
        """Write the new file `path`; `on_bytes` is told as it grows."""
        command = [sys.executable, str(self._program), str(folder), "--outfile", str(path), "--outtype", self.file_type]
        environment = {key: value for key, value in os.environ.items() if key not in _KEPT_BACK}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        with tempfile.TemporaryFile() as log:
            # In this process's group, which ends as a whole when the export is cancelled.
            process = subprocess.Popen(
                [*command, "--model-name", name], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
            try:
                _watch(process, path, on_bytes)
            finally:
                process.kill()
                process.wait()
            if process.returncode or not path.is_file():
                log.seek(max(0, log.seek(0, os.SEEK_END) - _MAX_LOG_BYTES))
                raise self._failure(log.read().decode(errors="replace"), process.returncode)

    def _failure(self, log: str, exit_code: int) -> RunError:
        last = next((line for line in reversed(log.splitlines()) if line.strip()), "it said nothing")[:300]
        if is_out_of_space(Exception(log)) or "No space left on device" in log:
            message = f"The disk ran full while the GGUF file was written ({last}); free some, or choose q8_0."
            return RunError("disk_full", message, [Finding(field="", message=message)])
        unknown = _UNKNOWN_MODEL.search(log)
        if unknown is not None:
            return _refused(
                f"The student is a {unknown['name']}, which llama.cpp's converter does not know; export a merged folder, or set "
                "INCIPIT_GGUF_CONVERTER to a newer convert_hf_to_gguf.py."
            )
        if _OF_TOKENIZERS.search(log):
            return _refused(
                f"The student's tokenizer is none that llama.cpp knows ({last}); export a merged folder, or set INCIPIT_GGUF_CONVERTER to "
                "a newer convert_hf_to_gguf.py."
            )
        return _refused(
            f"llama.cpp's converter ended with exit code {exit_code} ({last}); export a merged folder, or set INCIPIT_GGUF_CONVERTER to "
            "another convert_hf_to_gguf.py."
        )


def _watch(process: subprocess.Popen[bytes], path: Path, on_bytes: Callable[[int], None]) -> None:
    seen = 0
    while process.poll() is None:
        time.sleep(_LOOK_SECONDS)
        size = path.stat().st_size if path.exists() else 0
        on_bytes(size - seen)
        seen = size


def _refused(message: str, *, field: str = "export.kind") -> RunError:
    return RunError("bad_model", message, [Finding(field=field, message=message)])
