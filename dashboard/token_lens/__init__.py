"""The token lens: a rollout as a heat map of tokens, with what both models thought of each one.

A Streamlit component (v2) of plain ES modules without a build step. Its files are joined and registered inline.
Streamlit's packaged form is out of reach here: its scanner looks for the manifest beside `incipit/`, the package of
the distribution's own name, and refuses an `asset_dir` outside of it (`streamlit/components/v2/manifest_scanner.py`,
`_resolve_package_root` and `ensure_within_root`), while the lens belongs to `dashboard/`.
"""

from pathlib import Path

import streamlit as st

from backend.playground import AnswerDetail
from backend.schemas import RolloutDetail
from dashboard.token_lens.payload import METRICS, answer_payload, lens_payload

_FRONTEND = Path(__file__).parent / "frontend"
# lens.js comes last: it holds the default export and uses the others, which share its module scope.
_MODULES = ("palette.js", "metrics.js", "elements.js", "card.js", "curve.js", "tokens.js", "controls.js", "lens.js")

STYLE = (_FRONTEND / "lens.css").read_text(encoding="utf-8")
SCRIPT = "\n".join((_FRONTEND / name).read_text(encoding="utf-8") for name in _MODULES)
"""One ES module; its default export mounts a lens."""

_mount = st.components.v2.component("incipit_token_lens", css=STYLE, js=SCRIPT)


def token_lens(rollout: RolloutDetail, metric: str, token: int | None) -> tuple[str, int | None]:
    """Draw a rollout, coloured by `metric` (a key of METRICS) with the card of `token` (a position) pinned.

    Returns the metric and the pinned position that the reader has chosen since.
    """
    chosen = metric if metric in METRICS else METRICS[0]
    result = _mount(
        key=f"token-lens-{rollout.id}",  # one per rollout: a pin must not wander to the next
        data=lens_payload(rollout, metric=chosen, token=token),
        default={"metric": chosen, "token": token},
        on_metric_change=lambda: None,
        on_token_change=lambda: None,
    )
    pinned = result.token
    return str(result.metric), int(pinned) if pinned is not None else None


def answer_lens(answer: AnswerDetail, metric: str, *, first_difference: int | None = None) -> None:
    """Draw an answer of the playground, coloured by `metric`, without a choice of its own: it stands beside others."""
    key = f"answer-lens-{answer.question_id}-{answer.answer.row}-{first_difference}"
    _mount(key=key, data=answer_payload(answer, metric, first_difference))
