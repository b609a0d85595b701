"""The form of the playground: whose teacher, which speakers, what prompt; what is wrong is said before it is asked."""

from dataclasses import dataclass
from typing import Any

import streamlit as st

from backend.schemas import Checkpoint, Run, RunSummary
from backend.unique_labels import id_end, unique_labels
from dashboard import address, cached, notices, rights
from dashboard.api_client import ApiClient
from dashboard.api_errors import Invalid
from dashboard.quantities import accuracy_text
from dashboard.run_choice import choose_run
from engine.playground_spec import MAX_SAMPLES, MAX_SPEAKERS, Question

AB_VIEW = "A and B"
"""The view that stacks two answers; links that open it set `view` to this."""
_TOKENS = 128
_RECORDED_CHARACTERS = 4000  # as much of a prompt as a run keeps beside its trace, see engine/trace.py


@dataclass(frozen=True)
class Seed:
    """What the form starts from."""

    identity: str
    """Another one makes the widgets afresh."""
    question: dict[str, Any]
    """Fields of engine.playground_spec.Question."""
    speakers: list[str]
    """`base`, `teacher` or ids of checkpoints."""
    note: str = ""


def draw_question_form(client: ApiClient, runs: list[RunSummary]) -> None:
    """The form; asking opens the question."""
    run = cached.run(client, choose_run(client, runs).id)
    st.caption(
        notices.plain(
            f"The teacher of this run, {run.teacher}, scores every answer; the base student is {run.student}."
        )
    )
    seed = _seed(client, run)
    known = _checkpoints(client, run)
    labels = _labels(known, run)
    chosen = st.multiselect(
        f"Who answers, up to {MAX_SPEAKERS}, in this order",
        list(labels),
        default=[one for one in seed.speakers if one in labels],
        format_func=lambda one: labels[one],
        max_selections=MAX_SPEAKERS,
        key=f"speakers-{seed.identity}",
        help="A checkpoint is the student as it was at a step of any run; below stand those that are chosen, best or pinned.",
    )
    _marks(known, labels, chosen, run)
    prompt = st.text_area("Prompt", seed.question["prompt"], height=110, key=f"prompt-{seed.identity}")
    if seed.note:
        st.caption(seed.note)
    document = {
        "run_id": run.id,
        "prompt": prompt,
        "speakers": [_speaker(one) for one in chosen],
        **_settings(seed),
    }
    _ask(client, document)


def _ask(client: ApiClient, document: dict[str, Any]) -> None:
    is_complete = bool(document["prompt"] and document["speakers"])
    findings = cached.question_findings(client, document) if is_complete else []
    for finding in findings:
        show = st.error if finding.severity == "error" else st.warning
        show(notices.plain(finding.message), icon=":material/error:")
    is_wrong = any(one.severity == "error" for one in findings)
    missing = None if is_complete else "Write a prompt and choose who answers it."
    refusal = rights.refusal(client) or missing
    if not st.button(
        "Ask", type="primary", icon=":material/send:", disabled=is_wrong or refusal is not None, help=refusal, key="ask"
    ):
        return
    try:
        created = client.ask(document)
    except Invalid as error:
        for finding in error.findings:
            st.error(notices.plain(finding.message), icon=":material/error:")
        return
    cached.questions.clear()
    address.keep("question", created.id)
    st.rerun()


def _settings(seed: Seed) -> dict[str, Any]:
    """The fields of a question besides its prompt."""
    question, key = seed.question, seed.identity
    columns = st.columns([2, 1, 1, 1, 1, 1, 1], vertical_alignment="bottom")
    helps = {name: field.description for name, field in Question.model_fields.items()}
    with columns[0]:
        template = st.segmented_control(
            "Template", ["plain", "chat"], default=question["template"], required=True, key=f"template-{key}",
            help=helps["template"],
        )  # fmt: skip
    numbers: dict[str, Any] = {}
    for column, (name, label, step) in zip(
        columns[1:],
        (
            ("temperature", "Temperature", 0.1),
            ("top_p", "Top-p", 0.05),
            ("min_p", "Min-p", 0.05),
            ("max_completion_tokens", "Most tokens", 16),
            ("num_samples", f"Answers (≤ {MAX_SAMPLES})", 1),
            ("seed", "Seed", 1),
        ),
        strict=True,
    ):
        with column:
            numbers[name] = st.number_input(
                label, value=question[name], step=step, key=f"{name}-{key}", help=helps[name]
            )
    is_chat = template == "chat"
    system = ""
    if is_chat:
        system = st.text_input(
            "System message", question["system_message"] or "", key=f"system-{key}", help=helps["system_message"]
        )
    return {
        "template": template,
        "system_message": system or None,
        "enable_thinking": question["enable_thinking"] if is_chat else None,
        **numbers,
    }


