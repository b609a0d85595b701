"""Schema, estimates, presets and preflights."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.database import Database
from backend.estimate import estimate
from engine.flops import FlopLedger, ModelShape, rollout_flops, student_flops, update_flops
from engine.locations import resolve
from engine.spec import RunSpec
from tests.backend.recorded import change_run

Document = dict[str, Any]


def test_the_schema_is_that_of_the_spec(client: TestClient) -> None:
    assert client.get("/api/v1/spec/schema").json() == RunSpec.model_json_schema()


def test_a_valid_spec_has_no_findings(client: TestClient, base: Document) -> None:
    assert client.post("/api/v1/spec/validate", json=base).json() == []


def test_presets_are_specs_that_can_be_submitted(client: TestClient) -> None:
    for preset in client.get("/api/v1/presets").json():
        body = {"name": preset["title"], "base": preset["spec"], "variants": preset["variants"]}
        assert client.post("/api/v1/experiments", json=body).status_code == 201, preset["name"]


def test_preflights_are_queued_for_a_worker(client: TestClient, base: Document) -> None:
    response = client.post("/api/v1/preflights", json=base)
    assert response.status_code == 201
    created = response.json()
    assert (created["state"], created["findings"], created["facts"]) == ("queued", [], {})
    assert client.get(response.headers["location"]).json() == created
    assert client.get("/api/v1/preflights").json() == [created]
    assert client.get("/api/v1/preflights/nothing").status_code == 404


def test_an_adapter_saves_optimizer_memory_and_backward_flops_and_a_shared_base_a_copy(base: Document) -> None:
    shared = base | {"student": base["teacher"], "micro_batch_rollouts": 4}
    whole = estimate(RunSpec.model_validate(shared), [])
    lora = estimate(RunSpec.model_validate(shared | {"adapter": {"kind": "lora", "rank": 4}}), [])
    trained = 3 * 4 * (4 * (96 + 96) + 3 * (96 + 288))
    assert lora.memory_bytes["optimizer"] == 2 * lora.memory_bytes["gradients"] == 8 * trained
    assert lora.memory_bytes["teacher_weights"] == 0 < whole.memory_bytes["teacher_weights"]
    assert lora.flops.student_backward < whole.flops.student_backward < 2 * lora.flops.student_backward
    recomputed = estimate(RunSpec.model_validate(shared | {"gradient_checkpointing": "always"}), [])
    assert 0 == whole.flops.recompute < recomputed.flops.recompute < whole.flops.student_forward
    assert recomputed.memory_bytes["activations"] < whole.memory_bytes["activations"]


def test_a_warmup_takes_its_steps_from_the_run_and_adds_its_own_cost(base: Document) -> None:
    spec = RunSpec.model_validate(base | {"num_steps": 5})
    phase = {"kind": "sft", "num_steps": 2, "prompts_per_step": 3, "source": "teacher"}
    warmed = RunSpec.model_validate(base | {"num_steps": 7, "warmup_phase": phase})
    plain, found = estimate(spec, []), estimate(warmed, [])
    assert found.horizon_steps == [2, 3, 4, 5, 6]
    assert found.horizons == plain.horizons
    assert found.flops.teacher == plain.flops.teacher
    length, prompt_tokens = spec.max_completion_tokens, 11
    student, teacher = (ModelShape.from_config(_config(model.path)) for model in (spec.student, spec.teacher))
    added = student_flops(student, prompt_tokens + length, length) * 6
    assert found.flops.student_forward == pytest.approx(plain.flops.student_forward + added.student_forward)
    sampled = 6 * rollout_flops(teacher, prompt_tokens, [length])
    assert found.flops.rollout == pytest.approx(plain.flops.rollout + sampled)
    budget = RunSpec.model_validate(base | {"num_steps": 7, "warmup_phase": phase, "training_flops_budget": 1.0})
    assert "The FLOPs budget ends the run after step 3 of 7." in estimate(budget, []).assumptions


def _config(path: str) -> Document:
    config: Document = json.loads((Path(resolve(path)) / "config.json").read_text())
    return config


def test_an_estimate_adds_up_by_hand(base: Document) -> None:
    spec = RunSpec.model_validate(base | {"num_steps": 5, "prompts_per_step": 4, "rollouts_per_prompt": 2})
    student = ModelShape(
        block_parameters=2 * (4 * 64 * 64 + 3 * 64 * 192),
        head_parameters=64 * 81,
        attention_width=2 * 64,
        hidden=64,
        vocabulary=81,
        layers=2,
        kv_width=2 * 64,
        last_product_parameters=2 * 64 * 192,
    )
    teacher = ModelShape(
        block_parameters=3 * (4 * 96 * 96 + 3 * 96 * 288),
        head_parameters=96 * 81,
        attention_width=3 * 96,
        hidden=96,
        vocabulary=81,
        layers=3,
        kv_width=3 * 96,
        last_product_parameters=3 * 96 * 288,
    )
    found = estimate(spec, [])
    prompt_tokens = 11  # 8 words
    assert found.flops.rollout == 5 * 4 * rollout_flops(student, prompt_tokens, [8, 8])
    update = update_flops(student, teacher, prompt_tokens, 8)
    assert found.flops.teacher == 5 * 8 * update.teacher
    assert found.flops.student_backward == 2 * found.flops.student_forward == 5 * 8 * update.student_backward
    assert found.saving == pytest.approx(found.full_length_flops.training / found.flops.training)
    assert found.saving > 10
    assert found.horizons == [8] * 5
    assert found.horizon_steps == [0, 1, 2, 3, 4]
    assert found.memory_bytes["student_weights"] == 4 * (student.block_parameters + student.head_parameters)
    held = ("process", "student_weights", "teacher_weights", "optimizer", "allocator")
    assert sum(found.memory_bytes[part] for part in held) < found.memory_total_bytes
    assert found.memory_total_bytes <= sum(found.memory_bytes.values())
    assert any("11 tokens" in assumption for assumption in found.assumptions)


def test_a_sentinel_costs_its_rollouts_as_evaluation(base: Document) -> None:
    """40 steps, one measurement in 10 and one before: 5 times 2 texts of the student, read by both; the teacher's once."""
    sentinel = {"kind": "watch", "every_steps": 10, "num_rollouts": 2}
    plain, watched = (estimate(RunSpec.model_validate(base | more), []) for more in ({}, {"sentinel": sentinel}))
    student, teacher = (
        ModelShape.from_config(json.loads((Path(resolve(base[who]["path"])) / "config.json").read_bytes()))
        for who in ("student", "teacher")
    )
    length, prompt = base["max_completion_tokens"], 11
    both = prompt + length
    each = rollout_flops(student, prompt, [length]) + student.forward(both, length) + teacher.forward(both, length)
    expected = (
        5 * (each + student.forward(both, 1)) + rollout_flops(teacher, prompt, [length]) + teacher.forward(both, 1)
    )
    assert watched.flops.evaluation - plain.flops.evaluation == pytest.approx(2 * expected)
    assert watched.flops.training == plain.flops.training
    grows = base | {"sentinel": sentinel | {"action": {"kind": "grow"}}}
    said = [one for one in estimate(RunSpec.model_validate(grows), []).assumptions if "sentinel" in one]
    assert said == ["The sentinel finds no drift: what it would do then changes the cost."]


