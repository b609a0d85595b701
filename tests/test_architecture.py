"""What every change must keep: light imports, small files, nothing unsafe, our own packages under our own names."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engine", "backend", "worker", "dashboard", "incipit", "experiments", "benchmarks")
MAX_LINES = 300
MAX_TEST_LINES = 400
HEAVY = ("torch", "transformers", "vllm")

# Names whose use would open a door; pickle and its kin run code when a file is read.
FORBIDDEN_IMPORTS = {"pickle", "joblib", "dill", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.unsafe_load",
    "numpy.load",
    "os.system",
    "eval",
    "exec",
}
FORBIDDEN_KEYWORDS = {"trust_remote_code", "unsafe_allow_html", "allow_pickle", "shell"}


def files_of(*folders: str) -> list[Path]:
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in tracked.stdout.split() if name.endswith((".py", ".js")) and (ROOT / name).exists()]


def test_light_modules_import_without_torch(tmp_path: Path) -> None:
    modules = [
        "engine.spec",
        "engine.events",
        "engine.flops",
        "engine.token_trace",
        "engine.locations",
        "incipit.cli",
    ]
    for folder in ("backend", "dashboard", "worker"):
        for path in files_of(folder):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            # A view runs when it is imported, and migrations run inside Alembic.
            if path.suffix == ".py" and not name.startswith(
                ("dashboard.views", "dashboard.app", "backend.migrations", "backend.__main__", "worker.__main__")
            ):
                modules.append(name.removesuffix(".__init__"))
    code = (
        f"import sys, importlib\nsys.modules.update(dict.fromkeys({HEAVY!r}))\n"
        f"for name in {modules!r}: importlib.import_module(name)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        env=os.environ | {"INCIPIT_HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1500:]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads resident memory from /proc")
def test_what_a_spec_costs_every_process_is_small() -> None:
    code = (
        "import psutil, pydantic, pydantic_core, typing, enum\n"
        "rss = psutil.Process().memory_info\n"
        "before = rss().rss\nimport engine.spec, engine.events\nprint(rss().rss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    # 17 MB; one counted repeat of a Unicode class in a pattern, such as \\w{1,200}, adds 15.
    assert int(done.stdout) < 28e6


def test_no_file_is_longer_than_its_limit() -> None:
    too_long = {
        str(path.relative_to(ROOT)): lines
        for folders, limit in ((PACKAGES, MAX_LINES), (("tests",), MAX_TEST_LINES))
        for path in files_of(*folders)
        if (lines := len(path.read_text().splitlines())) > limit
    }
    assert too_long == {}


@pytest.mark.parametrize("package", PACKAGES[:5])
def test_our_packages_are_ours(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {package}; print({package}.__file__)"],
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(ROOT)


@pytest.mark.attack(4, 5, 6, 20)
def test_nothing_unsafe_is_used() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {what}"
        for path in files_of(*PACKAGES)
        if path.suffix == ".py"
        for line, what in unsafe_uses(ast.parse(path.read_text()))
    ]
    assert found == []


def test_the_check_for_unsafe_code_finds_it() -> None:
    source = "import pickle\nfrom joblib import x\ntorch.load(f)\nf(trust_remote_code=True)\neval(s)\nf(shell=False)"
    assert [line for line, _ in unsafe_uses(ast.parse(source))] == [1, 2, 3, 4, 5]


def unsafe_uses(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and name of every forbidden import, call and keyword that is not plainly False."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [
                (node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_IMPORTS
            ]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_IMPORTS:
            found.append((node.lineno, str(node.module)))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS:
                found.append((node.lineno, name))
            for keyword in node.keywords:
                is_off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in FORBIDDEN_KEYWORDS and not is_off:
                    found.append((node.lineno, str(keyword.arg)))
    return sorted(found)


@pytest.mark.xdist_group("together")
def test_tests_of_a_group_share_one_process(request: pytest.FixtureRequest) -> None:
    """A pair of pytest and pytest-xdist that do not fit would spread them silently, and each process make their fixtures anew."""
    if "PYTEST_XDIST_WORKER" in os.environ and request.config.getoption("loadgroup"):
        assert request.node.nodeid.endswith("@together")


def test_no_path_of_a_machine_stands_in_a_tracked_file() -> None:
    done = subprocess.run(
        ["git", "grep", "-nIE", r"(^|[\"' =(])/(home|Users|root|work)/[a-z]", "--", ":!tests", ":!LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
