"""What is measured at full length. It imports without torch."""

from typing import Annotated

from pydantic import Field

from engine.frozen import Count, Frozen, Reference
from engine.scorers import FinalNumber, Scorer


class EvaluationSpec(Frozen):
    """Full-length evaluation: its length never depends on the horizon."""

    path: Reference
    """JSONL with `prompt` and `answer` (and `completion`, where the whole text can be compared): chooses the best checkpoint."""
    num_prompts: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Prompts taken from the start of the file."""
    report_path: Reference | None = None
    """A second file that is evaluated once, at the end, with the best checkpoint; its figures are the ones to report."""
    num_report_prompts: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Prompts taken from the start of the report file."""
    every_steps: Count = 20
    """Steps between evaluations; there is always one at the end."""
    scorer: Scorer = FinalNumber()
    """How a completion is marked right or wrong."""
    num_sampled: Annotated[int, Field(ge=1, le=4096)] = 16
    """Prompts on which full-length samples at the training temperature measure divergence, length, EOS rate and repetition."""
