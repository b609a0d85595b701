"""A stand-in API in a process of its own (real HTTP, bodies made by backend.schemas), and Chromium."""

import functools
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from playwright.sync_api import Browser, Page

from tests.chromium import chromium

_HERE = Path(__file__).parent
_START_SECONDS = 60.0


def _loaded(name: str) -> ModuleType:
    """A module beside this one, by its path: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, _HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def records() -> ModuleType:
    return _loaded("fake_records")


@pytest.fixture(scope="session")
def traces() -> ModuleType:
    return _loaded("fake_traces")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with httpx.Client(timeout=2, trust_env=False) as client:
        while time.monotonic() < deadline:
            assert process.poll() is None, f"the process behind {url} ended with {process.returncode}"
            try:
                client.get(url)
                return
            except httpx.TransportError:
                time.sleep(0.1)
    raise AssertionError(f"nothing answered at {url} within {_START_SECONDS:.0f} s")


def stopped(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


@pytest.fixture(scope="session")
def api_root() -> Iterator[str]:
    """Address of the stand-in API; append a scene: /busy, /empty, /broken, /odd."""
    port = free_port()
    process = subprocess.Popen([sys.executable, str(_HERE / "fake_api.py"), str(port)])
    root = f"http://127.0.0.1:{port}"
    await_answer(f"{root}/busy/readyz", process)
    yield root
    stopped(process)


@pytest.fixture
def scene(api_root: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Points the dashboard at a scene of the stand-in API, named by an indirect parameter (busy by default)."""
    address = f"{api_root}/{getattr(request, 'param', 'busy')}"
    monkeypatch.setenv("INCIPIT_API_URL", address)
    monkeypatch.setenv("INCIPIT_LOCAL_TOKEN", "of-the-tests")  # as in a local stack: nobody signs in
    return address


@pytest.fixture(scope="session")
def lens_page_url() -> Iterator[str]:
    """A Streamlit server with nothing but the token lens: ?tokens=2048 sets the length, ?hostile=1 hostile texts."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", str(_HERE / "lens_page.py"), "--server.port", str(port)]
    options = ["--server.address", "127.0.0.1", "--server.headless", "true", "--server.fileWatcherType", "none",
               "--browser.gatherUsageStats", "false"]  # fmt: skip
    process = subprocess.Popen(command + options, env=os.environ | {"PYTHONPATH": str(_HERE)})
    url = f"http://127.0.0.1:{port}"
    await_answer(f"{url}/_stcore/health", process)
    yield url
    stopped(process)


@pytest.fixture(scope="session", autouse=True)
def packages_scanned_once() -> Iterator[None]:
    """AppTest reads the description of every installed package for each page that it opens, which takes up to a second."""
    from streamlit.components.v2 import manifest_scanner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            manifest_scanner, "scan_component_manifests", functools.cache(manifest_scanner.scan_component_manifests)
        )
        yield


@pytest.fixture(autouse=True)
def own_main_module() -> Iterator[None]:
    """AppTest leaves the app in the place of `__main__`, which every process that multiprocessing starts later would import."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    yield context.new_page()
    context.close()
