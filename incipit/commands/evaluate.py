"""`incipit evaluate`: one model on a task or a file, or two such evaluations paired problem by problem."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

if TYPE_CHECKING:
    from engine.model_evaluation import ModelEvaluation, PairedComparison
    from engine.task_spec import TaskFile


def evaluate(
    model: Annotated[
        str | None, typer.Argument(help="Model: a folder, a checkpoint or a hub id.", show_default=False)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="A ready task such as math500, or a file, hf:… or reasoning_gym:… .", show_default=False
        ),
    ] = None,
    folder: Annotated[Path | None, typer.Option("--folder", help="Local copy of the task's data set.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Revision of the task's data set.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Problems from the start, at most 20,000; default all of them.")
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option("--sampling", help="A way to sample that the task names, such as opd or qwen3_thinking."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Samples per problem (k), beside the greedy one.")
    ] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="Of the samples.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Of the samples.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Of the samples; 0 is off.")] = None,
    min_p: Annotated[float | None, typer.Option("--min-p", help="Of the samples; 0 is off.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Longest completion; default the task's.")
    ] = None,
    template: Annotated[Literal["plain", "chat"], typer.Option("--template", help="How the model is asked.")] = "plain",
    scorer: Annotated[
        str | None, typer.Option("--scorer", help="For a file: a kind such as math_verify, or its JSON object.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the samples.")] = 0,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where it runs.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="Also write the result as JSON here.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", help="Pair two results that --out has written.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Evaluate a model on a task or a file, with intervals; or compare two evaluations problem by problem.

    Example: incipit evaluate out/my-run/attempts/1/checkpoints/step-120 --task gsm8k --samples 4 --template chat --out a.json

    Example: incipit evaluate --compare a.json b.json
    """
    if compare is not None:
        _print_comparison(compare, json)
        return
    if model is None or task is None:
        _refuse("A model and --task are needed, or --compare with two results; see incipit evaluate --help.")
    draw = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    chosen = {"samples_per_prompt": samples, "max_completion_tokens": max_tokens, "num_prompts": limit}
    reference, defaults = _task_defaults(task, folder, revision, sampling)
    document = _document(
        model, reference, defaults | {k: v for k, v in {**draw, **chosen}.items() if v is not None}, scorer
    )
    document |= {"seed": seed, "device": device}
    document["prompts"]["template"] = template
    if out is not None:
        _check_writable(out)
    result = _evaluated(document)
    if json:
        typer.echo(result.model_dump_json(indent=1))
    else:
        _print_result(result)
    if out is not None:
        try:
            out.write_text(result.model_dump_json(indent=1) + "\n")
        except OSError as error:
            if not json:  # the verdicts of hours, for a second --out
                typer.echo(result.model_dump_json(indent=1))
            _refuse(f"The result cannot be written to {out} ({error.strerror}); keep what was printed in its place.")


def _check_writable(out: Path) -> None:
    """Before hours of work: a refusal when the result could not be written, and what stands there stays as it is."""
    was_there = out.exists()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a"):
            pass
        if not was_there:
            out.unlink()
    except OSError as error:
        _refuse(f"The result could not be written to {out} ({error.strerror}); choose another --out.")


def _task_defaults(
    task: str, folder: Path | None, revision: str | None, sampling: str | None
) -> tuple[str, dict[str, Any]]:
    """The reference that a task's name stands for, and what its file says of sampling."""
    from engine.prompt_reference import ReadyTask, ready_tasks
    from engine.task_spec import task_file

    if task.removeprefix("task:") not in ready_tasks():
        if folder is not None or revision is not None or sampling is not None:
            _refuse(
                f"--folder, --revision and --sampling are for ready tasks ({', '.join(ready_tasks())}), not for {task}."
            )
        return task, {}
    found = task_file(task.removeprefix("task:"))
    name = sampling or "greedy"
    if name not in found.sampling:
        _refuse(f"--sampling is {name!r} but {task} knows {', '.join(found.sampling)}; choose one of them.")
    reference = ReadyTask(task.removeprefix("task:"), None if folder is None else str(folder.resolve()), revision)
    return str(reference), _sampling_of(found, name)


def _sampling_of(task: TaskFile, name: str) -> dict[str, Any]:
    return {"num_prompts": task.num_problems, **task.sampling[name].model_dump(exclude={"source"})}


