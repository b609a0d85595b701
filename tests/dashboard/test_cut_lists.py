"""Lists that a page cuts: what it leaves out, and that it says so."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pytest
from streamlit.testing.v1 import AppTest

from backend.schemas import Checkpoint, RunSummary
from dashboard import cached
from dashboard.api_client import ApiClient
from dashboard.compared_runs import first_compared

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def opened(view: str, **query: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=60).run()
    app.query_params.update(query)
    return app.switch_page(f"views/{view}.py").run()


def captions(app: AppTest) -> str:
    return "\n".join(str(one.value) for one in app.caption)


@pytest.fixture(autouse=True)
def nothing_cached() -> Iterator[None]:
    """What these tests answer in the API's place is no answer for others."""
    yield
    cached.checkpoints.clear()
    cached.experiment_runs.clear()


@pytest.fixture
def many(records: ModuleType) -> list[RunSummary]:
    """Five variants with three seeds each, the one at full length last."""
    one = records.summary("r-p8")
    return [
        one.model_copy(
            update={"id": f"{prefix}-{seed}", "name": prefix, "variant": prefix, "prefix": prefix, "seed": seed}
        )
        for prefix in ("4", "8", "16", "32", "full")
        for seed in range(3)
    ]


def test_whole_variants_are_shown_and_the_full_length_is_among_them(many: list[RunSummary]) -> None:
    shown = first_compared(many, 10)
    assert shown == [f"{prefix}-{seed}" for prefix in ("4", "8", "full") for seed in range(3)]
    assert first_compared(many, 2) == ["full-0", "full-1"]
    assert first_compared(many, 15) == [one.id for one in many]
    assert first_compared([], 10) == []


@pytest.mark.usefixtures("scene")
def test_compare_says_how_many_runs_of_an_experiment_it_shows(
    many: list[RunSummary], records: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = records.run("r-full")
    monkeypatch.setattr(ApiClient, "experiment_runs", lambda *_: many)
    monkeypatch.setattr(ApiClient, "run", lambda _, id: full.model_copy(update={"id": id}))
    monkeypatch.setattr(ApiClient, "evaluations", lambda *_: records.evaluations("r-full"))
    monkeypatch.setattr(ApiClient, "positions", lambda *_: [])
    cached.experiment_runs.clear()
    app = opened("compare", experiment="e-demo")
    assert not app.exception
    assert len(next(one for one in app.multiselect if one.label == "Runs").value) == 9
    assert "9 of 15 runs are shown, at most 10 at once" in captions(app)
    linked = opened("compare", runs=",".join(one.id for one in many[:12]))
    assert not linked.exception
    assert "10 of 12 runs are shown, at most 10 at once" in captions(linked)


@pytest.mark.usefixtures("scene")
def test_a_comparison_of_all_runs_says_nothing_of_others() -> None:
    assert "at most 10" not in captions(opened("compare", experiment="e-demo"))


@pytest.mark.usefixtures("scene")
@pytest.mark.parametrize(("number", "is_told"), [(199, False), (200, True)])
def test_checkpoints_says_that_older_ones_are_not_listed(
    number: int, is_told: bool, records: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [
        Checkpoint(
            id=f"c-{at}", run_id="r-p8", run_name="prefix 8", experiment_name="tiny plan", step=at, num_bytes=1, files=[],
            manifest_sha256="9f" * 32, accuracy=0.5, is_best=False, pinned=False, created_at=records.NOW - timedelta(minutes=at),
        )
        for at in range(number)
    ]  # fmt: skip
    monkeypatch.setattr(ApiClient, "checkpoints", lambda *_, **__: made)
    cached.checkpoints.clear()
    app = opened("checkpoints")
    assert not app.exception
    assert ("The newest 200 checkpoints are listed" in captions(app)) is is_told
