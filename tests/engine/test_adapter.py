"""LoRA: what it computes, what it trains, and that student and teacher can share one base."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine import llama_decoder
from engine.adapter import base_of, with_adapter
from engine.adapter_spec import Lora
from engine.errors import RunError
from engine.language_model import LanguageModel, load_language_model
from engine.model_spec import ModelSpec
from engine.rollout import RolloutRequest
from engine.sampler import Sampler
from engine.setup import load_models
from engine.student import Student
from engine.update import Update
from tests.engine.models import CPU, fresh_random_model, random_model, tiny_model, tiny_spec
from tests.engine.test_batch_laws import TEACHER, assert_same, eight_rollouts, update

LORA = Lora(rank=3, alpha=6)
SPEC = ModelSpec(path="a/base")
REQUESTS = [RolloutRequest(0, [1, 5, 6], 3, 1), RolloutRequest(1, [1, 9, 4, 7, 8], 3, 1)]


def adapted(lora: Lora = LORA, seed: int = 0) -> LanguageModel:
    """A random float64 model with an adapter that has learnt something: B is no longer zero."""
    model = with_adapter(fresh_random_model(), lora, SPEC, seed)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.module.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.double) / 4
    return model


def merged_by_hand(model: LanguageModel, lora: Lora = LORA) -> LanguageModel:
    """A plain model with the weights W + alpha/rank · B·A."""
    plain = fresh_random_model()
    theirs = dict(model.module.named_parameters())
    for name, parameter in plain.module.named_parameters():
        stem = name.removesuffix(".weight")
        if f"{stem}.base_layer.weight" in theirs:
            up, down = (theirs[f"{stem}.lora_{part}.default.weight"].detach() for part in "BA")
            parameter.data = theirs[f"{stem}.base_layer.weight"] + lora.alpha / lora.rank * up @ down
    return plain


def test_a_fresh_adapter_changes_nothing() -> None:
    token_ids = torch.randint(3, 80, (2, 9))
    model = with_adapter(fresh_random_model(), LORA, SPEC, 0)
    assert torch.equal(model.hidden(token_ids), random_model().hidden(token_ids))


def test_an_adapter_depends_on_the_seed_of_the_run_alone() -> None:
    torch.manual_seed(1)
    one = with_adapter(fresh_random_model(), LORA, SPEC, 5).adapter
    torch.manual_seed(2)
    same = with_adapter(fresh_random_model(), LORA, SPEC, 5).adapter
    other = with_adapter(fresh_random_model(), LORA, SPEC, 6).adapter
    assert one is not None
    assert same is not None
    assert other is not None
    firsts = [name for name in one.tensors() if "lora_A" in name]
    assert all(torch.equal(one.tensors()[name], same.tensors()[name]) for name in firsts)
    assert not any(torch.equal(one.tensors()[name], other.tensors()[name]) for name in firsts)
    assert len({float(one.tensors()[name][0, 0]) for name in firsts}) == len(firsts)


def test_an_adapted_model_is_the_one_with_merged_weights() -> None:
    model = adapted()
    plain = merged_by_hand(model)
    token_ids = torch.randint(3, 80, (3, 12))
    torch.testing.assert_close(model.hidden(token_ids), plain.hidden(token_ids), rtol=0, atol=1e-10)
    state = model.state_dict()
    expected = plain.module.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-12)


@pytest.mark.parametrize("joined_bytes", [64_000_000, 0], ids=["merged", "factors"])
def test_the_sampler_writes_what_the_merged_model_writes(joined_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_decoder, "_MAX_JOINED_BYTES", joined_bytes)
    model = adapted()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    found = Sampler(model, 0, 1.0).sample(REQUESTS, 12)
    expected = Sampler(merged_by_hand(model), 0, 1.0).sample(REQUESTS, 12)
    as_module = Sampler(dataclasses.replace(model, is_llama_shaped=False), 0, 1.0).sample(REQUESTS, 12)
    for mine, theirs, third in zip(found, expected, as_module, strict=True):
        assert mine.completion_token_ids == theirs.completion_token_ids == third.completion_token_ids
        assert mine.completion_logprobs == pytest.approx(theirs.completion_logprobs, abs=1e-9)
        # The module's own norms run in float32.
        assert mine.completion_logprobs == pytest.approx(third.completion_logprobs, abs=1e-5)
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_gradients_are_those_of_the_merged_weights_through_both_factors() -> None:
    """dA = alpha/rank · Bᵀ·dW and dB = alpha/rank · dW·Aᵀ, with dW from training all weights of the merged model."""
    model = adapted()
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    _, of_merged = update(eight_rollouts(), model=merged_by_hand(model))
    _, found = update(eight_rollouts(), model=model)
    scale = LORA.alpha / LORA.rank
    checked = 0
    for name, gradient in found.items():
        if ".lora_" not in name:
            assert not gradient.any(), name
            continue
        stem = name.partition(".lora_")[0]
        down, up = (before[f"{stem}.lora_{part}.default.weight"] for part in "AB")
        whole = of_merged[f"{stem}.weight"]
        expected = scale * (up.T @ whole if ".lora_A." in name else whole @ down.T)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)
        checked += 1
    assert checked == 2 * 2 * 7


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_one_times_eight_is_four_times_two(micro_batch: int) -> None:
    whole, expected = update(eight_rollouts(), model=adapted())
    parts, found = update(eight_rollouts(), micro_batch=micro_batch, model=adapted())
    assert parts.loss == pytest.approx(whole.loss, abs=1e-12)
    assert_same(found, expected)


def test_recomputed_blocks_give_the_same_adapter() -> None:
    both = []
    for choice in ("never", "always"):
        student = Student(adapted(), tiny_spec(gradient_checkpointing=choice))
        student.update(eight_rollouts(), TEACHER, 0)
        both.append(list(student.parameter_names))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*both, strict=True))


def test_only_the_adapter_is_trained_and_has_optimizer_state() -> None:
    student = Student(adapted(), tiny_spec(optimizer={"learning_rate": 0.1, "warmup_steps": 0}))
    before = {name: p.detach().clone() for name, p in student.model.module.named_parameters()}
    student.update(eight_rollouts(), TEACHER, 0)
    changed = {name for name, p in student.model.module.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert changed == {name for name in before if ".lora_" in name} == set(student.parameter_names.values())
    assert len(student.optimizer.state) == len(changed)
    assert student.model.head.weight.grad is None


def test_named_layers_only_get_an_adapter() -> None:
    model = with_adapter(fresh_random_model(), Lora(rank=2, target_modules=("q_proj", "down_proj")), SPEC, 0)
    assert model.adapter is not None
    assert {name.rpartition(".")[2] for name in model.adapter.layers} == {"q_proj", "down_proj"}
    counted = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    assert model.shape.adapter is not None
    assert model.shape.adapter.parameters == model.adapter.num_parameters == counted


def test_a_layer_that_is_not_there_is_refused_by_the_name_of_the_field() -> None:
    with pytest.raises(RunError) as caught:
        with_adapter(fresh_random_model(), Lora(target_modules=("q_proj", "w_in")), SPEC, 0)
    assert caught.value.failure == "bad_model"
    assert [finding.field for finding in caught.value.findings] == ["adapter.target_modules"]
    assert caught.value.message == (
        "adapter.target_modules has w_in but the student's linear layers are "
        "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj; choose among them or leave it empty."
    )


def shared_pair() -> tuple[LanguageModel, LanguageModel]:
    """Student and teacher as a run loads them when both are one model."""
    path = {"path": "builtin:tiny/models/teacher"}
    spec = tiny_spec(student=path, teacher=path, adapter={"kind": "lora", "rank": 4})
    return load_models(spec, CPU, "float32")


def test_a_teacher_that_is_the_students_base_is_not_loaded_twice() -> None:
    student, teacher = shared_pair()
    assert teacher.module is student.module
    assert student.adapter is not None
    storages = {p.untyped_storage().data_ptr(): p.numel() for m in (student, teacher) for p in m.module.parameters()}
    plain = tiny_model("teacher")
    assert sum(storages.values()) == plain.num_parameters + student.adapter.num_parameters
    assert teacher.num_parameters == plain.num_parameters
    assert student.num_parameters == plain.num_parameters + student.adapter.num_parameters


def test_one_copy_gives_what_two_copies_give() -> None:
    ends: list[tuple[Update, list[Tensor], object]] = []
    for has_copy in (False, True):
        student_model, teacher = shared_pair()
        if has_copy:
            teacher = tiny_model("teacher", "teacher")
        assert student_model.adapter is not None
        for layer in student_model.adapter.layers.values():  # apart from its base, so that there is something to learn
            torch.nn.init.constant_(layer.lora_B["default"].weight, 0.02)
        student = Student(student_model, tiny_spec(optimizer={"learning_rate": 1e-2, "warmup_steps": 0}))
        for step in range(3):
            done = student.update(eight_rollouts(), teacher, step)
        written = Sampler(teacher, 0, 1.0).sample(REQUESTS, 8)
        ends.append((done, [p.detach().clone() for p in student.parameter_names], written))
    (mine, weights, texts), (theirs, expected, other_texts) = ends
    assert mine.loss > 0
    assert dataclasses.replace(mine, flops=theirs.flops) == theirs
    assert mine.flops == theirs.flops
    assert all(torch.equal(one, two) for one, two in zip(weights, expected, strict=True))
    assert texts == other_texts


def test_the_base_never_sees_the_adapter_and_the_adapter_stays_on() -> None:
    model = adapted()
    base, plain = base_of(model), fresh_random_model()
    token_ids = torch.randint(3, 80, (2, 9))
    before = model.hidden(token_ids)
    looks: list[tuple[str, Callable[[LanguageModel], object]]] = [
        ("hidden", lambda m: m.hidden(token_ids).tolist()),
        ("sampler", lambda m: Sampler(m, 0, 1.0).sample(REQUESTS, 6)),
        ("module", lambda m: Sampler(dataclasses.replace(m, is_llama_shaped=False), 0, 1.0).sample(REQUESTS, 6)),
        ("weights", lambda m: {name: tensor.tolist() for name, tensor in m.state_dict().items()}),
    ]
    for name, look in looks:
        assert look(base) == look(plain), name
        assert look(model) != look(plain), name
    assert torch.equal(model.hidden(token_ids), before)
    assert all(p.requires_grad for n, p in model.module.named_parameters() if ".lora_" in n)


def test_under_bfloat16_the_frozen_base_is_bfloat16_and_the_adapter_float32() -> None:
    spec = ModelSpec(path="builtin:tiny/models/student-plan")
    base = load_language_model(spec, "student", CPU, "bfloat16", is_frozen=True)
    model = with_adapter(base, LORA, spec, 0)
    student = Student(model, tiny_spec(optimizer={"learning_rate": 1e-2, "warmup_steps": 0}))
    teacher = tiny_model("teacher", "teacher")
    exact = Student(with_adapter(tiny_model(), LORA, spec, 0), student.spec).update(eight_rollouts(), teacher, 0).loss
    assert student.update(eight_rollouts(), teacher, 0).loss == pytest.approx(exact, rel=0.02)
    assert student.update(eight_rollouts(), teacher, 1).loss < exact
    dtypes = {(".lora_" in name, p.dtype) for name, p in model.module.named_parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    merged = model.state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert merged.dtype == torch.float32
    gap = Student(model, student.spec).update(Sampler(model, 0, 1.0).sample(REQUESTS, 8), teacher, 0).logprob_gap
    assert gap < 0.05
