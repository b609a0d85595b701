"""The examples of docs/api.md, run as they stand, against real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from incipit.stack import LocalStack
from tests import databases
from tests.access import TOKEN
from tests.api_process import ApiProcess
from tests.documentation.blocks import DOCS, blocks

PAGE = DOCS / "api.md"
WITHOUT_A_WORKER = ("A key", "Submit an experiment", "When a request is refused")
_SECONDS = 240


def test_key_submission_and_refusal_are_as_the_page_says(home: Path, tmp_path: Path) -> None:
    url = databases.sqlite_copy(home)
    api = ApiProcess(url, INCIPIT_LOCAL_TOKEN=TOKEN)
    api.start()
    try:
        said = run_examples(tmp_path, api.url, INCIPIT_DATABASE_URL=url, only=WITHOUT_A_WORKER)
    finally:
        api.kill()
    assert '"role":"operator"' in said
    assert said.count(" queued ") == 2  # the second request was recognised: one experiment of two runs
    assert "num_steps - num_steps is 0" in said


@pytest.mark.full
def test_all_examples_are_as_the_page_says(home: Path, tmp_path: Path) -> None:
    with LocalStack(home, with_dashboard=False) as stack:
        said = run_examples(tmp_path, stack.api_url)
    assert said.count("succeeded 10 of 10 steps") == 2
    for folder in ("from-curl", "from-command", "from-python"):
        assert (tmp_path / folder / "model.safetensors").stat().st_size > 0, said
    assert "k0 k2 c1 c2 c5 7 N15 |" in said


def run_examples(folder: Path, api_url: str, only: tuple[str, ...] = (), **environment: str) -> str:
    """All that the page's blocks print: those of the shell, then those of Python, each in one process."""
    chosen = [block for block in blocks(PAGE) if not only or block.section in only]
    assert {block.language for block in chosen} == {"bash", "python"}
    scripts = folder / "page.sh", folder / "page.py"
    for language, script in zip(("bash", "python"), scripts, strict=True):
        script.write_text("\n".join(block.code for block in chosen if block.language == language))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f". {scripts[0]}; python {scripts[1]}"],
        cwd=folder,
        env=os.environ | {"PATH": path, "INCIPIT_API_URL": api_url, "no_proxy": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
