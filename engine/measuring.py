"""What a run measures at full length: base student and teacher, the student as it trains, the best one at the end."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.baselines import BaselineCache
from engine.checkpoint import load_weights
from engine.early_stopping import StopByEvaluation, after_evaluation
from engine.evaluate import EncodedPrompt, Evaluation, Evaluator, generation_flops
from engine.events import Evaluated, Split, Subject, TracesWritten
from engine.flops import FlopLedger
from engine.language_model import LanguageModel
from engine.prefix_state import PrefixSignals
from engine.rollout import Rollout
from engine.setup import RunData
from engine.task_spec import scorer_of
from engine.teacher_texts import teacher_texts
from engine.token_trace import write_traces
from engine.trace import rollout_summary, token_trace
from engine.trace_profile import trace_profile
from engine.watch import watch_evaluation

if TYPE_CHECKING:
    from engine.run import Run


def measure_baselines(run: Run) -> None:
    """Base student and teacher at full length, on the dev and the report split, before the first step.

    The base student on the dev split is measured every time, since its rollouts are traced.
    """
    cache = BaselineCache(run.spec, run.student.model, run.teacher) if run.ranks.size == 1 else None
    horizon = run.measured_horizon(0)
    for split in _splits(run.data):
        evaluator = _evaluator(run, split)
        models: list[tuple[Subject, LanguageModel]] = [("base", run.student.model), ("teacher", run.teacher)]
        for subject, model in models:
            run.enter("baseline", f"{subject} on {split}")
            began = time.monotonic()
            is_traced = split == "dev" and subject == "base"
            known = None if is_traced or cache is None else cache.find(subject, evaluator, horizon)
            evaluation = known or _evaluated(run, evaluator, model, horizon)
            _record(run, evaluation, subject, split, began, is_cached=known is not None)
            if is_traced:
                _write_traces(run, evaluation, evaluator, "base")
            elif known is None and cache is not None:
                cache.keep(subject, evaluator, horizon, evaluation)
    run.change_state(evaluated_step=0)


def evaluate_student(run: Run) -> None:
    """Full-length evaluation on the dev split; a new best is saved at once."""
    run.enter("evaluation", f"student of step {run.state.step} on dev")
    began = time.monotonic()
    evaluator = _evaluator(run, "dev")
    horizon = run.measured_horizon(run.state.step)
    evaluation = _evaluated(run, evaluator, run.student.model, horizon)
    score = run.spec.evaluation.score(evaluation.metrics)
    is_best = run.state.best_score is None or score > run.state.best_score
    run.change_state(evaluated_step=run.state.step)
    if run.state.counted_step != run.state.step:  # where the best checkpoint was lost, a step is evaluated twice
        _count(run, evaluation, score[0])
    run.accuracies[run.state.step] = evaluation.metrics["accuracy"]
    run.scores[run.state.step] = score
    before = run.state
    if is_best:
        run.change_state(best_step=run.state.step, best_score=score)
    _record(run, evaluation, "student", "dev", began, is_best=is_best)
    _write_traces(run, evaluation, evaluator, "student")
    if is_best and not run.save_checkpoint():
        # The report opens the best student from its checkpoint: one that is not on disk cannot stay the best.
        run.change_state(best_step=before.best_step, best_score=before.best_score, best_path=before.best_path)


def _count(run: Run, evaluation: Evaluation, primary: float) -> None:
    """Tell an evaluation to what waits for evaluations: the prefix schedule and early stopping."""
    run.change_state(counted_step=run.state.step)
    last = run.state.step - run.spec.warmup_phase.num_steps - 1
    if last < 0:  # a warm-up says nothing about the prefix
        return
    signals = PrefixSignals(step=last, score=primary)
    run.change_state(prefix=run.spec.prefix.advance(run.state.prefix, signals))
    rule = run.spec.early_stopping
    if isinstance(rule, StopByEvaluation):  # before the checkpoint of a new best, which keeps it
        state = after_evaluation(rule, run.state.early_stopping, run.state.step, evaluation.metrics)
        run.change_state(early_stopping=state)


def report(run: Run) -> None:
    """The best checkpoint on the report split."""
    assert run.state.best_step is not None, "training ends with an evaluation"
    if run.state.best_step != run.state.step:
        assert run.state.best_path is not None, "a new best is saved at once"
        load_weights(run.folder / run.state.best_path, run.student)
    if not run.data.report:
        return
    run.enter("report", f"student of step {run.state.best_step} on report")
    began = time.monotonic()
    horizon = run.measured_horizon(run.state.best_step)
    evaluation = _evaluated(run, _evaluator(run, "report"), run.student.model, horizon)
    _record(run, evaluation, "student", "report", began, is_best=True, step=run.state.best_step)


def _evaluated(run: Run, evaluator: Evaluator, model: LanguageModel, horizon: int) -> Evaluation:
    """The evaluation of a model. What the run decides by is one rank's: another's may differ by rounding or a judge's patience."""
    evaluation = evaluator.evaluate(model, run.teacher, horizon)
    return replace(evaluation, metrics=run.ranks.agreed(evaluation.metrics))


