"""What the page would do, as commands for a terminal."""

import json
import shlex
from collections.abc import Mapping
from typing import Any


def curl_command(api_url: str, body: Mapping[str, Any]) -> str:
    """Creates the experiment; the key comes from the environment, so that it stands in no history of commands."""
    return (
        f"curl --fail-with-body {shlex.quote(api_url + '/api/v1/experiments')} \\\n"
        '  --header "Authorization: Bearer $INCIPIT_API_KEY" --header "Content-Type: application/json" \\\n'
        f"  --data {shlex.quote(json.dumps(body, ensure_ascii=False))}"
    )


def train_command(body: Mapping[str, Any]) -> str:
    """Writes the base spec to a file and trains it."""
    spec = json.dumps(body["base"], ensure_ascii=False)
    return f"printf %s {shlex.quote(spec)} > spec.json\nincipit train spec.json --out run"
