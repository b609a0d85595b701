"""A run at work: what it holds, and the named steps that the loop in engine/train.py calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from engine.checkpoint import TrainerState, gathered_state
from engine.checkpoint_shelf import CheckpointShelf
from engine.collect import StepRollouts, collect_rollouts
from engine.control import Control
from engine.events import EndReason, Phase, PhaseChanged, Split, StepDone, Warned
from engine.journal import Journal
from engine.language_model import LanguageModel
from engine.loss_region import nothing_supervised
from engine.memory_plan import Shortage
from engine.overlap import Overlap
from engine.peak_memory import peak_memory_bytes
from engine.prefix_state import PrefixSignals, PrefixState
from engine.ranks import Ranks
from engine.rollout import Rollout
from engine.rollout_backend_spec import EngineRollouts
from engine.sentinel_spec import WatchTail
from engine.setup import RunData
from engine.spec import RunSpec
from engine.student import Student
from engine.tail_probe import TailProbe
from engine.update import Update
from engine.vllm_sampler import RolloutServers
from engine.warmup import Warmup, take_warmup_step
from engine.watch import watch_step


@dataclass
class Run:
    """Everything that one attempt works with. `state` is what a checkpoint keeps of it."""

    spec: RunSpec
    folder: Path
    attempt: int
    journal: Journal
    control: Control
    student: Student
    teacher: LanguageModel
    data: RunData
    state: TrainerState
    resumed_step: int | None = None
    """Step of the checkpoint that this attempt started from; it is not saved again."""
    teacher_texts: dict[Split, list[Rollout]] = field(default_factory=dict)
    """What the teacher wrote once for the evaluations of this attempt, by split."""
    accuracies: dict[int, float | None] = field(default_factory=dict)
    """Full-length dev accuracy by step, as measured by this attempt."""
    scores: dict[int, tuple[float, float]] = field(default_factory=dict)
    """What decides which student is the best, by step, as measured by this attempt; larger is better."""
    entered: tuple[Phase, str] | None = None
    """The phase that it is in, with what was said of it; None before the first."""

    def __post_init__(self) -> None:
        # A pinned checkpoint must stay, and only the supervisor knows which are: below one, dropping is its task.
        kept = None if self.control.is_supervised else self.spec.checkpoints
        self.shelf = CheckpointShelf(self.attempt_folder, kept, self.journal)
        watched = self.spec.sentinel
        prompts = self.data.train if watched.kind == "watch" and watched.prompts == "train" else self.data.dev
        count = watched.num_rollouts if watched.kind == "watch" else 0
        self.tail_probe = TailProbe(self.spec, self.teacher, prompts[:count], self.control.raise_if_stopped)
        self.warmup = Warmup.of(self)
        self.overlap = Overlap(self.student.model) if self.spec.overlap else None
        self.servers = self._rollout_servers()
        self.student.on_shortage = self._keep_within_memory

    def close(self) -> None:
        """Take away what only this attempt has needed."""
        if self.servers is not None:
            self.servers.close()

    @property
    def ranks(self) -> Ranks:
        """The processes of the run."""
        return self.student.model.ranks

    @property
    def attempt_folder(self) -> Path:
        """The only place that this attempt writes to."""
        return self.folder / "attempts" / str(self.attempt)

    @property
    def is_trained(self) -> bool:
        """Whether all steps are done, or something has ended the run before."""
        return self.end_reason is not None

    @property
    def end_reason(self) -> EndReason | None:
        """Why training is over; None while it goes on."""
        if self.state.step >= self.spec.num_steps:
            return "steps"
        if self.state.early_stopping.reason:
            return "early_stopping"
        return "sentinel" if self.state.sentinel.is_stopped else "flops_budget" if self.is_over_budget else None

    @property
    def is_over_budget(self) -> bool:
        """Whether the training FLOPs have reached the budget."""
        budget = self.spec.training_flops_budget
        return budget is not None and self.state.flops.training >= budget

    def measured_horizon(self, step: int) -> int:
        """Where "beyond" begins for the student of `step` updates: the horizon of its last step, anchors left out."""
        last = max(step - 1, 0)
        return self.spec_at(last).prefix_horizon_at(self.spec.distillation_step(last), self.state.prefix)

    def spec_at(self, step: int) -> RunSpec:
        """The spec in force at a step (counted from 0), with what the sentinel has changed."""
        return self.state.sentinel.spec_at(self.spec, step, self.state.prefix)

    def change_state(self, **values: object) -> None:
        """Replace fields of the state."""
        self.state = self.state.model_copy(update=values)

    def enter(self, phase: Phase, detail: str = "") -> None:
        """Tell the world which phase begins, unless it goes on."""
        if (phase, detail) != self.entered:
            self.entered = (phase, detail)
            self.journal.emit(PhaseChanged, phase=phase, detail=detail)

    @property
    def training_phase(self) -> Phase:
        """Whether the next step belongs to the warm-up or to distillation."""
        return "warmup" if self.state.step < self.spec.warmup_phase.num_steps else "training"

    def train_step(self) -> None:
        """Sample, score, diverge, update; in the warm-up phase fine-tune on given completions."""
        if self.warmup is not None and self.training_phase == "warmup":
            take_warmup_step(self, self.warmup)
            return
        began = time.monotonic()
        step = self.spec.distillation_step(self.state.step)
        horizon = self.spec_at(self.state.step).horizon_at(step, self.state.prefix)
        sampled_now = []
        if (collected := self.state.ahead) is None:
            collected = self._collect(self.state.step, self.student.model, self.control.raise_if_stopped)
            sampled_now.append(collected)
        sampled = time.monotonic()
        update, ahead = self._update(collected, step)
        if ahead is not None:
            sampled_now.append(ahead)
        done = time.monotonic()
        if update.loss is None:
            self.journal.warn_once("nothing_supervised", nothing_supervised(self.state.step + 1, horizon))
        executed = sum((one.executed for one in sampled_now), update.executed)
        self.change_state(
            step=self.state.step + 1,
            ahead=ahead,
            prefix=self._prefix_after(step, collected.rollouts, update),
            flops=sum((one.flops for one in sampled_now), self.state.flops + update.flops),
            executed=self.state.executed + executed,
            executed_flops=self.state.executed_flops + executed.total,
            training_seconds=self.state.training_seconds + done - began,
        )
        self.journal.emit(
            StepDone,
            step=self.state.step,
            horizon=horizon,
            metrics=update.metrics(collected.rollouts) | collected.metrics,
            position_loss=update.position_loss,
            position_count=update.position_count,
            flops=self.state.flops,
            executed=self.state.executed,
            executed_flops=self.state.executed_flops,
            peak_memory_bytes=peak_memory_bytes(self.student.model.device),
            seconds={"rollout": sampled - began, "update": done - sampled, "total": done - began},
        )
        watch_step(self, update, is_full=horizon >= self.spec.max_completion_tokens)

    def _collect(self, at: int, student: LanguageModel, on_token: Callable[[], None]) -> StepRollouts:
        """The rollouts of the run's step `at` (counted from 0), of a student."""
        spec, step = self.spec_at(at), self.spec.distillation_step(at)
        horizons = spec.horizons_at(step, self.state.prefix)
        return collect_rollouts(
            spec,
            student,
            self.teacher,
            self.data.train,
            step=step,
            horizons=horizons,
            on_token=on_token,
            servers=self.servers,
        )

    def _rollout_servers(self) -> RolloutServers | None:
        if isinstance(self.spec.rollouts, EngineRollouts):
            return None
        num_tokens = self.data.longest_prompt + self.spec.max_completion_tokens
        longest = max((prompt.token_ids for prompt in self.data.train), key=len)
        return RolloutServers(self.spec.rollouts, self.attempt_folder, num_tokens, longest)

    def _update(self, collected: StepRollouts, step: int) -> tuple[Update, StepRollouts | None]:
        """Train on what was collected; under overlap, meanwhile collect for the step behind it, if there is one."""
        following = self.state.step + 1

        def update() -> Update:
            return self.student.update(collected.rollouts, self.teacher, step)

        if self.overlap is None or following == self.spec.num_steps:
            return update(), None
        # A stop waits for both: weights that were changed belong to a step that is done.
        return self.overlap.beside(update, partial(self._collect, following), self.control.show_life)

    def _prefix_after(self, step: int, rollouts: list[Rollout], update: Update) -> PrefixState:
        schedule, state = self.spec.prefix, self.state.prefix
        signals = PrefixSignals.of_step(
            step,
            schedule.horizon_at(step, state),
            ends=[len(r.completion_token_ids) if r.finish_reason == "eos" else None for r in rollouts],
            position_loss=update.position_loss,
            position_count=update.position_count,
        )
        return schedule.advance(state, signals)

    def _keep_within_memory(self, shortage: Shortage) -> None:
        """Tell that an update ran out of memory, and let checkpoints keep what was changed for it."""
        self.change_state(plan=shortage.plan)
        self.journal.emit(
            Warned, code="micro_batch", message=shortage.in_words, step=self.state.step, advice=shortage.advice
        )

    def tail_is_due(self) -> bool:
        """Whether the sentinel still has to look at the student of the current step."""
        watched, step = self.spec.sentinel, self.state.step
        # It compares with the student that distillation begins with.
        since = step - self.spec.warmup_phase.num_steps
        due = isinstance(watched, WatchTail) and since >= 0 and since % watched.every_steps == 0
        return due and self.state.sentinel.measured_step != step

    def evaluation_is_due(self) -> bool:
        """Whether the student of the current step still has to be evaluated."""
        step = self.state.step
        due = self.is_trained or step % self.spec.evaluation.every_steps == 0
        return due and self.state.evaluated_step != step

    def checkpoint_is_due(self) -> bool:
        """Whether the current step has to be saved and is not yet."""
        step = self.state.step
        due = self.is_trained or step % self.spec.checkpoints.every_steps == 0 or self.control.take_checkpoint_wish()
        return due and step not in self.shelf.steps and step != self.resumed_step

    def save_checkpoint(self) -> bool:
        """Write a checkpoint of the current step, then drop those that are no longer kept; False when there is no room.

        The first of several processes writes it.

        Raises RunError("disk_full") when it must not be left out: at the end, and after others were left out.
        """
        step = self.state.step
        if self.state.best_step == step:
            self.change_state(best_path=self.shelf.path_of(step).relative_to(self.folder).as_posix())
        measured = (self.accuracies.get(step), self.scores.get(step))
        whole = gathered_state(self.student)
        saved, steps = self.ranks.first_does(
            lambda: [
                self.shelf.save(self.student, self.state, *measured, is_last=self.is_trained, whole=whole),
                self.shelf.steps,
            ]
        )
        if not self.ranks.is_first:
            self.shelf.scores = dict.fromkeys(steps)
        return bool(saved)
