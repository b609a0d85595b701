"""A model whose weights lie in parts on all ranks (FSDP2), and where they are whole.

FSDP2's own hooks bring a block's weights together while the block runs. What looks at weights without running a module (the
decode loop, the fused loss's head) does so where they are whole: within `Shards.whole`, or, for embedding and head, within
the pass of a root that runs around backbone and loss.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from engine.errors import RunError
from engine.findings import Finding
from engine.gradient_checkpointing import blocks_of
from engine.language_model import LanguageModel
from engine.ranks import Ranks


class _Pass(nn.Module):
    """The root: around whatever reads embedding, last norm and head, which no block has."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, work: Callable[[], Tensor]) -> Tensor:
        return work()


@dataclass(frozen=True)
class Shards:
    """The weights of one model over all ranks. Whoever enters `whole` or calls `run` does so on every rank."""

    root: _Pass
    units: tuple[FSDPModule, ...]
    """The root and the blocks."""
    ranks: Ranks

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """What `work` returns, while embedding and head are whole; blocks are while they run, forward and backward.

        The backward pass of what is returned leaves in each parameter this rank's part of the gradient, summed over all ranks.
        """
        return cast(Tensor, self.root(work))

    @contextlib.contextmanager
    def whole(self, *, head_alone: bool = False) -> Iterator[None]:
        """Within it all weights are whole on every rank, or those of embedding and head, and no rank waits for another."""
        units = self.units[:1] if head_alone else self.units
        with torch.inference_mode(mode=False), torch.no_grad():  # an inference tensor could not be read under autograd
            for unit in units:
                unit.set_reshard_after_forward(reshard_after_forward=False, recurse=False)
                unit.unshard()
        try:
            yield
        finally:
            for unit in units:
                unit.reshard()
                # The root's weights are needed again at once: by the backward pass, which lets go of them.
                unit.set_reshard_after_forward(reshard_after_forward=unit is not self.units[0], recurse=False)

    def full_state(self) -> dict[str, Tensor]:
        """All weights, whole, in the memory of rank 0's machine; nothing elsewhere. Shared weights stay one tensor."""
        found: dict[int, Tensor] = {}
        state: dict[str, Tensor] = {}
        for name, tensor in self.root.module.state_dict(keep_vars=True).items():
            if id(tensor) not in found:
                found[id(tensor)] = self.full(tensor)
            if self.ranks.is_first:
                state[name] = found[id(tensor)]
        return state

    def part(self, whole: Tensor, like: Tensor) -> Tensor:
        """A tensor cut as `like` is: this rank's part of it, taken without asking anybody."""
        if not isinstance(like, DTensor):
            return whole.to(like.device)
        placed = whole.to(like.device, like.dtype)
        return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)

    def full(self, tensor: Tensor) -> Tensor:
        """A tensor, whole, on rank 0's CPU, where it is brought together; elsewhere an empty one."""
        whole = tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
        return whole.cpu() if self.ranks.is_first else whole.new_empty(0)


def sharded(model: LanguageModel, field: str, ranks: Ranks, device: torch.device) -> LanguageModel:
    """The model in parts over all ranks, each on its `device`; RunError("bad_model") where it has no blocks to be cut into."""
    module = model.module
    blocks = blocks_of(module)
    if not blocks:
        message = (
            f"parallelism.kind is 'fully_sharded' but the {field} ({type(module).__name__}) has no blocks that weights can be "
            "gathered for; set parallelism to data_parallel."
        )
        raise RunError("bad_model", message, [Finding(field="parallelism", message=message)])
    mesh = init_device_mesh(device.type, (ranks.size,))
    root = _Pass(module)
    for part in [*reversed(blocks), root]:  # inner ones first, where blocks hold blocks
        fully_shard(part, mesh=mesh)
    units = (cast(FSDPModule, root), *(cast(FSDPModule, block) for block in blocks))
    for unit in units:
        # The loss is divided by the tokens of all ranks: gradients are summed, and FSDP's mean would divide again.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(enable=True)
    shards = Shards(root, units, ranks)
    with torch.no_grad():
        root(lambda: torch.zeros(()))  # the first that runs is FSDP2's root
    with shards.whole():  # the parameters that hold whole weights, while there are any; they stay the same objects
        projection = module.get_output_embeddings()
        head = replace(model.head, weight=projection.weight, bias=projection.bias)
    return replace(model, head=head, device=device, ranks=ranks, shards=shards)
