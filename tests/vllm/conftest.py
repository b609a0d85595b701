"""What the tests with a real vLLM share."""

from pathlib import Path

import pytest

from tests.engine.models import write_random_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair with heads as wide as vLLM's kernels for CPUs want them."""
    folder = tmp_path_factory.mktemp("models")
    write_random_model(folder / "student", 1, hidden=128)
    write_random_model(folder / "teacher", 2, hidden=128)
    return folder
