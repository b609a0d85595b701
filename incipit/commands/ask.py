"""`incipit ask`: a prompt that several models answer and the teacher scores, on this machine and without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from engine.playground_spec import PlaygroundResult, PlaygroundSpec
from incipit.engine_progress import with_progress


def ask(
    spec: Annotated[Path, typer.Argument(help="The spec of a run: its teacher and base student.", show_default=False)],
    prompt: Annotated[str, typer.Argument(help="What is asked.", show_default=False)],
    of: Annotated[
        list[str], typer.Option("--of", help="Who answers: base, teacher, or the folder of a checkpoint; up to four.")
    ],
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in each one's chat template.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Where an answer is cut.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the most likely token.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Sample from the likely tokens only; 1 is all.")] = 1.0,
    min_p: Annotated[
        float, typer.Option("--min-p", help="Sample from tokens at least this many times as likely as the likeliest.")
    ] = 0.0,
    samples: Annotated[int, typer.Option("--samples", help="Answers of each.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="All draw with the same random numbers.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    traces: Annotated[
        Path | None, typer.Option("--traces", help="Keep what both models thought of each token: a new Parquet file.")
    ] = None,
) -> None:
    """Ask several models the same, with the same random numbers, and have the teacher score what they say.

    Example: incipit ask experiments/tiny-prefix-8.json "k3 k0 c3 c2 c3 4 N13 |" --of base --of teacher
    """
    from pydantic import ValidationError

    from engine.__main__ import read_spec
    from engine.exit_codes import OF_FAILURE
    from engine.findings import findings_of

    run = read_spec(spec)
    if run is None:
        raise typer.Exit(OF_FAILURE["bad_spec"])
    document: dict[str, Any] = {
        "run": run.model_dump(mode="json"),
        "prompt": prompt,
        "template": "chat" if chat else "plain",
        "system_message": run.prompts.system_message if chat else None,
        "enable_thinking": run.prompts.enable_thinking if chat else None,
        "max_completion_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "min_p": min_p,
        "num_samples": samples,
        "seed": seed,
        "speakers": [_speaker(one) for one in of],
    }
    try:
        asked = PlaygroundSpec.model_validate(document)
    except ValidationError as error:
        for finding in findings_of(error, document):
            typer.echo(finding.message, err=True)
        raise typer.Exit(OF_FAILURE["bad_spec"]) from None
    result = _answer(asked, traces)
    if json:
        typer.echo(result.model_dump_json(indent=1))
    else:
        print_answers(asked, result, Console())


def _speaker(name: str) -> dict[str, Any]:
    if name in ("base", "teacher"):
        return {"kind": name}
    from engine.manifest import MANIFEST, Manifest

    folder = Path(name).expanduser().resolve()
    try:
        step = Manifest.model_validate_json((folder / MANIFEST).read_bytes()).step
    except (OSError, ValueError):
        message = f"--of is {name!r}, which is neither base nor teacher nor a checkpoint's folder (with {MANIFEST}); correct it."
        raise typer.BadParameter(message) from None
    return {"kind": "checkpoint", "folder": str(folder), "run_name": folder.name, "step": step}


def _answer(asked: PlaygroundSpec, traces: Path | None) -> PlaygroundResult:
    import tempfile

    from engine.playground import ask as answers

    with tempfile.TemporaryDirectory(prefix="incipit-ask-") as folder:
        path = Path(folder) / "answers.parquet" if traces is None else traces
        return with_progress(asked.run.name, lambda report: answers(asked, report, path))


def print_answers(asked: PlaygroundSpec, result: PlaygroundResult, console: Console) -> None:
    """Each answer below its author, with what the teacher says of it."""
    for answer in result.answers:
        label = asked.speakers[answer.speaker].label
        number = f", answer {answer.sample + 1}" if asked.num_samples > 1 else ""
        said = f"not scored: {answer.unscored}" if answer.unscored else _score(answer.mean_reverse_kl, label, result)
        ended = "ended by itself" if answer.finish_reason == "eos" else "cut"
        console.print(Rule(Text(f"{_printable(label)}{number}"), align="left"))
        console.print(f"{answer.num_tokens} tokens, {ended}; {said}", markup=False, highlight=False, style="dim")
        console.print(_printable(answer.text), markup=False, highlight=False, emoji=False)
    for note in result.notes:
        console.print(f"• {note}", markup=False, highlight=False)


def _score(mean: float | None, label: str, result: PlaygroundResult) -> str:
    assert mean is not None, "what is scored has a mean"
    figure = f"mean reverse KL {mean:.3f} nats per token"
    return f"{figure}, read by {result.reader}" if label == "teacher" else figure


def _printable(text: str) -> str:
    """Text of models and files without what moves a terminal's cursor or changes its colours."""
    return "".join(one if one.isprintable() or one in "\n\t" else "�" for one in text)
