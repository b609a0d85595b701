"""The documentation under Help."""

import re
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import doc_pages

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")
_CODE = re.compile(r"^```.*?^```[ ]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("scene")
def test_each_page_can_be_read_without_links_that_lead_nowhere() -> None:
    app = AppTest.from_file(APP, default_timeout=60).run().switch_page("views/help.py").run()
    (choice,) = app.selectbox
    assert choice.options == list(doc_pages.pages().values())
    for name, title in doc_pages.pages().items():
        choice.set_value(name)
        app.run()
        assert not app.exception, title
        (text,) = [one.value for one in app.markdown if "## " in one.value]
        assert not text.startswith("# ")
        prose = _CODE.sub("", text)
        assert [link for link in re.findall(r"\]\(([^)]*)\)", prose) if not link.startswith("https://")] == []
        assert re.findall(r"(?<!\\)\$", prose) == []  # it would begin a formula
