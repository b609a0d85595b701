"""The attacks of docs/security.md, and the tests that prove what is answered: those with `@pytest.mark.attack(number)`.

`python -m tests.security.attack_table` prints the table.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

ATTACKS: dict[int, tuple[str, str]] = {
    1: (
        "Paths in place of file names: `../`, encoded once or twice, `\\`, NUL, absolute, endless",
        "404 or 422; only names of the manifest are opened",
    ),
    2: (
        "Addresses that move where files lie: `file://`, `s3://`, fragments, queries",
        "422: no request has such a field; 404 behind a file's name",
    ),
    3: ("Links, pipes and folders in place of a checkpoint's files", "404 or 410; nothing is followed"),
    4: ("Pickled weights (`.bin`, `.pt`, `.pkl`) with code in them", "the model is refused, the code does not run"),
    5: ("A fallback from safe to unsafe loading", "there is none; `torch` is at least 2.10, and `torch.load` unused"),
    6: (
        "Code beside a model: `trust_remote_code`, `auto_map`, fetched attention kernels, Python files",
        "422 for the field, `bad_model` for the folder",
    ),
    7: (
        "A chat template that reaches out, loops or fills memory",
        "a finding; sandbox, own process, limits of time and size",
    ),
    8: (
        "safetensors that lie about shapes, places or sizes; shards outside the folder; endless tokenizers",
        "`bad_model` before anything is loaded",
    ),
    9: ("A tokenizer that was swapped", "an error at `teacher.path`; a checkpoint of another tokenizer is refused"),
    10: (
        "Addresses of internal services as model or data",
        "`bad_model`, `bad_data` or 422; nothing connects",
    ),
    11: ("Archives with hostile members", "415, of a file of prompts 422: nothing unpacks archives"),
    12: ("Multipart uploads with file names", "415: files of prompts come as they are, without a name in the body"),
    13: ("Jobs without authentication, a listener on all addresses", "the API does not start (status 78)"),
    14: ("Web pages that drive a local API: DNS rebinding, forms, `fetch`", "421, 415, 403"),
    15: ("A Host that shifts the path", "421; roles never look at the path"),
    16: ("A route that its author forgot to lock", "401 without, 403 with any credential"),
    17: ("Ids of another project", "404"),
    18: ("Many, overlapping or senseless ranges", "416; one range at most"),
    19: ("Static files: UNC paths, traversal", "no folder is served, neither by the API nor by the dashboard"),
    20: ("HTML and scripts in models' texts", "shown as text; raw HTML is forbidden in the code; XSRF protection on"),
    21: ("Pickled, unknown, malformed and oversized messages in the broker", "dropped and logged; the worker goes on"),
    22: ("Files swapped before they are loaded", "folders and files of this user alone; sha256 from the opened file"),
    23: ("Known or default credentials", "there are none; without a credential of its own the API does not start"),
    24: ("Secrets in logs, errors and the database", "cut out; only hashes are stored"),
    25: ("Bodies that are huge, deep, doubled, not finite, not UTF-8", "413 or 422 in one sentence, never 500"),
    26: ("Names such as `__proto__`, `../x`, right-to-left marks, 10,000 characters", "plain text or 422"),
    27: ("SQL in parameters", "422, or nothing found; never 500, and nothing changes"),
    28: ("Formulas in CSV files", "prefixed with `'`"),
    29: ("Guessed tokens", "401, always the same; 256 random bits, compared in constant time"),
    30: ("Thousands of event streams, slow readers", "503 behind the limits; nothing is queued for a reader"),
    31: ("Line breaks and ANSI codes in logs", "escaped"),
    32: ("Special tokens in a prompt", "encoded as text in a chat"),
}


def proofs() -> dict[int, list[str]]:
    """By attack, the tests that are marked with it, as `path::name`."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                for number in _numbers(node):
                    found[number].append(f"{path.relative_to(ROOT).as_posix()}::{node.name}")
    return dict(found)


def _numbers(test: ast.FunctionDef) -> Iterator[int]:
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.attack":
            yield from (ast.literal_eval(argument) for argument in decorator.args)


def attack_table() -> Iterator[str]:
    """The lines of the Markdown table."""
    proved_by = proofs()
    yield "| # | attack | answer | proved by |"
    yield "|---|---|---|---|"
    for number, (attack, answer) in ATTACKS.items():
        tests = "<br>".join(f"`{name}`" for name in proved_by.get(number, []))
        yield f"| {number} | {attack} | {answer} | {tests} |"


if __name__ == "__main__":
    print("\n".join(attack_table()))
