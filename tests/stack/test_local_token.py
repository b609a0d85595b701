"""Each start of a local stack has a token of its own, which its API asks for and which only this user can read."""

import os
from pathlib import Path

import httpx
import psutil
import pytest

from incipit.stack import LocalStack, running_stack
from incipit.stack.local_token import local_token, new_local_token, remove_local_token
from incipit.stack.services import services


@pytest.mark.timeout(240)
def test_the_api_of_a_stack_answers_only_those_who_can_read_its_token(home: Path) -> None:
    """Slow: it starts the stack."""
    with LocalStack(home, with_dashboard=False) as stack:
        token = local_token(home)
        assert token is not None
        statuses = {
            given: httpx.get(f"{stack.api_url}/api/v1/runs", headers=headers, trust_env=False).status_code
            for given, headers in {
                "nothing": {},
                "another": {"Authorization": f"Bearer {token[:-1]}"},
                "the token": {"Authorization": f"Bearer {token}"},
            }.items()
        }
        assert statuses == {"nothing": 401, "another": 401, "the token": 200}
        for path in ("/livez", "/readyz", "/version"):
            assert httpx.get(stack.api_url + path, trust_env=False).status_code == 200
        with services(home, print) as (client, _, _):
            assert client.runs().items == []
        state = running_stack(home)
        assert state is not None
        holders = {one.name for one in state.services if token in _environment(one.pid)}
        assert holders == {"api"}
        assert all(token not in " ".join(psutil.Process(one.pid).cmdline()) for one in state.services)
    assert local_token(home) is None
    for log in (home / "logs").iterdir():
        assert token not in log.read_text(), log


def _environment(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")


@pytest.mark.attack(23)
def test_the_file_is_private_and_each_start_has_another_token(home: Path) -> None:
    assert local_token(home) is None
    first = new_local_token(home)
    assert len(first) == 43, "256 random bits"
    assert (home / "local_token").stat().st_mode & 0o777 == 0o600
    assert new_local_token(home) != first
    assert local_token(home) != first
    remove_local_token(home)
    remove_local_token(home)
    assert os.listdir(home) == []