def _evaluator(run: Run, split: Split) -> Evaluator:
    prompts = run.data.dev if split == "dev" else run.data.report
    path, report_path = run.spec.evaluation.path, run.spec.evaluation.report_path
    return Evaluator(
        run.spec,
        prompts,
        run.control.raise_if_stopped,
        _teacher_texts(run, split, prompts),
        scorer_of(path if split == "dev" or report_path is None else report_path, run.spec.evaluation.scorer),
    )


def _teacher_texts(run: Run, split: Split, prompts: list[EncodedPrompt]) -> list[Rollout]:
    """The fixed texts of a split; the teacher writes them when they are first asked for."""
    if split not in run.teacher_texts:
        texts, executed = teacher_texts(run.spec, run.teacher, prompts, run.control.raise_if_stopped)
        run.teacher_texts[split] = texts
        if executed.total:
            run.change_state(
                flops=run.state.flops + FlopLedger(evaluation=generation_flops(run.teacher, texts)),
                executed=run.state.executed + executed,
                executed_flops=run.state.executed_flops + executed.total,
            )
    return run.teacher_texts[split]


def _record(
    run: Run,
    evaluation: Evaluation,
    subject: Subject,
    split: Split,
    began: float,
    *,
    is_best: bool = False,
    is_cached: bool = False,
    step: int | None = None,
) -> None:
    run.change_state(
        flops=run.state.flops + evaluation.flops,
        executed=run.state.executed + evaluation.executed,
        executed_flops=run.state.executed_flops + evaluation.executed.total,
    )
    at = run.state.step if step is None else step
    if split == "dev":
        watch_evaluation(run, subject, evaluation.metrics)
    run.journal.emit(
        Evaluated,
        step=at,
        subject=subject,
        split=split,
        num_prompts=len(run.data.dev if split == "dev" else run.data.report),
        horizon=run.measured_horizon(at),
        metrics=evaluation.metrics,
        position_reverse_kl=evaluation.position_reverse_kl,
        position_p90=evaluation.position_p90,
        position_teacher_entropy=evaluation.position_teacher_entropy,
        position_count=evaluation.position_count,
        verdicts=evaluation.verdicts,
        is_best=is_best,
        is_cached=is_cached,
        flops=run.state.flops,
        executed=run.state.executed,
        seconds=time.monotonic() - began,
    )


def _write_traces(run: Run, evaluation: Evaluation, evaluator: Evaluator, subject: Subject) -> None:
    traced = evaluation.sampled[: run.spec.traces.num_rollouts]
    if not traced or not run.ranks.is_first:
        return
    model, step = run.student.model, run.state.step
    path = run.attempt_folder / "traces" / f"step-{step}.parquet"
    path.parent.mkdir(exist_ok=True)
    traces = [token_trace(columns, model.tokenizer) for columns in traced]
    write_traces(path, traces)
    horizon = run.measured_horizon(step)
    rows = [run.data.dev[columns.rollout.prompt_index].row for columns in traced]
    run.journal.emit(
        TracesWritten,
        step=step,
        subject=subject,
        horizon=horizon,
        path=path.relative_to(run.attempt_folder).as_posix(),
        top_k=run.spec.traces.top_k,
        rollouts=[
            rollout_summary(
                columns,
                row=index,
                horizon=horizon,
                model=model,
                prompt=row.prompt,
                answer=row.answer,
                is_right=mark.is_right if (mark := evaluator.mark(model, columns.rollout)) else None,
            )
            for index, (columns, row) in enumerate(zip(traced, rows, strict=True))
        ],
        profile=trace_profile(traces, run.spec.max_completion_tokens),
    )


def _splits(data: RunData) -> list[Split]:
    return ["dev", "report"] if data.report else ["dev"]
