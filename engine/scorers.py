"""How a completion is marked right or wrong. Values of the spec; they import without torch."""

import re
from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Frozen

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class FinalNumber(Frozen):
    """Right when the last number of the completion equals the answer (the usual check for word problems)."""

    kind: Literal["final_number"] = "final_number"

    def is_right(self, completion: str, answer: str) -> bool:
        """Whether the last number in `completion` has the value of `answer`; commas between digits are ignored."""
        found = _NUMBER.findall(completion)
        wanted = _NUMBER.findall(answer)
        return bool(found and wanted) and float(found[-1].replace(",", "")) == float(wanted[-1].replace(",", ""))


class AfterMarker(Frozen):
    """Right when the text behind the last marker equals the answer, spaces at its ends ignored."""

    kind: Literal["after_marker"] = "after_marker"
    marker: Annotated[str, Field(min_length=1, max_length=64)] = "#"
    """The text that introduces the answer, such as # or `The answer is`."""

    def is_right(self, completion: str, answer: str) -> bool:
        """Whether what follows the last marker is `answer`; without a marker the completion is wrong."""
        _, marker, tail = completion.rpartition(self.marker)
        return bool(marker) and tail.strip() == answer.strip()


Scorer = Annotated[FinalNumber | AfterMarker, Field(discriminator="kind")]
