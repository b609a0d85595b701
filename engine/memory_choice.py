"""What `auto` becomes: the plan that costs least time among those that fit into the memory that is free.

It imports without torch. Runs that start at the same moment do not know of each other; a shortage in an update is met then,
see engine/student.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.memory import MEMORY_ERROR, Model, memory
from engine.memory_plan import DECODED_ROLLOUTS, LEAST_DECODED, MemoryPlan
from engine.spec import RunSpec

_DECODED = (DECODED_ROLLOUTS, 64, 32, LEAST_DECODED)


@dataclass(frozen=True)
class Pair:
    """What the estimate knows of a run beside its spec."""

    student: Model
    teacher: Model
    prompt_tokens: int
    """Of the longest prompt."""
    longest_horizon: int
    """Tokens, see engine.memory.longest_horizon."""
    can_recompute: bool = True
    """Whether the student has blocks that can run twice."""
    can_offload: bool = True
    """Whether the teacher has weights of its own, and the machine has room for them."""

    def needed_bytes(self, spec: RunSpec, plan: MemoryPlan) -> int:
        """Of a whole engine process, with what the estimate may be wrong by."""
        used = memory(spec, self.student, self.teacher, self.prompt_tokens, self.longest_horizon, plan)
        return round(used.total * (1 + MEMORY_ERROR))


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why."""

    plan: MemoryPlan
    needed_bytes: int
    room_bytes: int
    chosen: tuple[str, ...]
    """The fields of the spec whose `auto` had to become something else than is usual, or has no usual value."""

    @property
    def fits(self) -> bool:
        """Whether the estimate is within the room."""
        return self.needed_bytes <= self.room_bytes

    @property
    def is_told(self) -> bool:
        """Whether anything is not as usual."""
        return bool(self.chosen) or self.plan.decoded_rollouts < DECODED_ROLLOUTS

    @property
    def in_words(self) -> str:
        """One sentence with what was chosen, what that needs and what there is."""
        values = {
            "micro_batch_rollouts": str(self.plan.micro_batch_rollouts),
            "gradient_checkpointing": "always" if self.plan.recomputes_blocks else "never",
            "teacher_offload": "always" if self.plan.offloads_teacher else "never",
        }
        found = [f"{field} auto is {values[field]}" for field in self.chosen]
        if self.plan.decoded_rollouts < DECODED_ROLLOUTS:
            found.append(f"at most {self.plan.decoded_rollouts} rollouts are decoded together")
        *others, last = found
        chosen = f"{', '.join(others)} and {last}" if others else last
        needs = f"about {_gigabytes(self.needed_bytes)} of memory, and {_gigabytes(self.room_bytes)} are free"
        return f"{chosen}: the run needs {needs}{'' if self.fits else ', which may not be enough'}."


def choose(spec: RunSpec, pair: Pair, room_bytes: int) -> Choice:
    """The first plan that fits, in the order of the time that they cost; the one that needs least when none does.

    Fewer rollouts decoded together, which cost time in evaluations alone, come before smaller micro-batches, these before blocks
    that run twice, and these before a teacher whose weights wait in host memory, which are copied at every step: each costs less
    than the next. `spec` has the device and the precision of the
    run in place of `auto`; `room_bytes` is what the process may take in all, what it has already included.
    """
    plans = list(_plans(spec, pair))
    least = next((one for one in plans if pair.needed_bytes(spec, one) <= room_bytes), plans[-1])
    decoded = [least.model_copy(update={"decoded_rollouts": number}) for number in _DECODED]
    plan = next((one for one in decoded if pair.needed_bytes(spec, one) <= room_bytes), least)
    chosen: tuple[str, ...] = ("micro_batch_rollouts",) if spec.micro_batch_rollouts == "auto" else ()
    if spec.gradient_checkpointing == "auto" and plan.recomputes_blocks:
        chosen += ("gradient_checkpointing",)
    if spec.teacher_offload == "auto" and plan.offloads_teacher:
        chosen += ("teacher_offload",)
    return Choice(plan, pair.needed_bytes(spec, plan), room_bytes, chosen)


def least(spec: RunSpec) -> MemoryPlan:
    """What a run comes down to where memory is short."""
    stated = MemoryPlan.stated(spec)
    return MemoryPlan(
        micro_batch_rollouts=1 if spec.micro_batch_rollouts == "auto" else stated.micro_batch_rollouts,
        recomputes_blocks=spec.gradient_checkpointing != "never",
        offloads_teacher=spec.teacher_offload != "never",
        decoded_rollouts=LEAST_DECODED,
    )


def _plans(spec: RunSpec, pair: Pair) -> Iterator[MemoryPlan]:
    """What an update may be, with as few rollouts decoded together as may be."""
    stated = MemoryPlan.stated(spec)
    sizes = [stated.micro_batch_rollouts]
    if spec.micro_batch_rollouts == "auto":
        sizes = [spec.rollouts_per_step]
        while sizes[-1] > 1:
            sizes.append(sizes[-1] // 2)
    may_recompute = spec.gradient_checkpointing == "auto" and pair.can_recompute
    may_offload = spec.teacher_offload == "auto" and spec.device == "cuda" and pair.can_offload
    for offloads in (False, True) if may_offload else (stated.offloads_teacher,):
        for recomputes in (False, True) if may_recompute else (stated.recomputes_blocks,):
            for size in sizes:
                yield MemoryPlan(
                    micro_batch_rollouts=size,
                    recomputes_blocks=recomputes,
                    offloads_teacher=offloads,
                    decoded_rollouts=LEAST_DECODED,
                )


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
