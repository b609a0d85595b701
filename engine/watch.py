"""A run looks after itself: what its steps and evaluations show goes to the alarms, and theirs into the journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from engine.events import Subject, Warned
from engine.health import Alarm, HealthState, StepSignals, after_evaluation, after_step, with_reference
from engine.update import Update

if TYPE_CHECKING:
    from engine.run import Run


def watch_step(run: Run, update: Update, *, is_full: bool) -> None:
    """Tell the alarms what a step showed."""
    signals = StepSignals(
        step=run.state.step,
        is_full=is_full,
        loss=update.loss,
        grad_norm=update.grad_norm,
        clip_norm=run.spec.optimizer.max_grad_norm,
        student_entropy=update.student_entropy,
        teacher_entropy=update.teacher_entropy,
    )
    _keep(run, *after_step(run.spec.health, run.state.health, signals))


def watch_evaluation(run: Run, subject: Subject, metrics: Mapping[str, float | None]) -> None:
    """Tell the alarms what a full-length evaluation on the dev prompts showed."""
    if subject == "student":
        _keep(run, *after_evaluation(run.spec.health, run.state.health, run.state.step, metrics))
    else:
        run.change_state(health=with_reference(run.state.health, subject, metrics))


def _keep(run: Run, state: HealthState, alarms: list[Alarm]) -> None:
    run.change_state(health=state)
    for alarm in alarms:
        run.journal.emit(Warned, step=run.state.step, **alarm.model_dump())
