"""The one place that says which role each operation needs. What is not listed here, nobody may do.

`python -m backend.roles` prints the table of docs/security.md.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from backend.access import Role

if TYPE_CHECKING:
    from fastapi import FastAPI

Need = Role | Literal["open", "signature", "admin of all projects"]
"""open: anybody; signature: whoever has an address that this installation has signed; the last is for what serves all."""

_OPERATIONS: dict[Need, tuple[str, ...]] = {
    "open": ("livez", "readyz", "version"),
    "signature": (
        "download_checkpoint_file",
        "download_checkpoint_archive",
        "download_export_file",
        "download_export_archive",
    ),
    "viewer": (
        "get_me",
        "list_experiments",
        "get_experiment",
        "list_experiment_runs",
        "list_runs",
        "get_run",
        "get_metrics",
        "get_events",
        "stream_run",
        "get_evaluations",
        "get_positions",
        "list_rollouts",
        "list_run_checkpoints",
        "get_rollout",
        "get_divergence_grid",
        "get_divergence_positions",
        "get_divergence_tokens",
        "get_prefix_aid",
        "get_run_resources",
        "list_checkpoints",
        "get_checkpoint",
        "get_checkpoint_file",
        "get_checkpoint_archive",
        "create_checkpoint_link",
        "list_exports",
        "get_export",
        "get_export_file",
        "get_export_archive",
        "create_export_link",
        "get_spec_schema",
        "validate_spec",
        "estimate_run",
        "list_presets",
        "list_preflights",
        "get_preflight",
        "list_prompt_files",
        "get_prompt_file",
        "get_analysis_schema",
        "list_analyses",
        "get_analysis",
        "validate_question",
        "list_questions",
        "get_question",
        "get_answer",
        "list_alerts",
        "get_alert_rules",
        "list_views",
        "get_view",
        "list_workers",
        "get_figures",
    ),
    "operator": (
        "create_experiment",
        "cancel_run",
        "pause_run",
        "resume_run",
        "retry_run",
        "clone_run",
        "patch_run",
        "pin_checkpoint",
        "unpin_checkpoint",
        "create_export",
        "cancel_export",
        "remove_export",
        "dismiss_alert",
        "put_alert_rules",
        "list_webhooks",
        "list_deliveries",
        "create_preflight",
        "look_at_prompts",
        "upload_prompts",
        "delete_prompt_file",
        "create_analysis",
        "cancel_analysis",
        "create_question",
        "cancel_question",
        "create_view",
        "update_view",
        "remove_view",
    ),
    "admin": (
        "list_keys",
        "create_key",
        "revoke_key",
        "create_webhook",
        "delete_webhook",
        "test_webhook",
        "rotate_webhook_secret",
    ),
    "admin of all projects": ("drain_worker", "resume_worker"),
}
_NEEDS = {operation: need for need, operations in _OPERATIONS.items() for operation in operations}


def need_of(operation_id: str | None) -> Need | None:
    """What an operation needs; None when it is not declared, and so refused to everybody."""
    return _NEEDS.get(operation_id or "")


def role_table(app: "FastAPI") -> Iterator[str]:
    """The lines of a Markdown table of all operations with what they need."""
    from fastapi.routing import APIRoute

    yield "| operation | needs |"
    yield "|---|---|"
    for route in app.routes:
        if isinstance(route, APIRoute):
            for method in sorted(route.methods):
                yield f"| `{method} {route.path}` | {need_of(route.operation_id)} |"


if __name__ == "__main__":
    from backend.app import create_app

    print("\n".join(role_table(create_app())))
