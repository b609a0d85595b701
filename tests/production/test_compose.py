"""docker-compose.yml and Dockerfile, judged without docker: the specification's schema, hadolint, and rules of our own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from backend.settings import Settings
from backend.store_settings import StoreSettings
from incipit.commands.rollout_server import server_arguments
from tests.production.compose_file import ROOT, ComposeService, services
from worker.settings import WorkerSettings
from worker.slots import slots_of_this_machine

_BIN = Path(sys.executable).parent
_ALL = services({"cpu", "gpu", "vllm"})
_OURS = ("migrate", "api", "worker-control", "worker-cpu", "worker-gpu", "dashboard")
_DOCKERFILE = (ROOT / "Dockerfile").read_text()
# An instruction with the lines that continue it, comments left out.
_INSTRUCTIONS = re.findall(
    r"^([A-Z]+) (.+)$", re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", _DOCKERFILE, flags=re.M)), flags=re.M
)


def _said_by(*command: str) -> str:
    done = subprocess.run([_BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    return f"{done.stdout}{done.stderr}" if done.returncode else ""


@pytest.mark.parametrize(
    "name", ["docker-compose.yml", "docker-compose.oidc.yml", "docker-compose.s3.yml", "docker-compose.hub.yml"]
)
def test_the_compose_files_are_such_by_the_specification_s_schema(name: str) -> None:
    assert _said_by("check-jsonschema", "--builtin-schema", "vendor.compose-spec", name) == ""


def test_the_schema_finds_a_mistake(tmp_path: Path) -> None:
    wrong = (ROOT / "docker-compose.yml").read_text().replace("stop_grace_period: 180s", "stop_grace: 180s")
    (tmp_path / "wrong.yml").write_text(wrong)
    said = _said_by("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(tmp_path / "wrong.yml"))
    assert "stop_grace" in said


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert _said_by("hadolint", "--no-color", "Dockerfile") == ""


def test_profiles_choose_the_workers_and_the_rest_is_always_there() -> None:
    always = {"postgres", "redis", "migrate", "api", "worker-control", "dashboard"}
    assert set(services()) == always
    assert set(services({"cpu"})) == {*always, "worker-cpu"}
    assert set(services({"gpu"})) == {*always, "worker-gpu"}
    assert set(_ALL) == {*always, "worker-cpu", "worker-gpu", "vllm"}


def test_the_workers_differ_only_in_their_image_and_device() -> None:
    kept = [
        {
            key: value
            for key, value in _ALL[name].document.items()
            if key not in ("image", "build", "deploy", "profiles", "environment")
        }
        for name in ("worker-cpu", "worker-gpu")
    ]
    assert kept[0] == kept[1]
    assert _ALL["worker-gpu"].environment == _ALL["worker-cpu"].environment | {"INCIPIT_WORKER_GPUS": ""}


@pytest.mark.parametrize(("variables", "gpus"), [({}, ["0", "1", "2"]), ({"INCIPIT_WORKER_GPUS": "1,2"}, ["1", "2"])])
def test_a_worker_beside_a_rollout_server_can_leave_it_its_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], gpus: list[str]
) -> None:
    driver = tmp_path / "nvidia-smi"  # of a machine with three GPUs
    driver.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment = services({"gpu"}, variables)["worker-gpu"].environment
    monkeypatch.setenv("INCIPIT_WORKER_GPUS", environment["INCIPIT_WORKER_GPUS"])
    slots = slots_of_this_machine(None, chosen_gpus=WorkerSettings().worker_gpus)
    assert [slot.environment()["CUDA_VISIBLE_DEVICES"] for slot in slots] == gpus


@pytest.mark.parametrize("service", [one for one in _ALL.values() if one.name != "migrate"], ids=lambda one: one.name)
def test_every_service_that_stays_is_checked_restarted_and_given_time_to_end(service: ComposeService) -> None:
    check = service.document["healthcheck"]
    assert service.health_command
    assert {"interval", "timeout", "start_period"} <= check.keys()
    assert service.document["restart"] == "unless-stopped"
    assert "stop_grace_period" in service.document
    assert service.document["logging"]["options"].keys() == {"max-size", "max-file"}


def test_a_worker_s_grace_period_is_what_the_worker_counts_on() -> None:
    assert {_ALL[name].grace_seconds for name in ("worker-cpu", "worker-gpu")} == {WorkerSettings().grace_seconds}


@pytest.mark.parametrize("name", _OURS)
def test_our_containers_can_write_only_their_volume_and_have_no_privileges(name: str) -> None:
    document = _ALL[name].document
    assert document["read_only"]
    assert document["cap_drop"] == ["ALL"]
    assert document["security_opt"] == ["no-new-privileges:true"]
    assert document.get("volumes", []) == ([] if name == "dashboard" else ["data:/data"])


def test_only_api_and_dashboard_publish_a_port_and_only_on_this_machine() -> None:
    published = {name: one.document["ports"] for name, one in _ALL.items() if "ports" in one.document}
    assert published == {"api": ["127.0.0.1:8000:8000"], "dashboard": ["127.0.0.1:8501:8501"]}
    inner = {name for name, one in _ALL.items() if one.document["networks"] == ["services"]}
    assert inner == {"postgres", "redis", "migrate"}, "nothing outside can be reached from them, nor reach them"
    assert _ALL["vllm"].document["networks"] == ["rollouts"]


def test_no_secret_is_in_an_environment() -> None:
    for service in _ALL.values():
        for name, value in service.environment.items():
            assert not re.search(r"PASSWORD|SECRET|TOKEN|KEY", name) or value.startswith("/run/secrets/"), name
            assert not re.search(r"://[^/\s]*:[^/\s]*@", value), name


def test_every_image_is_pinned() -> None:
    for service in _ALL.values():
        if "build" not in service.document:
            assert re.search(r":v?\d+\.\d+\.\d+[\w.-]*$|:\d+\.\d+-\w+$", service.document["image"]), service.name
    for name, rest in _INSTRUCTIONS:
        if name == "FROM":
            base = rest.split()[0]
            assert base == "${PYTHON_IMAGE}" or base in re.findall(r" AS (\S+)", _DOCKERFILE), rest
    assert ("ARG", "PYTHON_IMAGE=python:3.11.13-slim-trixie") in _INSTRUCTIONS


def test_the_image_that_backs_up_has_the_programs_of_the_server_s_version() -> None:
    server = re.match(r"postgres:(\d+)\.", _ALL["postgres"].document["image"])
    assert server is not None
    assert f"'postgresql-client-{server[1]}={server[1]}.*'" in _DOCKERFILE


def test_what_is_installed_is_pinned_and_torch_only_where_it_is_needed() -> None:
    installs = [rest for name, rest in _INSTRUCTIONS if name == "RUN" and "uv pip install" in rest]
    assert all("--constraint constraints.txt" in one for one in installs)
    assert [re.findall(r"'\.\[(.+)\]'", one)[0] for one in installs] == ["api,s3", "engine,worker,s3", "dashboard"]
    uv = re.search(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert uv is not None
    assert f"uv=={uv[1]}" in _DOCKERFILE


def test_the_dockerfile_copies_what_runs_as_a_user_who_is_not_root() -> None:
    names = [name for name, _ in _INSTRUCTIONS]
    assert "ADD" not in names
    assert not re.search(r"(?:ARG|ENV) .*(?:PASSWORD|SECRET|TOKEN|KEY)", _DOCKERFILE)
    copied = {rest.split()[0] for name, rest in _INSTRUCTIONS if name == "COPY" and "--from" not in rest}
    assert copied <= {"pyproject.toml", "engine", "backend", "worker", "dashboard", "incipit", "experiments", "docs"}
    stages = re.split(r"^FROM ", _DOCKERFILE, flags=re.M)[1:]
    for service in (one for one in _ALL.values() if "build" in one.document):
        (stage,) = [one for one in stages if one.splitlines()[0].endswith(f" AS {service.document['build']['target']}")]
        assert "USER 1000:1000" in stage
        assert "HEALTHCHECK" in stage
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == copied | {
        "constraints.txt",
        "README.md",
        "LICENSE",
    }


def test_the_rollout_server_is_what_our_own_command_starts() -> None:
    vllm = _ALL["vllm"]
    expected = server_arguments("/data/models/student", host="0.0.0.0", port=8000, max_tokens=None, dtype="auto")
    assert vllm.command == ["python3", *expected]
    assert vllm.environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert f"http://vllm:{8000}" in _ALL["worker-gpu"].environment["INCIPIT_ROLLOUT_SERVERS"]


def test_the_services_that_touch_checkpoints_get_the_bucket_and_its_keys(tmp_path: Path, home: Path) -> None:
    document = yaml.safe_load((ROOT / "docker-compose.s3.yml").read_text())
    assert document["services"].keys() == {"api", "worker-control", "worker-cpu", "worker-gpu"}
    for service in document["services"].values():
        assert service["secrets"] == ["store_access_key", "store_secret_key"] == list(document["secrets"])
        # Compose asks for the variables that have no default.
        given = {name: re.sub(r"\$\{.*\}", "", value) for name, value in service["environment"].items()}
        values = {name.removeprefix("INCIPIT_STORE__").lower(): value for name, value in given.items()}
        for name in ("access_key_file", "secret_key_file"):
            assert values[name].startswith("/run/secrets/")
            values[name] = str(tmp_path / Path(values[name]).name)
            Path(values[name]).write_text("key")
        assert Settings(home=home, store=StoreSettings.model_validate(values | {"url": "s3://models/x"})).store.is_s3
