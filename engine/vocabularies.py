"""Two vocabularies compared, as ids with their tokens. It imports without torch: the API asks too."""

from collections.abc import Mapping


def differing_ids(mine: Mapping[int, str], theirs: Mapping[int, str]) -> list[int]:
    """Ids that mean two things, and ids that one lacks in between: tokens behind the last shared one are cut off."""
    last_shared = max(mine.keys() & theirs.keys(), default=0)
    return sorted(i for i in mine.keys() | theirs.keys() if i <= last_shared and mine.get(i) != theirs.get(i))
