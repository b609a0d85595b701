"""RunSpec: the only description of a run. The API takes it as its body, the database stores it, the dashboard's form is
made from its JSON schema, `incipit train` reads it from a file. It imports without torch.

The sentence under a field is its documentation everywhere: here, in the OpenAPI document and beside the form field.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engine.divergences import Divergence, ReverseKL
from engine.findings import misfit
from engine.frozen import Frozen
from engine.prefixes import (
    Anchoring,
    ConstantPrefix,
    FullPrefix,
    LinearPrefix,
    NoAnchoring,
    PrefixSchedule,
    PrefixState,
    Tokens,
)
from engine.scorers import FinalNumber, Scorer

SPEC_VERSION = 1

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^\S(.*\S)?$")]
Reference = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f]+$")]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class ModelSpec(Frozen):
    """A causal language model in Hugging Face format."""

    path: Reference
    """A model folder on the worker, a hub id, `builtin:…` (comes with Incipit) or `home:…` (below INCIPIT_HOME)."""
    revision: Annotated[str, Field(pattern=r"^[\w./-]{1,128}$")] | None = None
    """Branch, tag or commit of a hub model; leave empty for a folder."""


class PromptSpec(Frozen):
    """The prompts that the student answers during training."""

    path: Reference
    """A JSONL file with one object per line and a `prompt` in each; `builtin:…` and `home:…` work too."""
    template: Literal["plain", "chat"] = "plain"
    """`plain` sends the prompt as it is; `chat` wraps it as a user message in the student's chat template."""


class SamplingSpec(Frozen):
    """How the student samples its completions."""

    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Softmax temperature of sampling and of both models in the divergence; 1 is what all published recipes use."""


class OptimizerSpec(Frozen):
    """AdamW with linear warm-up and an optional linear decay at the end."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 5
    """Steps in which the learning rate rises linearly to its peak."""
    decay_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of all steps, at the end, in which the learning rate falls linearly to zero; 0 keeps it constant."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of AdamW's first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of AdamW's second moment."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """AdamW's denominator constant; 1e-4 kept tiny students from drifting on tokens that the prefix never shows."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """The gradient is scaled down to this norm when it is larger."""


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


class TraceSpec(Frozen):
    """Token traces: what both models thought of each token of some full-length rollouts."""

    num_rollouts: Annotated[int, Field(ge=0, le=256)] = 8
    """Rollouts stored at each evaluation (the same prompts every time); 0 stores none."""
    top_k: Annotated[int, Field(ge=1, le=64)] = 8
    """Most likely tokens of each model that are stored per position."""


class CheckpointSpec(Frozen):
    """When checkpoints are written."""

    every_steps: Count = 50
    """Steps between checkpoints; the last step and every new best by full-length accuracy are saved as well."""
    keep_last: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Newest checkpoints that are kept; the best one is always kept."""


class RunSpec(Frozen):
    """One training run: a student follows a teacher on the prefix of its own completions."""

    spec_version: Literal[1] = 1
    """Version of this description."""
    name: Name
    """Name of the run, as shown in lists and charts."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """All random numbers depend on this, on the prompt and on the rollout alone."""
    student: ModelSpec
    """The model that is trained."""
    teacher: ModelSpec
    """The model that is followed; it is never changed."""
    prompts: PromptSpec
    """What the student answers during training."""
    max_completion_tokens: Tokens = 512
    """Full completion length, in tokens: of evaluation, of full-length steps and the cap of every horizon."""
    prefix: PrefixSchedule = ConstantPrefix()
    """How many completion tokens are sampled and trained on at each step."""
    anchoring: Anchoring = NoAnchoring()
    """Whether some steps leave the schedule and run to the full length."""
    divergence: Divergence = ReverseKL()
    """What is minimised on each token of the prefix."""
    num_steps: Count = 100
    """Optimizer updates."""
    training_flops_budget: Annotated[float, Field(gt=0, le=1e30)] | None = None
    """Stop after the step that reaches this many training FLOPs (useful FLOPs, without evaluation); empty for no limit."""
    prompts_per_step: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Prompts in the global batch of one step."""
    rollouts_per_prompt: Annotated[int, Field(ge=1, le=1024)] = 1
    """Completions sampled for each prompt of a step; they share the prompt's prefill."""
    micro_batch_rollouts: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Rollouts in one forward and backward pass; lower it when memory is short, the result stays the same."""
    sampling: SamplingSpec = SamplingSpec()
    """How the student samples."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """How the student is updated."""
    evaluation: EvaluationSpec
    """What is measured at full length, and how often."""
    traces: TraceSpec = TraceSpec()
    """What is stored for the token view."""
    checkpoints: CheckpointSpec = CheckpointSpec()
    """When the student is saved."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the engine runs; `auto` takes a GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward passes; `auto` is bfloat16 on a GPU and float32 on a CPU. The student's weights stay float32."""

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        limit = self.max_completion_tokens
        if isinstance(self.prefix, ConstantPrefix) and self.prefix.tokens > limit:
            raise misfit(
                "prefix.tokens",
                f"prefix.tokens is {self.prefix.tokens} but max_completion_tokens is {limit}; "
                "shorten the prefix or raise max_completion_tokens.",
            )
        if isinstance(self.prefix, LinearPrefix) and self.prefix.start_tokens > limit:
            raise misfit(
                "prefix.start_tokens",
                f"prefix.start_tokens is {self.prefix.start_tokens} but max_completion_tokens is {limit}; "
                "start shorter or raise max_completion_tokens.",
            )
        if self.optimizer.warmup_steps > self.num_steps:
            raise misfit(
                "optimizer.warmup_steps",
                f"optimizer.warmup_steps is {self.optimizer.warmup_steps} but num_steps is {self.num_steps}; "
                "shorten the warm-up or train longer.",
            )
        if isinstance(self.prefix, FullPrefix) and not isinstance(self.anchoring, NoAnchoring):
            raise misfit(
                "anchoring",
                "anchoring is set but a full prefix already runs every step to the full length; "
                "set anchoring to none or choose another prefix.",
            )
        return self

    @property
    def rollouts_per_step(self) -> int:
        """Rollouts in the global batch of one step."""
        return self.prompts_per_step * self.rollouts_per_prompt

    def prefix_state(self) -> PrefixState:
        """The schedule's state before the first step."""
        return PrefixState(max_completion_tokens=self.max_completion_tokens)

    def horizon_at(self, step: int, state: PrefixState) -> int:
        """Horizon of a step in tokens, anchoring included; `step` counts from 0."""
        return self.anchoring.horizon_at(step, self.prefix.horizon_at(step, state), state)