@pytest.mark.parametrize(("kind", "times"), [("position_power", 0), ("tip", 1), ("iw_opd", 1)])
def test_weights_that_need_both_models_scores_cost_both_heads_once_more(base: Document, kind: str, times: int) -> None:
    """40 steps of 16 rollouts of 8 tokens, vocabulary 81, widths 64 and 96."""
    plain, weighted = (
        estimate(RunSpec.model_validate(base | {"prompts_per_step": 16} | more), []).flops
        for more in ({}, {"token_weights": {"kind": kind}})
    )
    tokens = times * 40 * 16 * 8
    assert weighted.recompute - plain.recompute == 2 * 81 * 64 * tokens
    assert weighted.teacher - plain.teacher == pytest.approx(2 * 81 * 96 * tokens)
    assert weighted.student_forward == plain.student_forward


def test_a_budget_ends_the_estimate_where_it_ends_the_run(base: Document) -> None:
    whole = estimate(RunSpec.model_validate(base), [])
    half = estimate(RunSpec.model_validate(base | {"training_flops_budget": whole.flops.training * 0.49}), [])
    assert half.flops.training == pytest.approx(whole.flops.training / 2)
    assert "The FLOPs budget ends the run after step 20 of 40." in half.assumptions


def test_a_run_that_may_end_sooner_has_an_estimate_of_the_most(base: Document) -> None:
    whole = estimate(RunSpec.model_validate(base), [])
    may_end = estimate(RunSpec.model_validate(base | {"early_stopping": {"kind": "evaluation"}}), [])
    assert (whole.is_most, may_end.is_most) == (False, True)
    assert may_end.flops == whole.flops
    assert "Early stopping does not end the run: FLOPs and time are at most these." in may_end.assumptions


