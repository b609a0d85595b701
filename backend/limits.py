"""How much of everything this installation takes: settings such as INCIPIT_LIMITS__BODY_BYTES.

`python -m backend.limits` prints the table of docs/security.md.
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from engine.frozen import Frozen

Bytes = Annotated[int, Field(ge=1024, le=2**30)]
Number = Annotated[int, Field(ge=1, le=1_000_000_000)]
Seconds = Annotated[float, Field(ge=0.1, le=30 * 86_400)]


class Limits(Frozen):
    """Behind each limit stands what is refused; beside the fixed ones: names of 128 characters."""

    body_bytes: Bytes = 1024 * 1024
    """Bytes of a request's body (413)."""
    spec_bytes: Bytes = 64 * 1024
    """Bytes of a spec as compact JSON (422)."""
    json_depth: Number = 32
    """Objects and lists inside each other in a body (422)."""
    json_values: Number = 20_000
    """Values in a body, whatever their size (422)."""
    page_items: Number = 200
    """Entries of one page of a list (422)."""
    queued_runs: Number = 1000
    """Runs that one person or key has in the queue (409)."""
    saved_views: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Views that a project keeps (409)."""
    request_seconds: Seconds = 30.0
    """Until a request is answered, the transfer of files and events apart (503)."""
    statement_seconds: Seconds = 15.0
    """For one statement of the API on PostgreSQL (503)."""
    lock_seconds: Seconds = 3.0
    """For a lock that the API waits for on PostgreSQL (503)."""
    streams: Number = 200
    """Event streams that are open on one API process (503)."""
    streams_each: Number = 10
    """Event streams that are open with one key (503)."""
    stream_seconds: Seconds = 6 * 3600.0
    """After so long an event stream ends; the reader comes back with Last-Event-ID."""
    downloads: Number = 16
    """Files and archives that one API process sends at the same time (503)."""
    playground_prompt_bytes: Bytes = 32 * 1024
    """Bytes of a question's prompt and of its system message, each (422)."""
    playground_tokens: Number = 8192
    """Tokens that the answers to a question may have: speakers times answers of each times max_completion_tokens (422)."""
    playground_queued: Number = 10
    """Questions of the playground that one person or key has in the queue (409)."""
    playground_kept: Number = 200
    """Questions of a project that stay with their answers; whoever asks one more removes the oldest that have ended."""
    exports_queued: Number = 10
    """Exports of checkpoints that one person or key has in the queue (409)."""
    exports_kept: Number = 20
    """Exports of a project whose files stay; whoever asks for one more lets go those of the oldest."""
    upload_bytes: Bytes = 200 * 1024 * 1024
    """Bytes of a file of prompts that is uploaded (413)."""
    upload_stored_bytes: Bytes = 2**30
    """Bytes of its prompts as they are stored, which a packed file may exceed many times over (422)."""
    upload_rows: Number = 1_000_000
    """Prompts of an uploaded file (422)."""
    upload_seconds: Seconds = 600.0
    """Until an upload has arrived (503)."""
    uploads: Number = 4
    """Files of prompts that one API process takes in at the same time (503)."""
    prompt_files: Number = 1000
    """Uploaded files of prompts of a project (409)."""
    webhooks: Number = 10
    """Webhooks of a project (409)."""
    metric_keys: Number = 2000
    """Different metrics of a run; further ones are left out, and the run's history says so."""
    metric_name_characters: Annotated[int, Field(ge=1, le=250)] = 250
    """Characters of a metric's name; a metric with a longer one is left out, and the run's history says so."""
    metric_points: Number = 1_000_000
    """Points of a metric: later steps are left out, and the run's history says so."""
    rollout_text_bytes: Bytes = 64 * 1024
    """Bytes of a traced rollout's prompt, completion and answer, each; the rest is cut off, and the run's history says so."""
    rollout_tokens: Number = 32_768
    """Tokens of a traced rollout; a longer one is left out, and the run's history says so."""
    rollout_top_k: Number = 64
    """Candidates per token of a trace; traces with more are left out, and the run's history says so."""


def limit_table() -> Iterator[str]:
    """The lines of a Markdown table of all limits."""
    yield "| limit | default | of what |"
    yield "|---|---|---|"
    for name, field in Limits.model_fields.items():
        yield f"| `INCIPIT_LIMITS__{name.upper()}` | {field.default:,} | {field.description} |"


if __name__ == "__main__":
    print("\n".join(limit_table()))
