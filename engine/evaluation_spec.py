"""What is measured at full length. It imports without torch."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Count, Frozen
from engine.prompt_spec import PromptColumns, PromptReference
from engine.scorers import FinalNumber, Scorer

PrimaryMetric = Literal["accuracy", "exact", "reverse_kl", "forward_kl_on_teacher_texts", "avg_at_k"]
MAX_PROMPTS = 100_000
"""That an evaluation may ask for."""
FALLING = ("reverse_kl", "forward_kl_on_teacher_texts")
"""Metrics of which smaller is better."""


class AnswerSampling(Frozen):
    """How the samples of each prompt are drawn that avg@k, pass@k and maj@k are made of."""

    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Softmax temperature; papers on on-policy distillation take 1, the cards of Qwen3 0.6 (thinking) or 0.7."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the most likely tokens that together have this probability; 1 draws from all."""
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Draw from this many most likely tokens; 0 draws from all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Draw from the tokens at least this many times as likely as the most likely one; 0 draws from all."""


class EvaluationSpec(PromptColumns):
    """Full-length evaluation: its length never depends on the horizon."""

    path: PromptReference
    """Prompts with answers (and whole texts to compare): a reference as in prompts.path or `task:gsm8k`; chooses the best checkpoint."""
    num_prompts: Annotated[int, Field(ge=1, le=MAX_PROMPTS)] = 100
    """Prompts taken from the start of the file."""
    report_path: PromptReference | None = None
    """Second prompts, evaluated once, at the end, with the best checkpoint; their figures are the ones to report."""
    num_report_prompts: Annotated[int, Field(ge=1, le=MAX_PROMPTS)] = 300
    """Prompts taken from the start of the report file."""
    every_steps: Count = 20
    """Steps between evaluations; there is always one at the end."""
    scorer: Scorer = FinalNumber()
    """How a completion is marked right or wrong; a ready task (`task:…`) has a scorer of its own and uses that."""
    primary_metric: PrimaryMetric = "accuracy"
    """What decides which checkpoint is the best: a KL where accuracy is near zero and so tells nothing, avg@k where it is noisy."""
    num_sampled: Annotated[int, Field(ge=1, le=4096)] = 16
    """Prompts on which full-length samples at the training temperature measure divergence, calibration, length, EOS rate and repetition."""
    num_teacher_texts: Annotated[int, Field(ge=0, le=4096)] = 0
    """Prompts on which the teacher writes one text per run; the student's forward KL on these fixed texts is measured; 0 measures none."""
    samples_per_prompt: Annotated[int, Field(ge=0, le=1024)] = 0
    """Samples of every prompt (k) for avg@k, pass@k and maj@k, beside the greedy completion; 0 takes none."""
    answer_sampling: AnswerSampling = AnswerSampling()
    """How these samples are drawn."""

    def score(self, metrics: Mapping[str, float | None]) -> tuple[float, float]:
        """What `best` means, larger is better: the primary metric, then the full-length reverse KL (or the accuracy)."""
        primary = metrics.get(self.primary_metric) or 0.0
        if self.primary_metric in FALLING:
            return (-primary, metrics.get("accuracy") or 0.0)
        return (primary, -(metrics.get("reverse_kl") or 0.0))
