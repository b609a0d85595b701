"""A run that may end, or has ended, before its last step says so."""

import pytest
from streamlit.testing.v1 import AppTest


@pytest.mark.usefixtures("scene")
def test_the_reason_stands_under_the_runs_name() -> None:
    def page() -> None:
        from dashboard import cached, run_warnings

        run_warnings.ended_early(cached.api(), cached.run(cached.api(), "r-p8"))

    drawn = AppTest.from_function(page).run(timeout=30)
    assert not drawn.exception
    assert "Stopped early at step 120" in drawn.info[0].value


@pytest.mark.usefixtures("scene")
def test_an_estimate_is_the_most_that_a_run_takes() -> None:
    def page(is_most: bool) -> None:
        from dashboard import cached, estimate_card

        document = cached.presets(cached.api())[0].spec.model_dump(mode="json")
        estimate = cached.estimate(cached.api(), document).model_copy(update={"is_most": is_most})
        estimate_card.show(estimate, document, [])
        estimate_card.show_total([(estimate, document)] * 2, 2, [])

    for is_most, count in ((True, 3), (False, 0)):
        drawn = AppTest.from_function(page, args=(is_most,)).run(timeout=30)
        assert not drawn.exception
        assert sum("at most " in str(one.value) for one in drawn.markdown) == count
