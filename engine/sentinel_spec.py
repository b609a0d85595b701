"""What a run does to see its student's tail, and when the tail drifts. It imports without torch.

A short prefix can empty the rest of a text while its loss falls. The sentinel (ours) looks at a few whole texts now and then.
"""

from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Count, Frozen


class WarnOnly(Frozen):
    """Only the warning."""

    kind: Literal["warn"] = "warn"


class GrowHorizon(Frozen):
    """Every measurement that finds the tail drifting lengthens the horizon, whatever the schedule says; it never shrinks again."""

    kind: Literal["grow"] = "grow"
    factor: Annotated[float, Field(gt=1, le=1000)] = 2.0
    """How many times longer the horizon becomes, up to the full completion length."""


class AnchorSteps(Frozen):
    """From the first drift on, every n-th step runs and trains to the full length."""

    kind: Literal["anchor"] = "anchor"
    n: Annotated[int, Field(ge=1, le=100_000)] = 8
    """The n-th, 2n-th, 3n-th, … step after the drift is a full one."""


class StopRun(Frozen):
    """The run ends, as if its steps were done: it is evaluated, saved, and its best checkpoint reported."""

    kind: Literal["stop"] = "stop"


SentinelAction = Annotated[WarnOnly | GrowHorizon | AnchorSteps | StopRun, Field(discriminator="kind")]


class NoSentinel(Frozen):
    """Nothing looks at the tail between evaluations."""

    kind: Literal["none"] = "none"

    def num_measurements(self, num_steps: int) -> int:
        """How often the tail is measured: never."""
        return 0


class WatchTail(Frozen):
    """A few full-length rollouts now and then, not trained on, show what becomes of the text behind the prefix."""

    kind: Literal["watch"] = "watch"
    every_steps: Count = 10
    """Steps between measurements; the first is before training, of the untrained student."""
    num_rollouts: Annotated[int, Field(ge=1, le=256)] = 8
    """Prompts, from the start of the file, on which student and teacher write one text each; the same at every measurement."""
    prompts: Literal["dev", "train"] = "dev"
    """Whether they are evaluation or training prompts."""
    max_tail_kl_factor: Annotated[float, Field(gt=1, le=1e6)] = 3.0
    """Drift when the reverse KL behind the horizon reaches this many times its best value so far."""
    min_tail_kl_nats: Annotated[float, Field(ge=0, le=1e6)] = 0.1
    """A reverse KL behind the horizon below this, in nats per token, is never drift, however small the best was."""
    min_eos_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Drift when EOS rate or P(EOS) where the teacher stops falls to this share of the teacher's, or of the student's best if less."""
    min_length_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Drift when texts become shorter than this share of the teacher's, or of the untrained student's if those are shorter."""
    max_repetition_rise: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Drift when the share of repeated 4-grams exceeds the teacher's and the untrained student's by this much."""
    action: SentinelAction = WarnOnly()
    """What drift does besides the warning."""

    def num_measurements(self, num_steps: int) -> int:
        """How often the tail of a run of `num_steps` is measured."""
        return 1 + num_steps // self.every_steps


Sentinel = Annotated[NoSentinel | WatchTail, Field(discriminator="kind")]
