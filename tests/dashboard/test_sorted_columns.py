"""Columns that people sort by a click on their header hold what sorts by size: numbers and moments, not words."""

from datetime import timedelta
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from backend.comparison import compare
from dashboard.comparison_frames import arms_table, seeds_table
from dashboard.frames import runs_frame

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def test_runs_are_sorted_by_size_and_age(records: ModuleType) -> None:
    one = records.summary("r-p8")
    small = {"training_flops": 50.2e9, "training_seconds": 125.0, "created_at": one.created_at - timedelta(days=10)}
    large = {"training_flops": 1.52e12, "training_seconds": 18.0, "created_at": one.created_at}
    none = {"training_flops": None, "training_seconds": None}
    frame = runs_frame([one.model_copy(update=change) for change in (large, small, none)])
    assert frame["training"].tolist()[:2] == pytest.approx([1520, 50.2])
    assert frame["time"].tolist()[:2] == [18.0, 125.0]
    assert frame.loc[2, ["training", "time"]].isna().all()
    assert frame["created"].iloc[1] < frame["created"].iloc[0]
    assert pd.api.types.is_datetime64_any_dtype(frame["created"])


def test_arms_are_sorted_by_what_they_cost_and_saved(records: ModuleType) -> None:
    pairs = [(records.run(one), records.evaluations(one)) for one in ("r-full", "r-p8", "r-p16", "r-mix8")]
    table = arms_table(compare(pairs, 0.95))
    texts = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    assert texts == ["arm", "horizon", "accuracy", "avg@k", "tail, nats"]
    assert table.sort_values("saving")["arm"].iloc[0] == "full, 240 steps"
    assert pd.api.types.is_float_dtype(seeds_table(compare(pairs, 0.95, None))["training, GFLOP"])


@pytest.mark.usefixtures("scene")
def test_checkpoints_are_sorted_by_size_and_age() -> None:
    app = AppTest.from_file(APP, default_timeout=60).run().switch_page("views/checkpoints.py").run()
    (table,) = [one.value for one in app.dataframe if "manifest sha256" in one.value]
    assert pd.api.types.is_integer_dtype(table["size"])
    assert pd.api.types.is_datetime64_any_dtype(table["saved"])
