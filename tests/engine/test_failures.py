"""Whatever ends a run has a name: memory of the machine and memory of the GPU are told apart."""

import errno

import pytest
import torch

from engine.train import failure_of


def _out_of_memory_of_torch() -> BaseException:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (_out_of_memory_of_torch(), "oom_host"),
        (MemoryError(), "oom_host"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom_host"),
        (Exception("Error while deserializing: I/O error: Cannot allocate memory (os error 12)"), "oom_host"),
        (ImportError("libparquet.so.2600: failed to map segment from shared object"), "oom_host"),
        (RuntimeError("can't start new thread"), "oom_host"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "gpu_error"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (KeyError("x"), "internal"),
    ],
)
def test_an_error_that_ends_a_run_has_a_name_and_advice(error: BaseException, kind: str) -> None:
    failure = failure_of(error)
    assert failure.failure == kind
    assert failure.message.endswith(".")
    if kind in ("oom_host", "gpu_error"):
        assert "halve micro_batch_rollouts" in failure.message
