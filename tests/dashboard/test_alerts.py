"""Alerts in the dashboard: a toast for each that is new in this session, a list, rules and webhooks."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from backend.alerts import AlertRules
from dashboard.api_client import ApiClient

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def opened(view: str) -> AppTest:
    return AppTest.from_file(APP, default_timeout=60).run().switch_page(f"views/{view}.py").run()


@pytest.mark.usefixtures("scene")
def test_what_is_raised_while_a_page_is_open_is_a_toast_once() -> None:
    app = opened("help")
    assert not app.toast, "alerts from before the session are in the list"
    app.session_state["alerts-seen"] = "a-1"
    app.run()
    assert [one.icon for one in app.toast] == [":material/warning:", ":material/error:"]
    assert "full-length accuracy is 0" in app.toast[0].value
    assert not app.run().toast


@pytest.mark.usefixtures("scene")
def test_the_list_names_runs_and_says_what_happened() -> None:
    app = opened("alerts")
    assert not app.exception
    told = "\n".join(str(one.value) for one in app.markdown)
    assert "memory ran out" in told
    assert "all steps are done" in told
    home = "\n".join(str(one.value) for one in opened("home").markdown)
    assert "memory ran out" in home, "Home shows the newest bad news"


@pytest.mark.usefixtures("scene")
def test_a_list_of_all_alerts_that_is_cut_says_so_and_shows_older_ones() -> None:
    app = opened("alerts")
    app.session_state["alerts-shown"] = "all"
    app.run()
    assert "The newest 2." in [one.value for one in app.caption]
    assert not [one.value for one in app.markdown if "all steps are done" in str(one.value)]
    app.button(key="older-alerts").click().run()
    assert not app.exception
    assert [one.value for one in app.markdown if "all steps are done" in str(one.value)]
    assert "older-alerts" not in [one.key for one in app.button]


@pytest.mark.usefixtures("scene")
def test_an_alert_can_be_dismissed_and_rules_saved() -> None:
    app = opened("alerts")
    app.number_input(key="alert-rules-accuracy_drop").set_value(0.05)
    app.button(key="save-rules").click().run()
    assert not app.exception
    assert app.success[0].value.startswith("The rules are saved")
    app.button(key="dismiss-a-1").click().run()
    assert not app.exception
    assert "dismiss-a-1" not in [one.key for one in app.button]


@pytest.mark.usefixtures("scene")
def test_a_rule_that_is_off_stays_off_and_another_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[AlertRules] = []
    monkeypatch.setattr(ApiClient, "alert_rules", lambda _: AlertRules(no_progress_minutes=None))
    monkeypatch.setattr(ApiClient, "set_alert_rules", lambda _, rules: saved.append(AlertRules.model_validate(rules)))
    app = opened("alerts")
    drop = app.number_input(key="alert-rules-accuracy_drop")
    assert drop.value == 0.1
    assert not drop.proto.HasField("default"), "a browser puts the default back into a box that is emptied"
    drop.set_value(None)
    app.button(key="save-rules").click().run()
    assert not app.exception
    assert saved == [AlertRules(no_progress_minutes=None, accuracy_drop=None)]


@pytest.mark.usefixtures("scene")
def test_a_webhooks_secret_is_shown_once() -> None:
    app = opened("alerts")
    (table,) = [one.value for one in app.dataframe if "attempts" in one.value]
    assert list(table["state"]) == ["pending", "sent"]
    app.text_input(key="webhook-name-0").set_value("mine")
    app.text_input(key="webhook-url-0").set_value("http://example.org")
    app.button[-1].click().run()
    assert "only https is taken" in app.error[0].value
    app.text_input(key="webhook-url-0").set_value("https://example.org/x")
    app.button[-1].click().run()
    assert not app.exception
    assert [one.value for one in app.code] == ["whsec_of_the_tests"]
    assert [app.text_input(key=f"webhook-{name}-1").value for name in ("name", "url")] == ["", ""]
    assert app.run().code, "it stays until the person has it"
    app.button(key="secret-kept").click().run()
    assert not app.code
    assert not app.run().code


@pytest.mark.usefixtures("scene")
def test_a_test_alert_is_sent_and_how_it_went_is_said() -> None:
    app = opened("alerts")
    app.button(key="test-w-1").click().run()
    assert not app.exception
    assert any("was received: the answer was 204" in one.value for one in app.success)
    (table,) = [one.value for one in app.dataframe if "attempts" in one.value]
    assert (table["alert"][0], table["run"][0]) == ("test", "–")


@pytest.mark.usefixtures("scene")
def test_a_changed_secret_is_shown_once() -> None:
    app = opened("alerts")
    app.button(key="rotate-w-1").click().run()
    assert not app.exception
    assert [one.value for one in app.code] == ["whsec_of_after_the_change"]
    assert "**Slack** from now on" in app.success[-1].value
    app.button(key="secret-kept").click().run()
    assert not app.code


def test_a_test_that_did_not_arrive_says_why_and_when_it_is_tried_again() -> None:
    def page(state: str) -> None:
        from datetime import UTC, datetime, timedelta

        from backend.alerts import Delivery
        from dashboard import webhook_panel

        now = datetime.now(UTC)
        webhook_panel._test_result(
            Delivery(
                alert_id="a", run_name=None, rule="test", time=now, state=state, attempts=2, status=500,  # type: ignore[arg-type]
                error="The answer was 500; 2xx counts as received.", next_at=now + timedelta(seconds=41), sent_at=None,
            )
        )  # fmt: skip

    said = [AppTest.from_function(page, args=(state,)).run().error[0].value for state in ("pending", "failed")]
    assert "The answer was 500; 2xx counts as received. It is tried again in 4" in said[0]
    assert "was given up after 2 attempts. The answer was 500" in said[1]


@pytest.mark.usefixtures("scene")
def test_a_viewer_sees_alerts_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_LOCAL_TOKEN", "of-a-viewer")
    app = opened("alerts")
    assert not app.exception
    assert all(one.disabled for one in app.button if one.key and one.key.startswith(("dismiss", "save")))
    assert "Operators see where alerts are sent." in [one.value for one in app.caption]
