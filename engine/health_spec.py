"""The limits of the health alarms. It imports without torch."""

from typing import Annotated

from pydantic import Field

from engine.frozen import Frozen

Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(gt=1, le=1e6)]


class HealthSpec(Frozen):
    """When a run warns that it is going wrong; a warning never changes the run. The defaults are ours."""

    grace_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Steps at the start that raise no alarm, since running means need them; and steps that a value has to stay well inside its limit
    before the same alarm is raised again."""
    kl_spike_factor: Factor = 5.0
    """Alarm when a step's loss reaches this many times its running mean."""
    kl_spike_nats: Annotated[float, Field(ge=0, le=1e6)] = 0.5
    """Losses below this, in nats per token, are never a spike, however small the mean has become."""
    gradient_spike_factor: Factor = 10.0
    """Alarm when a step's gradient norm reaches this many times the larger of its running mean and the clipping norm."""
    min_entropy_share: Share = 0.3
    """Alarm when the student's entropy falls to this share of the teacher's on the same tokens, where the teacher has any."""
    min_length_share: Share = 0.5
    """Alarm when full-length completions fall to this share of the shorter of base student's and teacher's."""
    max_length_factor: Factor = 1.5
    """Alarm when full-length completions reach this many times the longer of base student's and teacher's."""
    min_eos_share: Share = 0.4
    """Alarm when the share of completions that end by themselves falls to this share of the teacher's (of the base student's, if the
    teacher never ends)."""
    max_repetition_rise: Share = 0.25
    """Alarm when the share of repeated 4-grams exceeds the larger of base student's and teacher's by this much."""
    min_overlap_share: Share = 0.8
    """Alarm when the probability mass that both models share falls to this share of its best value so far."""
