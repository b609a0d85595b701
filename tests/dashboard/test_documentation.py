"""The documentation under Help."""

import re
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import doc_pages

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")
_CODE = re.compile(r"`[^`\n]+`")


@pytest.mark.usefixtures("scene")
def test_each_page_can_be_read_without_links_that_lead_nowhere() -> None:
    app = AppTest.from_file(APP, default_timeout=60).run().switch_page("views/help.py").run()
    (choice,) = app.selectbox
    assert choice.options == list(doc_pages.pages().values())
    for name, title in doc_pages.pages().items():
        choice.set_value(name)
        app.run()
        assert not app.exception, title
        prose = _CODE.sub("", "\n".join(one.value for one in app.tabs[1].markdown))
        assert "## " in prose
        assert not prose.startswith("# ")
        assert "```" not in prose
        assert [link for link in re.findall(r"\]\(([^)]*)\)", prose) if not link.startswith("https://")] == []
        assert re.findall(r"(?<!\\)\$", prose) == []  # it would begin a formula


def test_the_form_quotes_the_study_of_the_prefixs_length() -> None:
    quoted = doc_pages.verdicts("prefix-vs-full")
    page = (doc_pages.FOLDER / "studies" / "prefix-vs-full.md").read_text()
    assert len(quoted) == page.count("\n* **")
    assert all(line.startswith(("**Confirmed:**", "**Refuted:**", "**Undecided:**")) for line in quoted)
    assert doc_pages.verdicts("never-trained") == []
    app = AppTest.from_file(str(Path(__file__).with_name("every_kind_page.py")), default_timeout=60)
    app.session_state["turn"] = 0
    app.run()
    assert not app.exception
    assert any(quoted[0] in one.value for one in app.markdown)
