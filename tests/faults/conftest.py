"""One installation for most faults, and the record of every fault, which becomes docs/reliability.md."""

import time
from collections.abc import Generator, Iterator

import pytest

from tests import databases
from tests.faults.installation import Installation
from tests.faults.reliability import NUM_FAULTS, Record, commit_now, write_faults
from tests.faults.trial import Trial

_RECORDS = pytest.StashKey[dict[int, Record]]()
_LEFT_OUT = pytest.StashKey[bool]()
# Now and not at the end, when files may have changed that were not tested.
_BEGAN, _COMMIT = time.monotonic(), commit_now()


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Trial:
    """The record of the test's fault, which its marker names: number, name and how it is injected."""
    marker = request.node.get_closest_marker("fault")
    number, name, how = marker.args
    records = request.config.stash.setdefault(_RECORDS, {})
    return Trial(records.setdefault(number, Record(number, name, how)))


@pytest.fixture(scope="session")
def shared_installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    home = tmp_path_factory.mktemp("faults") / "home"
    with Installation(home, databases.sqlite_copy(home)) as installation:
        yield installation


@pytest.fixture
def installation(shared_installation: Installation) -> Installation:
    """A running installation on SQLite with two slots and nothing to do."""
    shared_installation.mend()
    shared_installation.clear()
    return shared_installation


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    marker = item.get_closest_marker("fault")
    if marker is not None and (report.when == "call" or report.outcome == "failed"):
        records = item.config.stash.setdefault(_RECORDS, {})
        records.setdefault(marker.args[0], Record(*marker.args)).outcomes.append(report.outcome)
    return report


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("fault") is not None:
            item.config.stash[_LEFT_OUT] = True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    records = config.stash.get(_RECORDS, {})
    if not records:
        return
    terminalreporter.section("faults")
    for number in sorted(records):
        terminalreporter.write_line(records[number].row)
    is_whole = set(records) == set(range(1, NUM_FAULTS + 1)) and not config.stash.get(_LEFT_OUT, False)
    if is_whole:
        write_faults(list(records.values()), time.monotonic() - _BEGAN, _COMMIT)
    words = "docs/reliability.md is written." if is_whole else "Not all faults ran: docs/reliability.md stays as it is."
    terminalreporter.write_line(words)