def _document(model: str, reference: str, settings: dict[str, Any], scorer: str | None) -> dict[str, Any]:
    """A spec of which the engine uses the student and the evaluation."""
    from engine.evaluation_spec import MAX_PROMPTS, AnswerSampling

    num_prompts = settings.get("num_prompts", MAX_PROMPTS)
    evaluation: dict[str, Any] = {"path": reference, "num_sampled": 1, "num_prompts": num_prompts}
    if "samples_per_prompt" in settings:
        evaluation["samples_per_prompt"] = settings["samples_per_prompt"]
    evaluation["answer_sampling"] = {k: settings[k] for k in AnswerSampling.model_fields if k in settings}
    if scorer is not None:
        try:
            evaluation["scorer"] = jsonlib.loads(scorer) if scorer.lstrip().startswith("{") else {"kind": scorer}
        except ValueError as error:
            _refuse(f"--scorer is not JSON ({error}); write a kind such as math_verify, or a JSON object.")
    return {
        "name": "evaluation",
        "student": {"path": model},
        "teacher": {"path": model},
        "prompts": {"path": "none"},
        "prefix": {"kind": "full"},
        "max_completion_tokens": settings.get("max_completion_tokens", 512),
        "evaluation": evaluation,
    }


def _evaluated(document: dict[str, Any]) -> ModelEvaluation:
    from pydantic import ValidationError

    from engine.errors import RunError
    from engine.findings import findings_of
    from engine.spec import RunSpec

    try:
        spec = RunSpec.model_validate(document)
    except ValidationError as error:
        _refuse("\n".join(finding.message for finding in findings_of(error, document)))
    import transformers

    from engine.model_evaluation import evaluate_model

    transformers.utils.logging.disable_progress_bar()
    try:
        return evaluate_model(spec)
    except RunError as error:
        _refuse(error.message)


def _print_result(result: ModelEvaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.model} on {result.source}, {result.num_prompts} problems", title_justify="left")
    for heading in ("figure", "value", "95 %"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    metrics = dict(result.metrics)
    intervals = {
        "accuracy": (result.accuracy_low, result.accuracy_high),
        "avg_at_k": (metrics.pop("avg_at_k_low", None), metrics.pop("avg_at_k_high", None)),
    }
    for name, value in metrics.items():
        if value is None or name.startswith("sampled_"):  # of the one sample that the engine always takes
            continue
        low, high = intervals.get(name, (None, None))
        table.add_row(name, f"{value:.4g}", "" if low is None or high is None else f"{low:.3f} to {high:.3f}")
    console = Console()
    console.print(table)
    k = result.verdicts.samples_per_problem
    console.print(
        f"Greedy completions{f' and {k} samples each' if k else ''} of at most {result.max_completion_tokens} tokens; "
        f"{1 - (result.metrics.get('eos_rate') or 0.0):.0%} were cut off there."
    )


def _print_comparison(paths: tuple[Path, Path], json: bool) -> None:
    from engine.model_evaluation import ModelEvaluation, compared

    results = []
    for path in paths:
        try:
            results.append(ModelEvaluation.model_validate_json(path.read_bytes()))
        except OSError as error:
            _refuse(f"{path} cannot be read ({error.strerror}); name a file that --out has written.")
        except ValueError:
            _refuse(f"{path} is no result of incipit evaluate; name a file that --out has written.")
    first, second = results
    try:
        found = compared(first, second)
    except ValueError as error:
        _refuse(str(error))
    typer.echo(found.model_dump_json(indent=1) if json else "\n".join(_sentences(first, second, found)))


def _sentences(first: ModelEvaluation, second: ModelEvaluation, found: PairedComparison) -> list[str]:
    accuracies = [one.metrics.get("accuracy") or 0.0 for one in (first, second)]
    said = [
        f"{first.model}: {accuracies[0]:.3f} [{first.accuracy_low:.3f}, {first.accuracy_high:.3f}]",
        f"{second.model}: {accuracies[1]:.3f} [{second.accuracy_low:.3f}, {second.accuracy_high:.3f}]",
        f"Difference {found.difference:+.3f} [{found.difference_low:+.3f}, {found.difference_high:+.3f}] on "
        f"{found.num_problems} problems: {found.only_first} only the first answers, {found.only_second} only the second; "
        f"McNemar p = {found.mcnemar_p:.2g}.",
    ]
    low, high = found.average_difference_low, found.average_difference_high
    if found.average_difference is not None and low is not None and high is not None:
        said.append(f"Difference of avg@k {found.average_difference:+.3f} [{low:+.3f}, {high:+.3f}].")
    return said


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)
