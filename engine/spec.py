"""RunSpec: the only description of a run. The API takes it as its body, the database stores it, the dashboard's form is
made from its JSON schema, `incipit train` reads it from a file. It imports without torch.

The sentence under a field is its documentation everywhere: here, in the OpenAPI document and beside the form field.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)  # fmt: skip
from pydantic_core import PydanticCustomError

from engine.adapter_spec import Adapter, NoAdapter
from engine.anchoring import Anchoring, NoAnchoring
from engine.completion_spec import CompletionSource, StudentCompletions
from engine.divergences import ReverseKL
from engine.early_stopping import EarlyStopping, NoEarlyStopping, StopByEvaluation
from engine.evaluation_spec import EvaluationSpec
from engine.frozen import STORED, Count, Frozen
from engine.health_spec import HealthSpec
from engine.loss_region import LossRegion, WholeRegion
from engine.model_spec import ModelSpec
from engine.objective_spec import Divergence, TerminationGuard, TokenWeights
from engine.optimizer_spec import OptimizerSpec
from engine.parallelism_spec import OneProcess, Parallelism
from engine.prefix_state import PrefixState, Tokens
from engine.prefixes import ConstantPrefix, PrefixSchedule
from engine.prompt_spec import PromptSpec
from engine.rollout_backend_spec import EngineRollouts, RolloutBackend
from engine.selection_spec import AllRollouts, RolloutSelection
from engine.sentinel_spec import NoSentinel, Sentinel
from engine.spec_rules import RULES
from engine.teacher_backend_spec import EngineTeacher, TeacherBackend
from engine.termination_guard import NoGuard
from engine.token_weights import NoWeights
from engine.warmup_spec import NoWarmup, WarmupPhase

SPEC_VERSION = 1
USUAL_MICRO_BATCH = 16


def _number_or_auto(value: object, read: ValidatorFunctionWrapHandler) -> object:
    """One sentence in place of one for each kind of value."""
    try:
        return read(value)
    except ValidationError:
        raise PydanticCustomError("number_or_auto", "Give a whole number from 1 to 65,536, or auto.") from None


MicroBatch = Annotated[Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"], WrapValidator(_number_or_auto)]

# No control characters: a name is printed to terminals.
_NAME = r"^[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f])?$"
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=_NAME)]


class SamplingSpec(Frozen):
    """How completions are sampled."""

    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Softmax temperature of sampling and of both models in the divergence; 1 is what all published recipes use."""


class TraceSpec(Frozen):
    """Token traces: what both models thought of each token of some full-length rollouts."""

    num_rollouts: Annotated[int, Field(ge=0, le=256)] = 8
    """Rollouts stored at each evaluation (the same prompts every time); 0 stores none."""
    top_k: Annotated[int, Field(ge=1, le=64)] = 8
    """Most likely tokens of each model that are stored per position."""


class CheckpointSpec(Frozen):
    """When checkpoints are written, and which of them stay: those that any of the rules keeps, and those that are pinned."""

    every_steps: Count = 50
    """Steps between checkpoints; the last step and every new best by full-length evaluation (evaluation.primary_metric) are saved as
    well."""
    keep_last: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Newest checkpoints that are kept."""
    keep_best: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Best checkpoints by full-length evaluation (evaluation.primary_metric) that are kept."""
    keep_every_steps: Count | None = None
    """Checkpoints at multiples of this step are all kept; empty for none."""


