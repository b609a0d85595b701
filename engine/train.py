"""The loop. Read it first; engine/run.py and engine/measuring.py have the steps that it names."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from engine.checkpoint import TrainerState, load_trainer_state, restore_student, without_lost_best
from engine.control import Control
from engine.errors import RunError, StopRequested, first_line, is_out_of_memory, is_out_of_space
from engine.events import Finished, PhaseChanged, Ready, Started, Stopped, Warned
from engine.gradient_checkpointing import can_recompute
from engine.journal import Journal
from engine.language_model import LanguageModel
from engine.machine_memory import machine_memory
from engine.measuring import evaluate_student, measure_baselines, report
from engine.memory import Model, longest_horizon
from engine.memory_choice import Pair, choose
from engine.memory_plan import NO_OFFLOAD_ON_A_CPU, MemoryPlan
from engine.pairing import frame_findings, pair_findings
from engine.parallelism_spec import FullySharded, OneProcess
from engine.peak_memory import room_bytes
from engine.ranks import ALONE, Ranks, lost, speaks_of_ranks
from engine.run import Run
from engine.setup import (
    CPU,
    Precision,
    RunData,
    choose_device,
    choose_precision,
    connected,
    fit_lengths,
    load_data,
    load_models,
)
from engine.sharding import sharded
from engine.spec import RunSpec
from engine.student import Student
from engine.tail_probe import measure_tail
from engine.teacher_offload import offloaded


def train(
    spec: RunSpec,
    folder: Path,
    *,
    attempt: int,
    journal: Journal,
    control: Control,
    resume: Path | None = None,
    ranks: Ranks = ALONE,
    damaged: Sequence[str] = (),
) -> bool:
    """Train the student of `spec` in the run folder; True when it ran to its end, False when it was told to stop.

    `resume` is a checkpoint folder to go on from, `damaged` tells of those passed over for it; all `ranks` train the same student.
    Raises RunError with the kind of failure.
    """
    began = time.monotonic()
    run = _open_run(spec, folder, attempt, journal, control, resume, ranks, damaged)
    try:
        if run.state.evaluated_step is None:
            measure_baselines(run)
        while True:
            control.agree(ranks)
            if ranks.size > 1:  # one process evaluates and saves first what is due: it stops at its next token
                control.begin_step()
            if run.tail_is_due():
                measure_tail(run)
            if run.state.step and run.evaluation_is_due():
                evaluate_student(run)
            if run.state.step and run.checkpoint_is_due():
                run.save_checkpoint()
            if run.is_trained:
                break
            control.begin_step()
            run.enter(run.training_phase)
            run.train_step()
        report(run)
    except StopRequested:
        return _stopped(run)
    finally:
        run.close()
    journal.emit(
        Finished,
        step=run.state.step,
        best_step=run.state.best_step,
        reason=run.end_reason,
        detail=run.state.early_stopping.reason if run.end_reason == "early_stopping" else "",
        seconds=time.monotonic() - began,
        training_seconds=run.state.training_seconds,
    )
    return True


def _open_run(
    spec: RunSpec,
    folder: Path,
    attempt: int,
    journal: Journal,
    control: Control,
    resume: Path | None,
    ranks: Ranks = ALONE,
    damaged: Sequence[str] = (),
) -> Run:
    """Load everything, check that it fits together and say that training can begin."""
    began = time.monotonic()
    device = choose_device(spec, ranks.local_rank if ranks.size > 1 else None)
    precision: Precision = ranks.agreed(choose_precision(spec, device))
    saved = TrainerState(prefix=spec.prefix_state()) if resume is None else load_trainer_state(resume)
    state = without_lost_best(folder, saved)
    journal.emit(
        Started,
        attempt=attempt,
        pid=os.getpid(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        precision=precision,
        num_steps=spec.num_steps,
        resumed_from_step=state.step,
        versions={name: version(name) for name in ("incipit", "torch", "transformers")},
    )
    for message in damaged:
        journal.emit(Warned, code="damaged_checkpoint", message=message, step=state.step)
    if state.best_step != saved.best_step:
        message = f"The best student so far, of step {saved.best_step}, has no whole checkpoint any more; a new best is sought."
        journal.emit(Warned, code="best_checkpoint", message=message, step=state.step)
    journal.emit(PhaseChanged, phase="loading")
    # What is cut into parts is whole on the CPU first: it need not fit on a GPU.
    is_sharded = ranks.size > 1 and isinstance(spec.parallelism, FullySharded)
    student_model, teacher = load_models(spec, CPU if is_sharded else device, precision)
    data = fit_lengths(spec, load_data(spec, student_model.tokenizer), student_model, teacher)
    teacher = connected(spec, teacher, data)
    if teacher.servers is not None:
        teacher.servers.on_wait = control.raise_if_stopped
        teacher.servers.check(max((prompt.token_ids for prompt in data.train), key=len))
    for field, overlong in data.overlong.items():
        journal.emit(Warned, code="overlong_prompts", message=f"{field}: {overlong.in_words}")
    noted = pair_findings(student_model, teacher) + frame_findings(spec.prompts, student_model.tokenizer)
    for finding in noted:
        journal.emit(Warned, code="model_pair", message=finding.message)
    if not student_model.is_llama_shaped:
        kind = student_model.module.config.model_type
        message = f"The student ({kind}) is decoded by transformers' own module: the faster step is for models of Llama's shape."
        journal.emit(Warned, code="plain_decoding", message=message, advice="Only the speed of rollouts differs.")
    if spec.overlap:
        message = "Overlap is on: rollouts are sampled while the student before them is updated, so they are one step off-policy."
        journal.emit(Warned, code="overlap", message=message, advice="Set overlap to false for on-policy rollouts.")
    if spec.num_processes > 1 and ranks.size == 1:
        message = f"parallelism.kind is {spec.parallelism.kind!r} but the run has one process, which does all the work."
        journal.emit(Warned, code="parallelism", message=message, advice="Start it with torchrun, or on a worker.")
    plan = state.plan or _plan(spec, student_model, teacher, data, precision, journal, ranks)
    student_model = replace(student_model, decoded_rollouts=plan.decoded_rollouts)
    teacher = replace(teacher, decoded_rollouts=plan.decoded_rollouts)
    if is_sharded:
        student_model = sharded(student_model, "student", ranks, device)
        teacher = sharded(teacher, "teacher", ranks, device)
    else:
        student_model, teacher = replace(student_model, ranks=ranks), replace(teacher, ranks=ranks)
        teacher = _placed(spec, plan, teacher, journal)
    state = state.model_copy(update={"plan": plan})
    student = Student(student_model, spec, plan)
    if resume is not None:
        restore_student(resume, student)
    if not is_sharded:
        ranks.spread(student_model.module.parameters())
    journal.emit(
        Ready,
        student_parameters=student_model.num_parameters,
        teacher_parameters=teacher.num_parameters,
        trained_parameters=student.num_trained_parameters,
        sources=data.sources,
        seconds=time.monotonic() - began,
    )
    resumed_step = state.step if resume is not None else None
    return Run(spec, folder, attempt, journal, control, student, teacher, data, state, resumed_step=resumed_step)


def _plan(
    spec: RunSpec,
    student: LanguageModel,
    teacher: LanguageModel,
    data: RunData,
    precision: Precision,
    journal: Journal,
    ranks: Ranks,
) -> MemoryPlan:
    """How the run keeps within its memory: as the spec says, with what its `auto` becomes, which is told."""
    choice = choose(
        spec.model_copy(update={"device": student.device.type, "precision": precision}),
        Pair(
            _described(student),
            _described(teacher),
            data.longest_prompt,
            longest_horizon(spec),
            can_recompute(student.module),
            _can_offload(spec, teacher),
        ),
        # Of the whole model: a sharded one takes less, and ranks on one machine's CPU share its memory.
        room_bytes(student.device) // (ranks.local_size if student.device.type == "cpu" else 1),
    )
    if choice.is_told:
        advice = "" if choice.fits else "Take fewer or shorter rollouts, smaller models, or a machine with more memory."
        journal.emit(Warned, code="memory_plan", message=choice.in_words, advice=advice)
    return MemoryPlan.model_validate(ranks.agreed(choice.plan.model_dump(mode="json")))


def _can_offload(spec: RunSpec, teacher: LanguageModel) -> bool:
    # PyTorch rounds the size of a block of pinned memory up to a power of two.
    needed = 2 * teacher.num_parameters * teacher.head.weight.element_size()
    has_own_weights = not (spec.shares_base or spec.has_served_teacher)
    return has_own_weights and isinstance(spec.parallelism, OneProcess) and needed <= machine_memory().available_bytes


def _placed(spec: RunSpec, plan: MemoryPlan, teacher: LanguageModel, journal: Journal) -> LanguageModel:
    """The teacher with its weights where the plan wants them; on a CPU they have one place, also when a GPU's run goes on there."""
    if teacher.device.type == "cuda" and teacher.servers is None:
        return offloaded(teacher) if plan.offloads_teacher else teacher
    if spec.teacher_offload == "always":
        journal.emit(Warned, code="teacher_offload", message=NO_OFFLOAD_ON_A_CPU)
    return teacher


