"""Teacher offload: frozen weights wait in host memory and lie on the device only while somebody reads them.

They never change, so nothing is copied back: whoever reads last drops the device's copies, whose blocks PyTorch's allocator
then has for others. Own code, since what accelerate offers belongs to the calls of modules: `cpu_offload` leaves weights on
`meta` between two calls, where the head's fused projection and engine/llama_decoder.py would look for them, and
`cpu_offload_with_hook` copies them back.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from engine.language_model import LanguageModel


class HostWeights:
    """The weights of a module in host memory, pinned where the device is a GPU; buffers, which are small, stay where they are.

    Between two readings the module's parameters are the host's tensors, so that reading them outside of `on_device` on a GPU
    fails with PyTorch's error of two devices.
    """

    def __init__(self, module: nn.Module, device: torch.device, head: tuple[Tensor, ...]) -> None:
        """`head` are the parameters that project to the vocabulary. The device's memory of all of them is free afterwards."""
        is_cuda = device.type == "cuda"
        self._device = device
        self._host = {parameter: _on_host(parameter.detach(), is_pinned=is_cuda) for parameter in module.parameters()}
        self._head = [parameter for parameter in self._host if any(parameter is one for one in head)]
        self._num_readers = dict.fromkeys(self._host, 0)
        self._lock = threading.Lock()
        # All copies belong to one stream, so that their memory is free for it at once; others wait for it.
        self._stream = torch.cuda.current_stream(device) if is_cuda else None
        for parameter, waiting in self._host.items():
            parameter.data = waiting

    @contextlib.contextmanager
    def on_device(self, *, head_alone: bool = False) -> Iterator[None]:
        """Within it the weights are on the device, all or those of the head. It may be nested, and entered by several threads."""
        wanted = self._head if head_alone else list(self._host)
        with contextlib.ExitStack() as taken:
            with self._lock, torch.inference_mode(mode=False):  # an inference tensor could not be read under autograd
                for parameter in wanted:
                    self._take(parameter)
                    taken.callback(self._leave, parameter)
            if self._stream is not None:
                self._share(wanted, torch.cuda.current_stream(self._device), self._stream)
            yield

    def _take(self, parameter: nn.Parameter) -> None:
        if not self._num_readers[parameter]:
            with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                # A copy on a CPU too, where `to` would give the same tensor.
                parameter.data = self._host[parameter].to(self._device, non_blocking=True, copy=True)
        self._num_readers[parameter] += 1

    def _leave(self, parameter: nn.Parameter) -> None:
        with self._lock:
            self._num_readers[parameter] -= 1
            if not self._num_readers[parameter]:
                parameter.data = self._host[parameter]

    @staticmethod
    def _share(wanted: list[nn.Parameter], reader: torch.cuda.Stream, copied_on: torch.cuda.Stream) -> None:
        """Let another stream wait for the copies, and the allocator wait for that stream before it gives their memory away."""
        if reader != copied_on:
            reader.wait_stream(copied_on)
            for parameter in wanted:
                parameter.data.record_stream(reader)


def offloaded(model: LanguageModel) -> LanguageModel:
    """The frozen model with its weights in host memory; whoever reads them does so within `on_device` of the result."""
    head = model.head
    tensors = (head.weight,) if head.bias is None else (head.weight, head.bias)
    return replace(model, host_weights=HostWeights(model.module, model.device, tensors))


def _on_host(weight: Tensor, *, is_pinned: bool) -> Tensor:
    if weight.device.type == "cpu" and not is_pinned:
        return weight
    return torch.empty_like(weight, device="cpu", pin_memory=is_pinned).copy_(weight)
