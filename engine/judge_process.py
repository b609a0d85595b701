"""The process behind engine/judge.py: reads one JSON request a line, writes one JSON verdict a line. A request without
a completion only imports what its kind needs.

What is parsed here was written by a model. math-verify hands plain expressions of digits and operators to sympy's parser,
which evaluates them; some scorers of reasoning-gym evaluate the answer as Python: those get it only when it has no letter.
"""

import json
import os
import re
import resource
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_MAX_BYTES = 4 * 2**30  # of memory; a power tower asks for more than any machine has
_MAX_FOUND = 200  # characters of the answer that votes are counted by
ARITHMETIC_TASKS = frozenset({"countdown", "puzzle24", "spiral_matrix", "binary_matrix"})
"""Tasks whose scorers evaluate the answer; arithmetic is all that they get."""
_ARITHMETIC = re.compile(r"[\d\s+\-*/^().,\[\]]*")


def main() -> None:
    """Answer requests until stdin ends."""
    # What libraries print must not mix with the verdicts.
    verdicts = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit_seconds(request["timeout_seconds"])
        print(json.dumps(_verdict(request)), file=verdicts, flush=True)


def _limit_seconds(seconds: float) -> None:
    """Also end by itself: nobody kills it when its owner is dead."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 60
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _verdict(request: Mapping[str, Any]) -> dict[str, object]:
    try:
        return _math_verify(request) if request["kind"] == "math_verify" else _reasoning_gym(request)
    except ModuleNotFoundError as error:
        extra = "engine" if request["kind"] == "math_verify" else "real"
        return {"missing": str(error.name).replace("_", "-"), "extra": extra}
    except (Exception, RecursionError):  # whatever hostile text provokes in a parser, it is no right answer
        return {"is_right": False, "found": None}


def _math_verify(request: Mapping[str, Any]) -> dict[str, object]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    if "completion" not in request:
        return {}
    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    gold = parse(f"${request['answer']}$", parsing_timeout=None)
    found = parse(request["completion"], extraction_config=configs, parsing_timeout=None)
    is_right = bool(verify(gold, found, timeout_seconds=None))
    return {"is_right": is_right, "found": str(found[0])[:_MAX_FOUND] if found else None}


def _reasoning_gym(request: Mapping[str, Any]) -> dict[str, object]:
    from reasoning_gym.utils import extract_answer

    if "completion" not in request:
        return {}
    place = json.loads(request["entry"])
    answer = extract_answer(request["completion"])
    answer = request["completion"].strip() if answer is None else answer
    if request["task"] in ARITHMETIC_TASKS and not _ARITHMETIC.fullmatch(answer):
        return {"is_right": False, "found": answer[:_MAX_FOUND] or None}
    tasks = _tasks(request["task"], place["seed"], place["size"], tuple(place.get("settings", {}).items()))
    score = float(tasks.score_answer(answer, tasks[place["index"]]))
    return {"is_right": score >= request["least_score"], "found": answer[:_MAX_FOUND] or None}


@lru_cache(maxsize=4)
def _tasks(name: str, seed: int, size: int, settings: tuple[tuple[str, int | bool], ...]) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=seed, size=size, **dict(settings))


if __name__ == "__main__":
    main()
