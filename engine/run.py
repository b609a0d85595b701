"""A run at work: what it holds, and the named steps that the loop in engine/train.py calls."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from engine.baselines import BaselineCache
from engine.checkpoint import TrainerState, load_weights
from engine.checkpoint_shelf import CheckpointShelf
from engine.collect import collect_rollouts
from engine.control import Control
from engine.evaluate import Evaluation, Evaluator
from engine.events import (
    Evaluated,
    PhaseChanged,
    Split,
    StepDone,
    Subject,
    TracesWritten,
)
from engine.journal import Journal
from engine.language_model import LanguageModel
from engine.prefixes import PrefixSignals
from engine.setup import RunData
from engine.spec import RunSpec
from engine.student import Student
from engine.token_trace import write_traces
from engine.trace import rollout_summary, token_trace


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
    accuracies: dict[int, float | None] = field(default_factory=dict)
    """Full-length dev accuracy by step, as measured by this attempt."""

    def __post_init__(self) -> None:
        self.shelf = CheckpointShelf(self.attempt_folder, self.spec.checkpoints.keep_last, self.journal)

    @property
    def attempt_folder(self) -> Path:
        """The only place that this attempt writes to."""
        return self.folder / "attempts" / str(self.attempt)

    @property
    def is_trained(self) -> bool:
        """Whether all steps are done or the FLOPs budget is used up."""
        return self.state.step >= self.spec.num_steps or self.is_over_budget

    @property
    def is_over_budget(self) -> bool:
        """Whether the training FLOPs have reached the budget."""
        budget = self.spec.training_flops_budget
        return budget is not None and self.state.flops.training >= budget

    def measured_horizon(self, step: int) -> int:
        """What "inside" and "beyond" mean for the student of `step` updates: the schedule's horizon, anchors left out."""
        return self.spec.prefix.horizon_at(max(step - 1, 0), self.state.prefix)

    def change_state(self, **values: object) -> None:
        """Replace fields of the state."""
        self.state = self.state.model_copy(update=values)

    def enter(self, phase: Literal["loading", "baseline", "training", "report", "saving"], detail: str = "") -> None:
        """Tell the world which phase begins."""
        self.journal.emit(PhaseChanged, phase=phase, detail=detail)

    def measure_baselines(self) -> None:
        """Base student and teacher at full length, on the dev and the report split, before the first step.

        The base student on the dev split is measured every time, since its rollouts are traced.
        """
        cache = BaselineCache(self.spec, self.student.model, self.teacher)
        horizon = self.measured_horizon(0)
        for split in _splits(self.data):
            evaluator = self._evaluator(split)
            models: list[tuple[Subject, LanguageModel]] = [("base", self.student.model), ("teacher", self.teacher)]
            for subject, model in models:
                self.enter("baseline", f"{subject} on {split}")
                began = time.monotonic()
                is_traced = split == "dev" and subject == "base"
                known = None if is_traced else cache.find(subject, evaluator.prompts, horizon)
                evaluation = known or evaluator.evaluate(model, self.teacher, horizon)
                self._record(evaluation, subject, split, began, is_cached=known is not None)
                if is_traced:
                    self._write_traces(evaluation, evaluator, "base")
                elif known is None:
                    cache.keep(subject, evaluator.prompts, horizon, evaluation)
        self.change_state(evaluated_step=0)

    def train_step(self) -> None:
        """Sample, score, diverge, update."""
        began = time.monotonic()
        step = self.state.step
        horizon = self.spec.horizon_at(step, self.state.prefix)
        collected = collect_rollouts(
            self.spec,
            self.student.model,
            self.data.train,
            step=step,
            horizon=horizon,
            on_token=self.control.raise_if_stopped,
        )
        sampled = time.monotonic()
        update = self.student.update(collected.rollouts, self.teacher, step)
        done = time.monotonic()
        self.change_state(
            step=step + 1,
            prefix=self.spec.prefix.advance(self.state.prefix, PrefixSignals(step=step)),
            flops=self.state.flops + collected.flops + update.flops,
            executed_flops=self.state.executed_flops
            + collected.flops.training
            + collected.wasted_flops
            + update.executed_flops,
            training_seconds=self.state.training_seconds + done - began,
        )
        self.journal.emit(
            StepDone,
            step=step + 1,
            horizon=horizon,
            metrics=update.metrics(collected.rollouts),
            position_loss=update.position_loss,
            position_count=update.position_count,
            flops=self.state.flops,
            executed_flops=self.state.executed_flops,
            seconds={"rollout": sampled - began, "update": done - sampled, "total": done - began},
        )

    def evaluation_is_due(self) -> bool:
        """Whether the student of the current step still has to be evaluated."""
        step = self.state.step
        due = self.is_trained or step % self.spec.evaluation.every_steps == 0
        return due and self.state.evaluated_step != step

    def evaluate_student(self) -> None:
        """Full-length evaluation on the dev split; a new best is saved at once."""
        began = time.monotonic()
        evaluator = self._evaluator("dev")
        horizon = self.measured_horizon(self.state.step)
        evaluation = evaluator.evaluate(self.student.model, self.teacher, horizon)
        is_best = self.state.best_score is None or evaluation.score > self.state.best_score
        self.change_state(evaluated_step=self.state.step)
        self.accuracies[self.state.step] = evaluation.metrics["accuracy"]
        if is_best:
            self.change_state(best_step=self.state.step, best_score=evaluation.score)
        self._record(evaluation, "student", "dev", began, is_best=is_best)
        self._write_traces(evaluation, evaluator, "student")
        if is_best:
            self.save_checkpoint()

    def checkpoint_is_due(self) -> bool:
        """Whether the current step has to be saved and is not yet."""
        step = self.state.step
        due = self.is_trained or step % self.spec.checkpoints.every_steps == 0 or self.control.take_checkpoint_wish()
        return due and step not in self.shelf.steps and step != self.resumed_step

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the current step, then drop those that are no longer kept."""
        step = self.state.step
        if self.state.best_step == step:
            self.change_state(best_path=self.shelf.path_of(step).relative_to(self.folder).as_posix())
        self.shelf.save(self.student, self.state, accuracy=self.accuracies.get(step))

    def report(self) -> None:
        """The best checkpoint on the report split."""
        assert self.state.best_step is not None, "training ends with an evaluation"
        if self.state.best_step != self.state.step:
            assert self.state.best_path is not None, "a new best is saved at once"
            load_weights(self.folder / self.state.best_path, self.student)
        if not self.data.report:
            return
        self.enter("report", f"student of step {self.state.best_step} on report")
        began = time.monotonic()
        horizon = self.measured_horizon(self.state.best_step)
        evaluation = self._evaluator("report").evaluate(self.student.model, self.teacher, horizon)
        self._record(evaluation, "student", "report", began, is_best=True, step=self.state.best_step)

    def _evaluator(self, split: Split) -> Evaluator:
        prompts = self.data.dev if split == "dev" else self.data.report
        return Evaluator(self.spec, prompts, self.control.raise_if_stopped)

    def _record(
        self,
        evaluation: Evaluation,
        subject: Subject,
        split: Split,
        began: float,
        *,
        is_best: bool = False,
        is_cached: bool = False,
        step: int | None = None,
    ) -> None:
        self.change_state(
            flops=self.state.flops + evaluation.flops,
            executed_flops=self.state.executed_flops + evaluation.flops.evaluation,
        )
        at = self.state.step if step is None else step
        self.journal.emit(
            Evaluated,
            step=at,
            subject=subject,
            split=split,
            num_prompts=len(self.data.dev if split == "dev" else self.data.report),
            horizon=self.measured_horizon(at),
            metrics=evaluation.metrics,
            position_reverse_kl=evaluation.position_reverse_kl,
            position_p90=evaluation.position_p90,
            position_teacher_entropy=evaluation.position_teacher_entropy,
            position_count=evaluation.position_count,
            is_best=is_best,
            is_cached=is_cached,
            flops=self.state.flops,
            seconds=time.monotonic() - began,
        )

    def _write_traces(self, evaluation: Evaluation, evaluator: Evaluator, subject: Subject) -> None:
        traced = evaluation.sampled[: self.spec.traces.num_rollouts]
        if not traced:
            return
        model, step = self.student.model, self.state.step
        path = self.attempt_folder / "traces" / f"step-{step}.parquet"
        path.parent.mkdir(exist_ok=True)
        write_traces(path, [token_trace(columns, model.tokenizer) for columns in traced])
        horizon = self.measured_horizon(step)
        rows = [self.data.dev[columns.rollout.prompt_index].row for columns in traced]
        self.journal.emit(
            TracesWritten,
            step=step,
            subject=subject,
            horizon=horizon,
            path=path.relative_to(self.attempt_folder).as_posix(),
            top_k=self.spec.traces.top_k,
            rollouts=[
                rollout_summary(
                    columns,
                    row=index,
                    horizon=horizon,
                    model=model,
                    prompt=row.prompt,
                    answer=row.answer,
                    is_right=evaluator.is_right(model, columns.rollout),
                )
                for index, (columns, row) in enumerate(zip(traced, rows, strict=True))
            ],
        )


def _splits(data: RunData) -> list[Split]:
    return ["dev", "report"] if data.report else ["dev"]