class RunSpec(Frozen):
    """One training run: a student follows a teacher on the prefix of completions, its own as a rule."""

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
    teacher_backend: TeacherBackend = EngineTeacher()
    """Where the teacher runs."""
    prompts: PromptSpec
    """What the student answers during training."""
    max_completion_tokens: Tokens = 512
    """Full completion length, in tokens: of evaluation, of full-length steps and the cap of every horizon."""
    prefix: PrefixSchedule = ConstantPrefix()
    """How many completion tokens are sampled and trained on at each step."""
    loss_region: LossRegion = WholeRegion()
    """Which of the sampled tokens are trained on."""
    anchoring: Anchoring = NoAnchoring()
    """Whether some rollouts leave the schedule and run to the full length, where every token is trained on."""
    completions: CompletionSource = StudentCompletions()
    """Who writes the completions that are trained on."""
    rollouts: RolloutBackend = EngineRollouts()
    """Where the student's completions are sampled during training."""
    selection: RolloutSelection = AllRollouts()
    """Which of a step's rollouts are trained on."""
    divergence: Divergence = ReverseKL()
    """What is minimised on each token of the prefix."""
    token_weights: TokenWeights = NoWeights()
    """How much each token counts: weights within a rollout, of mean 1 (IW-OPD excepted)."""
    merge_stop_tokens: bool = False
    """Whether all end-of-text ids of both models are one action in the divergence (arXiv 2609.20511); else each is a token of its own."""
    termination_guard: TerminationGuard = NoGuard()
    """Whether a second term asks for the teacher's probability of ending the text at each token."""
    num_steps: Count = 100
    """Optimizer updates, those of the warm-up phase included."""
    warmup_phase: WarmupPhase = NoWarmup()
    """Whether the first steps fine-tune the student on given completions before distillation begins."""
    training_flops_budget: Annotated[float, Field(gt=0, le=1e30)] | None = None
    """Stop after the step that reaches this many training FLOPs (useful FLOPs, without evaluation); empty for no limit."""
    prompts_per_step: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Prompts in the global batch of one step."""
    rollouts_per_prompt: Annotated[int, Field(ge=1, le=1024)] = 1
    """Completions sampled for each prompt of a step; they share the prompt's prefill."""
    micro_batch_rollouts: MicroBatch = USUAL_MICRO_BATCH
    """Most rollouts in one forward and backward pass (a CPU takes fewer of long ones), 1 to 65,536, or auto: as many as fit into the
    memory that is free at the start. The loss is the same within 1e-6 in float32; when memory runs out, the run goes on with half."""
    gradient_checkpointing: Literal["auto", "never", "always"] = "auto"
    """Whether the student's blocks forget their activations and recompute them: memory for one more forward pass. `auto` does so
    where the update would not fit into the free memory otherwise; the result is the same bit for bit."""
    teacher_offload: Literal["auto", "never", "always"] = "auto"
    """Whether the teacher's weights wait in host memory and lie on the GPU only while they are read: memory for one copy of them in
    each step. `auto` does so where the run would not fit otherwise; the result is the same bit for bit, and a CPU has no use for it."""
    overlap: bool = False
    """Whether the rollouts of a step are sampled while the step before updates the student: faster where a core or a GPU has room
    for both, and one step off-policy. It takes memory for a second copy of the student."""
    sampling: SamplingSpec = SamplingSpec()
    """How completions are sampled, by whichever model."""
    adapter: Adapter = NoAdapter()
    """Whether all weights are trained or an adapter beside them."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """How the student is updated."""
    evaluation: EvaluationSpec
    """What is measured at full length, and how often."""
    sentinel: Sentinel = NoSentinel()
    """Whether a few whole texts are watched while a prefix is trained, and what is done when their tail drifts."""
    early_stopping: EarlyStopping = NoEarlyStopping()
    """Whether training ends before num_steps when its evaluation no longer improves; schedules still go by num_steps."""
    health: HealthSpec = HealthSpec()
    """When the run warns that it is going wrong."""
    traces: TraceSpec = TraceSpec()
    """What is stored for the token view."""
    checkpoints: CheckpointSpec = CheckpointSpec()
    """When the student is saved."""
    parallelism: Parallelism = OneProcess()
    """Whether several processes, each on a GPU of its own, share the work of the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the engine runs; `auto` takes a GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward passes; `auto` is bfloat16 on a GPU, and on a CPU that is measured to gain from it, as with AMX, for a
    student at least 512 wide, else float32. Trained weights stay float32."""

    @model_validator(mode="wrap")
    @classmethod
    def _fields_fit_together(cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Rules are for what comes in; what is a spec already was asked when it did."""
        spec = handler(value)
        for rule in RULES if spec is not value and info.context is not STORED else ():
            rule(spec)
        return spec

    @property
    def rollouts_per_step(self) -> int:
        """Rollouts in the global batch of one step."""
        return self.prompts_per_step * self.rollouts_per_prompt

    @property
    def num_processes(self) -> int:
        """Processes that a worker starts for the run."""
        return 1 if isinstance(self.parallelism, OneProcess) else self.parallelism.num_processes

    @property
    def usual_micro_batch(self) -> int:
        """micro_batch_rollouts, 16 where it is auto: of passes without a gradient, which hold little and are then the same on
        every machine, and of estimates for a machine that is not known."""
        return USUAL_MICRO_BATCH if self.micro_batch_rollouts == "auto" else self.micro_batch_rollouts

    @property
    def recomputes_blocks(self) -> bool:
        """Whether the backward pass runs the student's blocks a second time, whatever the memory; see engine/memory_plan.py."""
        return self.gradient_checkpointing == "always"

    @property
    def shares_base(self) -> bool:
        """Whether the teacher is the frozen base of the student's adapter: its weights lie in memory once."""
        return self.adapter.kind != "none" and self.teacher == self.student and not self.has_served_teacher

    @property
    def has_served_teacher(self) -> bool:
        """Whether servers have the teacher's weights, and the engine has none of them."""
        return self.teacher_backend.kind != "engine"

    @property
    def needs_vllm(self) -> bool:
        """Whether the engine's own process needs vLLM."""
        return self.rollouts.kind == "vllm_colocated"

    @property
    def num_distillation_steps(self) -> int:
        """Steps behind the warm-up phase. Schedules, anchoring and learning rate count these alone, from 0."""
        return self.num_steps - self.warmup_phase.num_steps

    def distillation_step(self, step: int) -> int:
        """The number, among the steps behind the warm-up phase, of a step of the run; both count from 0."""
        return max(step - self.warmup_phase.num_steps, 0)

    @property
    def reads_prompt_completions(self) -> bool:
        """Whether each row of the prompt file needs a completion."""
        return self.completions.reads_prompt_file or self.warmup_phase.reads_prompt_file

    @property
    def deciding_metrics(self) -> dict[str, str]:
        """By the field that names it, what decides which checkpoint is best and when training ends."""
        decides = {"evaluation.primary_metric": str(self.evaluation.primary_metric)}
        if isinstance(self.early_stopping, StopByEvaluation):
            decides["early_stopping.metric"] = self.early_stopping.metric
        return decides

    @property
    def trains_whole_completions(self) -> bool:
        """Whether every step samples and trains to the full length: ordinary distillation, the baseline of all savings."""
        return self.prefix.kind == "full" and self.loss_region.kind == "whole"

    @property
    def trained_rollouts_per_step(self) -> int:
        """Rollouts of a step that the selection leaves."""
        return self.selection.num_trained(self.prompts_per_step, self.rollouts_per_prompt)

    @property
    def projects_twice(self) -> bool:
        """Whether both heads run once more to know the tokens' weights."""
        return self.token_weights.needs_signals

    def prefix_state(self) -> PrefixState:
        """The schedule's state before the first step."""
        return PrefixState(max_completion_tokens=self.max_completion_tokens)

    def prefix_horizon_at(self, step: int, state: PrefixState) -> int:
        """Tokens that a rollout of a step may have, anchoring left out; `step` counts from 0."""
        return self.loss_region.sampled_tokens(self.prefix.horizon_at(step, state))

    def horizon_at(self, step: int, state: PrefixState) -> int:
        """Horizon of a step in tokens: the full length where all of its rollouts are anchored, else that of the others."""
        is_whole = self.anchoring.num_anchored(step, self.prompts_per_step) == self.prompts_per_step
        return state.max_completion_tokens if is_whole else self.prefix_horizon_at(step, state)

    def horizons_at(self, step: int, state: PrefixState) -> list[int]:
        """For each prompt of a step, the tokens that its rollouts may have."""
        horizon, full = self.prefix_horizon_at(step, state), state.max_completion_tokens
        anchored = self.anchoring.anchored_at(step, self.prompts_per_step)
        return [full if is_anchored else horizon for is_anchored in anchored]

    def regions_at(self, step: int) -> list[LossRegion]:
        """For each prompt of a step, where the loss applies in its rollouts: anchored ones are trained whole."""
        anchored = self.anchoring.anchored_at(step, self.prompts_per_step)
        return [WholeRegion() if is_anchored else self.loss_region for is_anchored in anchored]

    def preview_at(self, step: int) -> tuple[int, int]:
        """Shortest and longest horizon that a step may have: an adaptive schedule stays at its start, or grows as fast as it may."""
        state = self.prefix_state()
        longest = self.prefix.longest_at(step, state, self.evaluation.every_steps)
        is_whole = self.anchoring.num_anchored(step, self.prompts_per_step) == self.prompts_per_step
        shortest = self.horizon_at(step, state)
        return shortest, shortest if is_whole else self.loss_region.sampled_tokens(longest)
