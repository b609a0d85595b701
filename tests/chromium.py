"""A real Chromium for tests that look at pages."""

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from tests.install_browser import find_browser

# No sandbox: tests run as root in containers. The others keep a fresh Chromium from calling home.
_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def chromium() -> Iterator[Browser]:
    """For one module at most: as long as it is open an event loop runs in this process, in which others cannot start theirs."""
    path = find_browser()
    assert path, "Chromium is missing; install it with: apt-get install --no-install-recommends chromium"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield opened
        opened.close()