def test_horizons_are_previewed_at_200_steps_of_a_long_run(base: Document) -> None:
    long = base | {"num_steps": 10_000, "prefix": {"kind": "linear", "start_tokens": 4, "increment_tokens": 0.01}}
    found = estimate(RunSpec.model_validate(long), [])
    assert len(found.horizons) == len(found.horizon_steps) == 200
    assert (found.horizon_steps[0], found.horizon_steps[-1]) == (0, 9999)
    assert found.horizons[-1] == 4 + 99


def test_an_adaptive_prefix_is_previewed_as_a_band_and_costs_between_never_and_always_growing(base: Document) -> None:
    prefix = {"kind": "plateau", "start_tokens": 8, "increment_tokens": 4, "patience_steps": 4, "cap_tokens": 16}
    found = estimate(RunSpec.model_validate(base | {"num_steps": 20, "prefix": prefix}), [])
    assert found.horizons == [8] * 20
    assert found.longest_horizons == [8] * 5 + [12] * 5 + [16] * 10
    stages = [{"steps": 5, "tokens": 8}, {"steps": 5, "tokens": 12}, {"steps": 10, "tokens": 16}]
    fastest = estimate(
        RunSpec.model_validate(base | {"num_steps": 20, "prefix": {"kind": "stages", "stages": stages}}), []
    )
    constant = estimate(RunSpec.model_validate(base | {"num_steps": 20}), [])
    assert found.flops == constant.flops
    assert found.flops_at_fastest_growth is not None
    assert found.flops_at_fastest_growth.training == pytest.approx(fastest.flops.training)
    assert found.memory_bytes == fastest.memory_bytes
    assert (constant.longest_horizons, constant.flops_at_fastest_growth) == ([], None)
    assert any("How the prefix grows is known only in training" in one for one in found.assumptions)


def test_anchored_rollouts_cost_the_full_length_and_a_window_only_its_projection(base: Document) -> None:
    def found(**changes: object) -> Any:
        return estimate(RunSpec.model_validate(base | {"num_steps": 8, "prompts_per_step": 4} | changes), [])

    plain, full = found(), found(prefix={"kind": "full"})
    half = found(anchoring={"kind": "fraction", "share": 0.5})
    assert half.flops.training == pytest.approx((plain.flops.training + full.flops.training) / 2)
    assert half.memory_bytes == full.memory_bytes
    every = found(anchoring={"kind": "every_nth_step", "n": 4})
    assert every.flops.training == pytest.approx(0.75 * plain.flops.training + 0.25 * full.flops.training)
    assert every.horizons == [8, 8, 8, 224] * 2
    window = found(loss_region={"kind": "window", "start": 4, "end": 8})
    assert window.flops.rollout == plain.flops.rollout
    head = 81 * 64 * 2.0
    assert plain.flops.student_forward - window.flops.student_forward == pytest.approx(8 * 4 * 4 * head)


def test_time_comes_from_earlier_runs_of_the_same_models(
    client: TestClient, run_ids: list[str], base: Document, database: Database
) -> None:
    assert client.post("/api/v1/estimate", json=base).json()["seconds"] is None
    for run_id, seconds in zip(run_ids, (10.0, 20.0), strict=False):
        change_run(database, run_id, state="succeeded", training_flops=1e9, training_seconds=seconds)
    found = client.post("/api/v1/estimate", json=base).json()
    training = FlopLedger.model_validate(found["flops"]).training
    assert found["seconds"] == pytest.approx({"low": training / 1e8, "high": training / 5e7})
    other = base | {"student": {"path": "builtin:tiny/models/base"}}
    assert client.post("/api/v1/estimate", json=other).json()["seconds"] is None


def test_a_model_that_is_not_here_is_left_to_a_preflight(client: TestClient, base: Document) -> None:
    for path in ("someone/model", "builtin:nothing", "builtin:../..", "home:x"):
        response = client.post("/api/v1/estimate", json=base | {"teacher": {"path": path}})
        assert response.status_code == 422, path
        (finding,) = response.json()["errors"]
        assert finding["field"] == "teacher.path"
        assert finding["message"].endswith("run a preflight, which looks at it on a worker.")


def test_configs_with_impossible_sizes_are_findings(client: TestClient, base: Document, tmp_path: Any) -> None:
    good = '"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 81, "intermediate_size": 9'
    for text in ("", "[]", "{", '{"hidden_size": 1e400, %s}', '{"hidden_size": -4, %s}', '{"hidden_size": 0, %s}'):
        (tmp_path / "config.json").write_text(text.replace("%s", good))
        response = client.post("/api/v1/estimate", json=base | {"student": {"path": str(tmp_path)}})
        assert response.status_code == 422, text
        assert response.json()["errors"][0]["field"] == "student.path"
