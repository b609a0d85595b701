"""The System panel of a run: what was used, what is not measured, where the time goes."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from backend.schemas import Metric
from dashboard import system_panel

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def shown(run_id: str) -> tuple[AppTest, str]:
    app = AppTest.from_file(APP, default_timeout=60).run()
    app.query_params.update({"id": run_id, "panel": "System"})
    app = app.switch_page("views/run.py").run()
    assert not app.exception
    return app, "\n".join(str(one.value) for one in [*app.markdown, *app.caption])


@pytest.mark.usefixtures("scene")
def test_a_run_without_a_gpu_says_so_and_one_with_a_gpu_shows_it() -> None:
    _, plain = shown("r-running")
    assert "No GPU is measured" in plain
    assert "**GPU utilisation (%)**" not in plain
    app, of_gpu = shown("r-p8")
    assert "**GPU memory in use (GB)**" in of_gpu
    assert "of the whole GPU" in of_gpu
    app.session_state["behind-resources-r-p8"] = True
    table = next(one.value for one in app.run().dataframe if "rss_gb" in one.value)
    assert table["gpu_memory_gb"].tolist() == [pytest.approx(2**30 / 1e9)] * 6


@pytest.mark.usefixtures("scene")
def test_a_running_run_tells_its_heartbeat_worker_and_versions() -> None:
    app, words = shown("r-running")
    figures = {one.label: one.value for one in app.metric}
    assert figures["Heartbeat"].endswith("ago")
    assert (figures["Device"], figures["Memory, largest sample"]) == ("cpu", "400 MB")
    assert "laptop" in words
    assert "torch 2.13.0" in words.replace("\\", "")


@pytest.mark.usefixtures("scene")
def test_what_is_not_there_yet_is_said() -> None:
    assert "No worker has begun this run yet" in shown("r-queued")[1]
    assert "Nothing was sampled" in shown("r-failed")[1]


def test_the_seconds_of_a_step_are_split_without_a_rest_below_zero() -> None:
    known = {
        f"seconds.{part}": Metric(key=f"seconds.{part}", steps=[1, 2], values=values)
        for part, values in (("total", [1.0, 2.0]), ("rollout", [0.5, 1.5]), ("update", [0.25, 0.75]))
    }
    frame = system_panel.step_time_frame(known)
    rest = frame[frame["part"] == "everything else"]["seconds"].tolist()
    assert rest == [0.25, 0.0]
    assert system_panel.step_time_frame({}).empty
