"""`python -m engine train | check | analyze | ask | export | schema`: the engine without anything around it."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from engine.findings import findings_of
from engine.frozen import Frozen
from engine.spec import RunSpec

D = TypeVar("D", bound=Frozen)


def main() -> int:
    """Run the command of argv; the exit status says how it ended (engine/exit_codes.py)."""
    arguments = _parser().parse_args()
    if arguments.command == "schema":
        json.dump(RunSpec.model_json_schema(), sys.stdout, indent=1)
        return 0
    if arguments.command == "analyze":
        return _analyze(arguments.spec)
    if arguments.command == "ask":
        return _ask(arguments.spec, arguments.traces)
    if arguments.command == "export":
        return _export(arguments.spec, arguments.out)
    spec = read_spec(arguments.spec)
    if spec is None:
        return 11
    if arguments.command == "check":
        from engine.check import check

        print(check(spec).model_dump_json())
        return 0
    from engine.attempt import run_attempt

    return run_attempt(
        spec, arguments.out, attempt=arguments.attempt, resume=arguments.resume, supervised=arguments.supervised
    )


def _analyze(path: Path) -> int:
    from engine.analysis_spec import AnalysisSpec
    from engine.analyze import analyze

    return _answered(read_document(path, AnalysisSpec), analyze)


def _ask(path: Path, traces: Path) -> int:
    from engine.playground import ask
    from engine.playground_spec import PlaygroundSpec

    return _answered(read_document(path, PlaygroundSpec), lambda asked, report: ask(asked, report, traces))


def _export(path: Path, out: Path) -> int:
    from engine.export import export
    from engine.export_spec import ExportSpec

    return _answered(read_document(path, ExportSpec), lambda asked, report: export(asked, report, out))


def _answered(asked: D | None, answer: Callable[[D, Callable[[float, str], None]], Frozen]) -> int:
    """Print progress and then the result, one JSON object a line: {"progress": …}, {"result": …} or {"findings": […]}."""
    from engine.analysis_spec import AnalysisProgress
    from engine.errors import RunError
    from engine.exit_codes import OF_FAILURE
    from engine.findings import Finding

    if asked is None:
        return OF_FAILURE["bad_spec"]

    def report(done: float, detail: str) -> None:
        line = AnalysisProgress(done=done, detail=detail).model_dump(mode="json")
        print(json.dumps({"progress": line}), flush=True)

    try:
        result = answer(asked, report)
    except RunError as error:
        findings = error.findings or [Finding(field="", message=error.message)]
        print(json.dumps({"findings": [finding.model_dump(mode="json") for finding in findings]}), flush=True)
        return OF_FAILURE[error.failure]
    print(json.dumps({"result": result.model_dump(mode="json")}), flush=True)
    return 0


def read_spec(path: Path) -> RunSpec | None:
    """The spec in a JSON file; None after its findings were printed, one sentence a line."""
    return read_document(path, RunSpec)


def read_document(path: Path, model: type[D]) -> D | None:
    """A JSON file as a record; None after its findings were printed, one sentence a line."""
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        print(f"The spec {path} cannot be read ({error.strerror}); correct the path.", file=sys.stderr)
        return None
    except ValueError as error:
        print(f"The spec {path} is not JSON ({error}); correct it.", file=sys.stderr)
        return None
    try:
        return model.model_validate(document)
    except ValidationError as error:
        for finding in findings_of(error, document):
            print(finding.message, file=sys.stderr)
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train the student of a spec")
    train.add_argument("--spec", type=Path, required=True)
    train.add_argument("--out", type=Path, required=True, help="run folder")
    train.add_argument(
        "--attempt", type=int, help="fence of this attempt: it writes below attempts/N; default the next free number"
    )
    train.add_argument("--resume", help="checkpoint to go on from, relative to the run folder; `newest` finds it")
    train.add_argument("--supervised", action="store_true", help="read commands from stdin and end with it")
    check = commands.add_parser("check", help="open models and data of a spec and print findings as JSON")
    check.add_argument("--spec", type=Path, required=True)
    analyze = commands.add_parser("analyze", help="answer a question about a pair of models without training")
    analyze.add_argument("--spec", type=Path, required=True, help="an AnalysisSpec as JSON")
    ask = commands.add_parser("ask", help="have several models answer a prompt and the teacher score what they say")
    ask.add_argument("--spec", type=Path, required=True, help="a PlaygroundSpec as JSON")
    ask.add_argument("--traces", type=Path, required=True, help="new Parquet file for the tokens of the answers")
    export = commands.add_parser("export", help="make a folder, a GGUF file or a hub's repository of a checkpoint")
    export.add_argument("--spec", type=Path, required=True, help="an ExportSpec as JSON")
    export.add_argument("--out", type=Path, required=True, help="new folder for what is made")
    commands.add_parser("schema", help="print the JSON schema of a spec")
    return parser


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
