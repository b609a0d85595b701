"""Uploads in New run: columns are guessed, bad rows are told, and a click puts an upload into the form."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import cached
from dashboard.prompt_preview import differing_tokens
from dashboard.prompt_uploads import changes_for
from tests.dashboard.conftest import await_answer, free_port, stopped

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def opened(view: str) -> AppTest:
    return AppTest.from_file(APP, default_timeout=60).run().switch_page(f"views/{view}.py").run()


def page(name: str) -> None:
    from io import BytesIO

    from dashboard import cached, prompt_uploads

    file: Any = BytesIO(b"question,result\n2+3=,5\n")
    file.name, file.file_id = name, name
    prompt_uploads.send(cached.api(), file)


@pytest.mark.usefixtures("scene")
def test_columns_are_guessed_and_the_file_is_stored() -> None:
    app = AppTest.from_function(page, args=("q.csv",)).run(timeout=30)
    assert not app.exception
    assert [one.value for one in app.selectbox] == ["question", None, None, None, None]
    app.selectbox[2].select("result")
    app.button[0].click().run()
    assert not app.exception
    assert app.success[0].value.startswith("2 prompts are stored")


@pytest.mark.usefixtures("scene")
def test_bad_rows_are_told_by_their_line() -> None:
    app = AppTest.from_function(page, args=("bad.csv",)).run(timeout=30)
    app.button[0].click().run()
    assert not app.exception
    assert "nothing was stored" in app.error[0].value
    assert 'column "question" is missing; found "q", "a"' in app.markdown[0].value


@pytest.mark.usefixtures("scene")
def test_a_click_puts_an_upload_into_the_form() -> None:
    app = opened("new_run")
    reference = f"upload:{'a' * 64}"
    for what, field in (
        ("training", "prompts.path"),
        ("evaluation", "evaluation.path"),
        ("the report", "evaluation.report_path"),
    ):
        app.button(key=f"prompts-use-{what}").click().run()
        assert not app.exception
        (path,) = [one for one in app.text_input if str(one.key).endswith(f"-{field}")]
        assert path.value == reference
    (system,) = [one for one in app.text_input if str(one.key).endswith("prompts.system_message")]
    assert system.value == "Be brief."
    assert app.button(key="prompts-delete").disabled


@pytest.mark.parametrize("scene", ["empty"], indirect=True)
@pytest.mark.usefixtures("scene")
def test_without_an_upload_the_place_says_so() -> None:
    assert "Nothing was uploaded yet." in [one.value for one in opened("new_run").caption]


def test_an_api_that_goes_away_is_said_once_and_ends_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("fake_api.py")), str(port)])
    try:
        monkeypatch.setenv("INCIPIT_API_URL", f"http://127.0.0.1:{port}/busy")
        monkeypatch.setenv("INCIPIT_LOCAL_TOKEN", "of-the-tests")
        await_answer(f"http://127.0.0.1:{port}/busy/readyz", process)
        app = opened("new_run")
        assert not app.error
    finally:
        stopped(process)
    for known in (cached.prompt_files, cached.workers, cached.alerts):  # what is kept for longer stays
        known.clear()
    app.run()
    assert not app.exception
    assert [one.value for one in app.error if "Cannot reach the API" in one.value]
    assert [one.key for one in app.button].count("try-again") == 1
    assert "start" not in [one.key for one in app.button]


def test_an_upload_has_the_usual_columns(records: Any) -> None:
    changes = changes_for(records.PROMPT_FILE, "evaluation")
    assert changes["evaluation.prompt_column"] == "prompt"
    assert "evaluation.template" not in changes
    assert changes_for(records.PROMPT_FILE, "training")["prompts.template"] == "chat"


def test_tokens_that_the_other_model_lacks_are_found() -> None:
    mine, theirs = differing_tokens(["<s>", "a", "b"], ["<t>", "<u>", "a", "b", "c"])
    assert mine == [True, False, False]
    assert theirs == [True, True, False, False, True]
