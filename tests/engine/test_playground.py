"""Answers of several models to one prompt, and the teacher's scores against formulas written independently, in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.errors import RunError
from engine.findings import findings_of
from engine.manifest import MANIFEST, Manifest
from engine.playground import ask
from engine.playground_spec import PlaygroundResult, PlaygroundSpec
from engine.staging import sealed_files
from engine.token_trace import TokenTrace, read_trace
from tests.engine.models import TINY, tiny_document, write_random_model
from tests.engine.references import cross_entropy, entropy, probabilities

Document = dict[str, Any]
PROMPT = "k3 k0 c3 c2 c3 4 N13 |"


def written(folder: Path, seed: int, **shape: int) -> Path:
    """A random model as a checkpoint of step 7."""
    write_random_model(folder, seed, **shape)
    files = sealed_files(folder)
    (folder / MANIFEST).write_text(Manifest(step=7, files=files).model_dump_json())
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: written(root / name, seed) for seed, name in enumerate(("teacher", "base", "a", "b"))}


def checkpoint(folder: Path, **changes: object) -> Document:
    return {"kind": "checkpoint", "folder": str(folder), "run_name": folder.name, "step": 7} | changes


def document(models: dict[str, Path], speakers: list[Document], **changes: object) -> Document:
    run = tiny_document(
        student={"path": str(models["base"])},
        teacher={"path": str(models["teacher"])},
        sampling={"temperature": 1.3},
        traces={"top_k": 3},
    )
    return {"run": run, "speakers": speakers, "prompt": PROMPT, "max_completion_tokens": 12} | changes


def answered(asked: Document, folder: Path) -> tuple[PlaygroundResult, list[TokenTrace]]:
    path = folder / "answers.parquet"
    result = ask(PlaygroundSpec.model_validate(asked), lambda done, detail: None, path)
    return result, [read_trace(path, one.row) for one in result.answers if one.row is not None]


def logprobs_of(folder: Path, prompt: list[int], completion: list[int], temperature: float) -> np.ndarray:
    """[T, V] by one forward pass in float64."""
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        logits = module(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].numpy()
    return np.log(probabilities(logits, temperature))


@pytest.mark.parametrize("who", ["a", "teacher"])
def test_the_scores_of_an_answer_are_those_of_the_formulas(models: dict[str, Path], tmp_path: Path, who: str) -> None:
    speakers = [checkpoint(models["a"]), {"kind": "teacher"}]
    result, traces = answered(document(models, speakers), tmp_path)
    assert result.reader == "a at step 7"
    assert result.scoring_temperature == 1.3
    trace = traces[0 if who == "a" else 1]
    prompt = AutoTokenizer.from_pretrained(models["teacher"])(PROMPT)["input_ids"]
    # The teacher's own text is read by the first student.
    s, t = (logprobs_of(models[name], prompt, trace.token_ids, 1.3) for name in ("a", "teacher"))
    p, q, at = np.exp(s), np.exp(t), np.arange(len(trace.token_ids))
    ids = np.array(trace.token_ids)
    middle = (p + q) / 2
    expected = {
        "student_logprob": s[at, ids], "teacher_logprob": t[at, ids],
        "reverse_kl": cross_entropy(p, q) - entropy(p), "forward_kl": cross_entropy(q, p) - entropy(q),
        "jsd": entropy(middle) - entropy(p) / 2 - entropy(q) / 2,
        "student_entropy": entropy(p), "teacher_entropy": entropy(q),
        "student_rank": (s > s[at, ids][:, None]).sum(-1) + 1, "teacher_rank": (t > t[at, ids][:, None]).sum(-1) + 1,
    }  # fmt: skip
    for name, values in expected.items():
        # Traces are float16: 11 bits, and never finer than 1e-3 near 1.
        np.testing.assert_allclose(getattr(trace, name), values, rtol=2e-3, atol=2e-3, err_msg=name)
    for row in range(len(ids)):
        top = {*np.argsort(-s[row])[:3], *np.argsort(-t[row])[:3], ids[row]}
        assert set(trace.candidate_ids[row]) == top
    mine = result.answers[0 if who == "a" else 1]
    assert mine.mean_reverse_kl == pytest.approx(expected["reverse_kl"].mean(), rel=1e-4)
    assert mine.max_reverse_kl == pytest.approx(expected["reverse_kl"].max(), rel=1e-4)


def test_at_temperature_0_each_speaker_says_what_it_finds_most_likely(models: dict[str, Path], tmp_path: Path) -> None:
    speakers = [checkpoint(models["a"]), {"kind": "base"}, {"kind": "teacher"}]
    _, traces = answered(document(models, speakers, temperature=0), tmp_path)
    prompt = AutoTokenizer.from_pretrained(models["teacher"])(PROMPT)["input_ids"]
    for name, trace in zip(("a", "base", "teacher"), traces, strict=True):
        best = logprobs_of(models[name], prompt, trace.token_ids, 1.0).argmax(-1)
        assert trace.token_ids == best.tolist(), name


def test_the_same_question_has_the_same_answers_and_samples_differ(models: dict[str, Path], tmp_path: Path) -> None:
    asked = document(models, [checkpoint(models["a"]), checkpoint(models["b"])], num_samples=3, seed=5)
    first, _ = answered(asked, tmp_path)
    again, _ = answered(asked, tmp_path)
    assert [one.text for one in first.answers] == [one.text for one in again.answers]
    assert [(one.speaker, one.sample, one.row) for one in first.answers] == [
        (speaker, sample, 3 * speaker + sample) for speaker in range(2) for sample in range(3)
    ]
    assert len({one.text for one in first.answers}) > 2
    other, _ = answered(asked | {"seed": 6}, tmp_path)
    assert [one.text for one in first.answers] != [one.text for one in other.answers]


def test_equal_models_say_the_same_with_one_seed_whoever_speaks(models: dict[str, Path], tmp_path: Path) -> None:
    twin = models | {"teacher": models["a"]}
    result, traces = answered(document(twin, [{"kind": "teacher"}, checkpoint(models["a"])]), tmp_path)
    assert result.answers[0].text == result.answers[1].text
    assert max(traces[1].reverse_kl) < 1e-6


@pytest.mark.parametrize("kept", [{"top_p": 1e-6}, {"min_p": 1.0}])
def test_truncation_keeps_to_the_likely_tokens(models: dict[str, Path], tmp_path: Path, kept: Document) -> None:
    asked = document(models, [checkpoint(models["a"])], num_samples=4, **kept)
    _, traces = answered(asked, tmp_path)
    assert {rank for trace in traces for rank in trace.student_rank} == {1}


def test_a_speaker_with_another_tokenizer_is_heard_but_not_scored(models: dict[str, Path], tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    write_random_model(odd, 9)
    tokenizer = odd / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"m3"', '"M3"'))
    (odd / MANIFEST).write_text(Manifest(step=7, files=sealed_files(odd)).model_dump_json())
    folder = tmp_path / "out"
    folder.mkdir()
    result, traces = answered(document(models, [checkpoint(odd), {"kind": "teacher"}]), folder)
    heard, scored = result.answers
    assert heard.row is None
    assert heard.mean_reverse_kl is None
    assert heard.unscored == "its tokenizer is not the teacher's (1 of 81 ids differ)"
    assert heard.num_tokens > 0
    # The teacher's text is then read by the base student, who was not asked.
    assert result.reader == "base student"
    assert scored.row == 0
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"max_completion_tokens": 250}, "prompt", "together more than the context of 256 tokens; shorten the prompt"),
        ({"template": "chat"}, "template", "has no chat template; set it to plain."),
        ({"run": {"teacher": {"path": "/nowhere"}}}, "run.teacher.path", "no such folder"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence_at_its_field(
    models: dict[str, Path], tmp_path: Path, changes: Document, field: str, says: str
) -> None:
    asked = document(models, [checkpoint(models["a"])])
    asked = asked | changes | {"run": asked["run"] | changes.get("run", {})}
    with pytest.raises(RunError) as caught:
        answered(asked, tmp_path)
    (finding,) = caught.value.findings
    assert finding.field == field
    assert says in finding.message


@pytest.mark.parametrize("damage", ["missing", "changed", "replaced"])
def test_a_damaged_checkpoint_is_named_before_a_model_is_opened(tmp_path: Path, damage: str) -> None:
    folder = written(tmp_path / "a", 2)
    speaker = checkpoint(folder)
    if damage == "missing":
        (folder / "model.safetensors").unlink()
    elif damage == "changed":
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)
    else:
        speaker |= {"manifest_sha256": "0" * 64}
    nowhere = {"teacher": TINY / "models" / "teacher", "base": tmp_path / "nowhere"}
    with pytest.raises(RunError) as caught:
        answered(document(nowhere, [speaker]), tmp_path)
    (finding,) = caught.value.findings
    assert finding.field == "speakers.0"
    assert finding.message.startswith("speakers.0 is the student of a at step 7, whose checkpoint is damaged:")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_samples": 2, "temperature": 0}, "num_samples"),
        ({"num_samples": 5}, "num_samples"),
        ({"system_message": "Be brief."}, "system_message"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"speakers": []}, "speakers"),
        ({"speakers": [{"kind": "base"}, {"kind": "teacher"}, {"kind": "base"}]}, "speakers.2"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_a_wrong_question_is_refused_at_its_field(models: dict[str, Path], changes: Document, field: str) -> None:
    asked = document(models, [{"kind": "base"}]) | changes
    with pytest.raises(ValidationError) as caught:
        PlaygroundSpec.model_validate(asked)
    (finding,) = findings_of(caught.value, asked)
    assert finding.field == field
