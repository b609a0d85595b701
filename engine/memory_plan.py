"""How a run keeps within its memory: rollouts in a micro-batch, blocks that run twice, rollouts decoded together, a teacher
that waits outside.

It imports without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.frozen import Frozen
from engine.spec import RunSpec

NO_OFFLOAD_ON_A_CPU = (
    "teacher_offload is 'always', which has no effect on a CPU, where the teacher's weights lie in the machine's memory anyway; "
    "set it to auto or never, or use a GPU."
)

DECODED_ROLLOUTS = 128
"""Most rollouts that are decoded together where there is room: past this two cores gain nothing and the cache grows."""
LEAST_DECODED = 16
"""Where there is less room; with fewer still, each token would cost a pass over the weights nearly of its own."""


class MemoryPlan(Frozen):
    """What a run may hold at once. It is part of every checkpoint; no choice changes the loss by more than rounding."""

    micro_batch_rollouts: int
    """Most rollouts in one forward and backward pass."""
    recomputes_blocks: bool
    """Whether the student's blocks forget their activations and run again in the backward pass."""
    offloads_teacher: bool = False
    """Whether the teacher's weights wait in host memory while nobody reads them. It has no effect on a CPU."""
    decoded_rollouts: int = DECODED_ROLLOUTS
    """Most rollouts that are decoded together, all samples of one prompt at least; full-length evaluations need most room."""

    @classmethod
    def stated(cls, spec: RunSpec) -> MemoryPlan:
        """What the spec says; where that is auto, what is usual: 16 rollouts, blocks that run once, a teacher that stays."""
        return cls(
            micro_batch_rollouts=spec.usual_micro_batch,
            recomputes_blocks=spec.recomputes_blocks,
            offloads_teacher=spec.teacher_offload == "always",
        )

    def halved(self, num_together: int) -> MemoryPlan | None:
        """The plan after `num_together` rollouts of one pass were too many; None when it was one alone."""
        if num_together == 1:
            return None
        return self.model_copy(update={"micro_batch_rollouts": num_together // 2})


@dataclass(frozen=True)
class Shortage:
    """Memory ran out in an update, which was begun again from its first micro-batch with less at once."""

    num_together: int
    """Rollouts of the largest micro-batch when it happened."""
    plan: MemoryPlan
    """In force from then on."""
    cause: str
    """The first line of the error."""

    @property
    def in_words(self) -> str:
        """One sentence with both sizes."""
        return (
            f"Memory ran out with {self.num_together} rollouts in a micro-batch ({self.cause}); the update was begun again "
            f"and the run goes on with {self.plan.micro_batch_rollouts}, the global batch is the same."
        )

    @property
    def advice(self) -> str:
        """One sentence: what to do."""
        return f"Start such runs with micro_batch_rollouts {self.plan.micro_batch_rollouts}: the result is the same."