def _described(model: LanguageModel) -> Model:
    adapter = model.shape.adapter
    return Model(model.shape, model.num_parameters - (0 if adapter is None else adapter.parameters))


def _stopped(run: Run) -> bool:
    """Save what is done when that was asked for, and say so."""
    run.control.agree(run.ranks)  # where one has heard it in a sampler, whether with a checkpoint
    step = run.state.step
    saved = step in run.shelf.steps or step == run.resumed_step
    if run.control.stop_with_checkpoint and step and not saved:
        run.enter("saving")
        saved = run.save_checkpoint()
    run.journal.emit(Stopped, step=step, checkpointed=saved)
    return False


_SMALLER = "halve micro_batch_rollouts, shorten the prefix or max_completion_tokens"


def failure_of(error: BaseException) -> RunError:
    """The named failure behind an exception that ended a run."""
    if isinstance(error, RunError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return RunError("gpu_error", f"The GPU's memory ran out ({first_line(error)}); {_SMALLER}.")
    if isinstance(error, torch.AcceleratorError):
        return RunError(
            "gpu_error",
            f"The GPU failed ({first_line(error)}); look at the driver's log (dmesg, nvidia-smi) if that happens again.",
        )
    if speaks_of_ranks(error):
        return lost(error)
    if is_out_of_memory(error):
        return RunError(
            "oom_host", f"The machine's memory ran out ({first_line(error)}); {_SMALLER}, or run fewer slots."
        )
    if is_out_of_space(error):
        return RunError(
            "disk_full", f"No space is left for the files of the run ({first_line(error)}); free some and resume."
        )
    return RunError("internal", f"{type(error).__name__}: {first_line(error)} (a defect; the log has the traceback).")
