"""What is kept of a served teacher belongs to it alone, and it is known again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.teacher_backend_spec import VllmTeacher
from engine.teacher_identity import teacher_identity
from engine.teacher_servers import TeacherServers
from tests.engine.models import tiny_model
from tests.engine.stand_in_vllm import StandInVllm

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.xdist_group("served-teacher")]


@pytest.fixture
def server() -> Iterator[StandInVllm]:
    one = StandInVllm("builtin:tiny/models/teacher")
    yield one
    one.stop()


def name_of(server: StandInVllm) -> str:
    """What a new run calls the teacher behind the server."""
    teacher = tiny_model("teacher")
    spec = VllmTeacher.model_validate(
        {"kind": "vllm_servers", "servers": [{"address": server.address}], "patience_seconds": 1, "top_k": 4}
    )
    servers = TeacherServers(spec, teacher.tokenizer, teacher.head.vocabulary, 200)
    servers.check(teacher.tokenizer("k3 k0 c3 c2 c3 4 N13 |")["input_ids"])
    return servers.name


def test_a_server_that_answers_a_bit_differently_each_time_keeps_its_name(server: StandInVllm) -> None:
    first = name_of(server)
    server.faults.add("noisy")
    assert {name_of(server) for _ in range(4)} == {first}


def test_a_close_teacher_with_the_same_likeliest_tokens_has_another_name(server: StandInVllm) -> None:
    first = name_of(server)
    server.faults.add("sharper")
    assert name_of(server) != first
    server.faults.clear()
    assert name_of(server) == first


def test_a_teacher_that_is_served_under_another_name_or_path_has_another_name(server: StandInVllm) -> None:
    names = {name_of(server)}
    server.root = "/models/student-of-today"
    names.add(name_of(server))
    server.name = "today"
    names.add(name_of(server))
    assert len(names) == 3


def test_values_within_the_tolerance_are_one_teacher_wherever_they_lie(home: Path) -> None:
    first = teacher_identity("a", [-1.0, -2.0])
    assert teacher_identity("a", [-1.09, -2.0]) == first
    second = teacher_identity("a", [-1.2, -2.0])
    assert second != first
    assert teacher_identity("a", [-1.2, -2.01]) == second
    assert teacher_identity("b", [-1.0, -2.0]) != first
    for path in (home / "cache" / "teachers").glob("*/*.json"):
        path.write_text(path.read_text()[:5])  # as a machine that lost power leaves it
    assert teacher_identity("a", [-1.0, -2.0]) == first
