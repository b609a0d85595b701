"""What happens before distillation begins. It imports without torch."""

from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Count, Frozen


class NoWarmup(Frozen):
    """Distillation begins with the first step."""

    kind: Literal["none"] = "none"

    @property
    def num_steps(self) -> int:
        """Steps before distillation."""
        return 0

    @property
    def reads_prompt_file(self) -> bool:
        """Whether each prompt needs a completion beside it."""
        return False


class SftWarmup(Frozen):
    """Supervised fine-tuning first: cross-entropy on whole given completions, without the teacher's distributions.

    Its steps are the first of the run's num_steps; schedules, anchoring and the learning rate of distillation begin behind
    them. AdamW's state goes on.
    """

    kind: Literal["sft"] = "sft"
    num_steps: Count = 20
    """Optimizer updates of the warm-up, taken from the run's num_steps."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Learning rate of the warm-up, reached linearly over optimizer.warmup_steps; distillation then rises to its own."""
    prompts_per_step: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Prompts, each with one completion, in the global batch of a warm-up step."""
    source: Literal["teacher", "data"] = "teacher"
    """Who wrote the completions: the teacher, sampled once for each prompt, or the prompt file."""

    @property
    def reads_prompt_file(self) -> bool:
        """Whether each prompt needs a completion beside it."""
        return self.source == "data"


WarmupPhase = Annotated[NoWarmup | SftWarmup, Field(discriminator="kind")]
