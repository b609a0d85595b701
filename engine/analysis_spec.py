"""Analyses: questions about a pair of models that are answered without training. It imports without torch.

An analysis takes models, prompts, scorer and lengths from a RunSpec and has a few parameters of its own. All answer in one
shape, a table over positions or prefix lengths, so that one page, one chart and one command show them all.
"""

from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Frozen
from engine.prefix_state import Tokens
from engine.spec import RunSpec

Prompts = Annotated[int, Field(ge=1, le=10_000)]
Lengths = Annotated[list[Annotated[int, Field(ge=0, le=131_072)]], Field(min_length=1, max_length=64)]


class DivergenceByPosition(Frozen):
    """Where is the signal? Reverse KL, forward KL and entropies by position on the student's own full-length samples
    (the paper's Fig. 2, arXiv 2602.15260)."""

    kind: Literal["divergence_by_position"] = "divergence_by_position"
    num_prompts: Prompts = 64
    """Prompts taken from the start of the evaluation file; each is answered once."""


class TeacherPrefix(Frozen):
    """Accuracy of the untrained student when it goes on from the teacher's first k tokens (the paper's Fig. 3): how much
    of what it lacks is decided early."""

    kind: Literal["teacher_prefix"] = "teacher_prefix"
    num_prompts: Prompts = 64
    """Prompts taken from the start of the evaluation file."""
    prefix_tokens: Lengths = [0, 4, 8, 16, 32, 64]
    """Numbers of teacher tokens to start from; 0 is the student alone."""


class TeacherContinues(Frozen):
    """Accuracy of the teacher when it has to go on from the student's first k tokens (as in ESR, arXiv 2605.27028): how
    far the student's texts lead it astray, and so how long its scores can be trusted."""

    kind: Literal["teacher_continues"] = "teacher_continues"
    num_prompts: Prompts = 64
    """Prompts taken from the start of the evaluation file."""
    prefix_tokens: Lengths = [0, 4, 8, 16, 32, 64]
    """Numbers of student tokens to start from; 0 is the teacher alone."""


class GradientByPosition(Frozen):
    """Which positions move the weights: norm of the loss gradient of each bin of completion positions, and its cosine
    with the gradient of the whole completion (ours)."""

    kind: Literal["gradient_by_position"] = "gradient_by_position"
    num_prompts: Prompts = 32
    """Prompts taken from the start of the training file; each is answered once."""
    bin_tokens: Tokens = 16
    """Completion positions in a bin."""


Analysis = Annotated[
    DivergenceByPosition | TeacherPrefix | TeacherContinues | GradientByPosition, Field(discriminator="kind")
]


class AnalysisSpec(Frozen):
    """One analysis of the student and teacher of a spec."""

    run: RunSpec
    """Models, prompts, scorer, lengths, divergence and seed; nothing is trained."""
    analysis: Analysis = DivergenceByPosition()
    """What is asked."""


class AnalysisRow(Frozen):
    """One position, bin or prefix length."""

    start: int
    """First token of the bin, or the prefix length."""
    end: int
    """Behind the last token of the bin; equal to start + 1 for a single position or length."""
    value: float
    """The figure that is plotted; see AnalysisResult.measure."""
    low: float
    """Lower end of the interval; see AnalysisResult.interval."""
    high: float
    count: int
    """Completions behind it."""
    details: dict[str, float | None] = {}
    """Further figures of this row."""


class AnalysisResult(Frozen):
    """What an analysis found."""

    kind: str
    axis: str
    """What start and end count, such as `completion position`."""
    measure: str
    """What `value` is, with its unit, such as `reverse KL, nats per token`."""
    interval: str
    """What `low` and `high` are, such as `95 % over texts`."""
    rows: list[AnalysisRow]
    sentences: list[str]
    """What the figures say, computed from them."""
    num_prompts: int
    seconds: float


class AnalysisProgress(Frozen):
    """A line that an analysis prints while it works."""

    done: float
    """Share of the work that is done, 0 to 1."""
    detail: str
    """What is being done."""
