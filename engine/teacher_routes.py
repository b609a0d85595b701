"""Which of a run's teachers a text belongs to, where servers have several: its prompt's tag says it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from engine.errors import RunError
from engine.findings import Finding
from engine.vllm_server import VllmServer

FIELD = "teacher_backend.servers"


class TeacherRoutes:
    """The servers by tag, and the tags of prompts."""

    def __init__(self, tag_of: Mapping[VllmServer, str | None]) -> None:
        self.tag_of = tag_of
        self._tags: dict[tuple[int, ...], str] = {}  # by prompt, of those that have a server of their own

    @property
    def tags(self) -> list[str | None]:
        """Each once."""
        return list(dict.fromkeys(self.tag_of.values()))

    def of_tag(self, tag: str | None) -> list[VllmServer]:
        """The servers that have the teacher of this tag."""
        return [server for server, own in self.tag_of.items() if own == tag]

    def set_tags(self, tagged: Iterable[tuple[Sequence[int], str | None]]) -> None:
        """Which prompts, by their token ids, belong to which teacher.

        Raises RunError("bad_spec") when no server scores some, or one prompt has two teachers.
        """
        served = set(self.tag_of.values())
        tags: dict[tuple[int, ...], str | None] = {}
        for prompt, tag in tagged:
            known = tags.setdefault(tuple(prompt), tag)
            if known != tag and {known, tag} & (served - {None}):
                message = f"{FIELD} has servers by tag but one prompt has {_in_words(known)} and {_in_words(tag)}; give it one tag."
                raise RunError("bad_spec", message, [Finding(field=FIELD, message=message)])
        self._tags = {prompt: tag for prompt, tag in tags.items() if tag is not None and tag in served}
        lost = sorted({_in_words(tag) for tag in tags.values() if tag not in served})
        if lost and None not in served:
            message = (
                f"{FIELD} has servers for the tags {', '.join(sorted(filter(None, served)))} alone, but prompts have "
                f"{', '.join(lost[:3])}; add one with that tag, or one without a tag for all others."
            )
            raise RunError("bad_spec", message, [Finding(field=FIELD, message=message)])

    def take_as(self, prompt: Sequence[int], other: Sequence[int]) -> None:
        """Another text belongs to the teacher of this prompt, which it continues."""
        if (tag := self._tags.get(tuple(prompt))) is not None:
            self._tags[tuple(other)] = tag

    def servers_of(self, prompt: Sequence[int]) -> list[VllmServer]:
        """The servers that have the teacher of this prompt."""
        return self.of_tag(self._tags.get(tuple(prompt)))


def _in_words(tag: str | None) -> str:
    return "no tag" if tag is None else f"the tag {tag!r}"
