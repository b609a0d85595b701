"""docker-compose.yml as Compose reads it: merged, with its variables replaced, for the services of some profiles."""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
_VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}")
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class ComposeService:
    """One service with its variables replaced."""

    name: str
    document: dict[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.document.get("environment", {}).items()}

    @property
    def command(self) -> list[str]:
        """Entrypoint and command; empty where the image's own is meant."""
        return [*self.document.get("entrypoint", []), *self.document.get("command", [])]

    @property
    def health_command(self) -> list[str]:
        kind, *command = self.document["healthcheck"]["test"]
        assert kind == "CMD", "a list needs no shell in the image"
        return list(command)

    @property
    def grace_seconds(self) -> float:
        """Between SIGTERM and SIGKILL; Compose's default is 10 s."""
        return seconds_of(self.document.get("stop_grace_period", "10s"))

    @cached_property
    def needs(self) -> dict[str, str]:
        """The services that it waits for, each with the condition."""
        return {name: wait["condition"] for name, wait in self.document.get("depends_on", {}).items()}


def services(profiles: Set[str] = frozenset(), variables: Mapping[str, str] = {}) -> dict[str, ComposeService]:
    """The services of the profiles, and those without one, in an order in which they can start."""
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    wanted = {
        name: ComposeService(name, _replaced(service, variables))
        for name, service in document["services"].items()
        if not service.get("profiles") or profiles & set(service["profiles"])
    }
    ordered: dict[str, ComposeService] = {}
    while len(ordered) < len(wanted):
        ready = [name for name, one in wanted.items() if name not in ordered and one.needs.keys() <= ordered.keys()]
        assert ready, "services wait for each other, or for one of another profile"
        ordered |= {name: wanted[name] for name in ready}
    return ordered


def seconds_of(duration: str) -> float:
    """Of a duration such as 90s or 1m30s."""
    parts = re.findall(r"(\d+)([smh])", duration)
    assert "".join(map("".join, parts)) == duration
    return float(sum(int(number) * _UNITS[unit] for number, unit in parts))


def _replaced(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(one, variables) for name, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, variables) for one in value]
    return _VARIABLE.sub(lambda found: _value_of(found, variables), value) if isinstance(value, str) else value


def _value_of(found: re.Match[str], variables: Mapping[str, str]) -> str:
    name, kind, rest = found.groups()
    given = variables.get(name, "")
    assert given or kind == ":-", f"{name} has to be set: {rest}"
    return given or rest