def _speaker(key: str) -> dict[str, str]:
    return {"kind": key} if key in ("base", "teacher") else {"kind": "checkpoint", "checkpoint_id": key}


def _checkpoints(client: ApiClient, run: Run) -> list[Checkpoint]:
    """The run's own, then those of other runs; newest first."""
    return [
        *cached.checkpoints(client, run.id),
        *(one for one in cached.checkpoints(client) if one.run_id != run.id),
    ]


def _labels(checkpoints: list[Checkpoint], run: Run) -> dict[str, str]:
    """Who may speak: base, teacher, checkpoints."""
    asked = [name for name in (address.asked("a"), address.asked("b")) if name]
    known = {one.id: _checkpoint_label(one, run) for one in checkpoints}
    # Older than the list: the API knows them, or says that they are gone.
    known |= {one: f"checkpoint {one}" for one in asked if one not in known}
    return unique_labels({"base": "base student", "teacher": "teacher"} | known)


def _checkpoint_label(checkpoint: Checkpoint, run: Run) -> str:
    """Such as `prefix 8 · step 40`, and `prefix 8 (0a1b2c) · step 40` of another run.

    Nothing in it changes with time, not even as checkpoints of the same name are made: the browser names what is chosen by
    its label, and the choice is lost when there is none of it as it arrives.
    """
    of_run = "" if checkpoint.run_id == run.id else f" ({id_end(checkpoint.run_id)})"
    return f"{checkpoint.run_name}{of_run} · step {checkpoint.step}"


def _marks(checkpoints: list[Checkpoint], labels: dict[str, str], chosen: list[str], run: Run) -> None:
    """What is known of those that are chosen, and of the run's best and pinned ones."""
    told = []
    for one in checkpoints:
        marks = [word for word, is_so in (("best", one.is_best), ("pinned", one.pinned)) if is_so]
        if one.id in chosen or (marks and one.run_id == run.id):
            told.append(f"{labels[one.id]}: {', '.join([*marks, f'accuracy {accuracy_text(one.accuracy)}'])}")
    if told:
        st.caption(notices.plain(" — ".join(told)))


def _seed(client: ApiClient, run: Run) -> Seed:
    """An earlier question that is to be asked again, else the prompt and checkpoints of the address, else the run's own."""
    again, rollout = address.asked("again"), address.asked("rollout")
    a, b = address.asked("a"), address.asked("b")
    if again is not None:
        asked = client.question(again).asked
        if asked.run_id == run.id:
            speakers = [one.checkpoint_id if one.kind == "checkpoint" else one.kind for one in asked.speakers]
            question = {name: getattr(asked, name) for name in Question.model_fields}
            return Seed(f"again-{again}", question, speakers)
    prompt, note = _recorded_prompt(client, run, rollout)
    spec = run.spec
    question = {
        "prompt": prompt,
        "template": spec.prompts.template,
        "system_message": spec.prompts.system_message,
        "enable_thinking": spec.prompts.enable_thinking,
        "temperature": spec.sampling.temperature,
        "top_p": 1.0,
        "min_p": 0.0,
        "max_completion_tokens": min(_TOKENS, spec.max_completion_tokens),
        "num_samples": 1,
        "seed": spec.seed,
    }
    speakers = [one for one in (a, b) if one] or _usual_speakers(client, run)
    return Seed(f"{run.id}-{rollout}-{a}-{b}", question, speakers, note)


def _usual_speakers(client: ApiClient, run: Run) -> list[str]:
    """For A and B the run's first and best checkpoints, as far as there are two; else its best with base and teacher."""
    mine = cached.checkpoints(client, run.id)
    best = next((one for one in mine if one.is_best), mine[0] if mine else None)
    if address.asked("view") == AB_VIEW and best is not None:
        first = min(mine, key=lambda one: (one is best, one.step))
        return [first.id, best.id] if first is not best else ["base", best.id]
    return [*([best.id] if best else []), "base", "teacher"]


def _recorded_prompt(client: ApiClient, run: Run, rollout_id: str | None) -> tuple[str, str]:
    """A prompt that the run has recorded, and what is to be said of it."""
    if rollout_id is not None:
        prompt = cached.rollout(client, rollout_id).prompt
    else:
        items = cached.rollouts(client, run.id).items
        prompt = items[0].prompt if items else ""
    if not prompt:
        return "", ""
    cut = " Only its first 4,000 characters were recorded." if len(prompt) >= _RECORDED_CHARACTERS else ""
    return prompt, f"A prompt that this run has recorded.{cut}"
