"""Recomputing blocks changes memory and FLOPs, and no figure of the update."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from engine.errors import RunError
from engine.gradient_checkpointing import checkpoint_blocks
from engine.language_model import LanguageModel
from engine.rollout import RolloutRequest
from engine.sampler import Sampler
from engine.student import Student
from engine.update import Update
from tests.engine.models import fresh_random_model, random_model, tiny_model, tiny_spec
from tests.engine.test_batch_laws import eight_rollouts

TEACHER = random_model(1, hidden=32)


def updated(choice: str, model: LanguageModel, *, micro_batch: int = 16) -> tuple[Update, list[Tensor]]:
    """An update and the weights behind it."""
    spec = tiny_spec(
        gradient_checkpointing=choice,
        micro_batch_rollouts=micro_batch,
        optimizer={"learning_rate": 1e-2, "warmup_steps": 0},
    )
    student = Student(model, spec)
    done = student.update(eight_rollouts(), TEACHER, 0)
    return done, [parameter.detach() for parameter in student.model.module.parameters()]


def test_an_update_is_the_same_bit_for_bit() -> None:
    plain, expected = updated("never", fresh_random_model())
    again, found = updated("always", fresh_random_model())
    assert again.loss == plain.loss
    assert again.grad_norm == plain.grad_norm
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_one_times_eight_is_four_times_two() -> None:
    _, expected = updated("never", fresh_random_model(), micro_batch=8)
    _, found = updated("always", fresh_random_model(), micro_batch=2)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


def test_an_update_under_bfloat16_recomputes_in_bfloat16() -> None:
    models = [dataclasses.replace(tiny_model(), autocast_dtype=torch.bfloat16) for _ in range(2)]
    (plain, expected), (again, found) = (updated(c, m) for c, m in zip(("never", "always"), models, strict=True))
    assert again.loss == plain.loss
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_sampling_with_recomputing_blocks_is_the_same() -> None:
    request = RolloutRequest(0, [1, 5, 6], 4, 1)
    student = fresh_random_model()
    expected = Sampler(student, 0, 1.0).sample([request], 6)
    checkpoint_blocks(student.module)
    assert Sampler(student, 0, 1.0).sample([request], 6) == expected
    as_module = dataclasses.replace(student, is_llama_shaped=False)
    found = Sampler(as_module, 0, 1.0).sample([request], 6)
    assert [one.completion_token_ids for one in found] == [one.completion_token_ids for one in expected]


class Made(TorchDispatchMode):
    """Watches the memory that the operations within it allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[StorageWeakRef(storage)] = storage.nbytes()
        return out

    @property
    def alive_bytes(self) -> int:
        return sum(size for storage, size in self.made.items() if not storage.expired())


def test_less_is_held_for_the_backward_pass() -> None:
    held = {}
    for choice in ("never", "always"):
        model = fresh_random_model()
        if choice == "always":
            checkpoint_blocks(model.module)
        token_ids = torch.randint(3, 80, (8, 32))
        with Made() as made:
            hidden = model.hidden(token_ids, use_cache=False)
        assert hidden.requires_grad
        held[choice] = made.alive_bytes
    assert held["always"] < held["never"] / 3, held


def test_the_ledger_counts_the_recomputation_as_torch_does() -> None:
    plain, _ = updated("never", fresh_random_model())
    again, _ = updated("always", fresh_random_model())
    assert plain.flops.recompute == 0
    assert again.flops.model_copy(update={"recompute": 0.0}) == plain.flops
    n = 17
    counted = []
    for model in (fresh_random_model(), fresh_random_model()):
        if counted:
            checkpoint_blocks(model.module)
        hidden = model.hidden(torch.randint(3, 80, (1, n)), use_cache=False)
        with FlopCounterMode(display=False) as counter:
            hidden.sum().backward()
        counted.append(counter.get_total_flops())
    shape = random_model().shape
    # The counter does not see the fused attention of a CPU.
    attention = 2.0 * shape.attention_width * n * (n + 1)
    assert counted[1] - counted[0] == shape.recompute(n) - attention


def test_an_architecture_without_such_blocks_is_refused_by_the_name_of_the_field() -> None:
    class Blockless(GPT2LMHeadModel):
        def get_decoder(self) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.Linear(2, 2))

    with pytest.raises(RunError) as caught:
        checkpoint_blocks(Blockless(GPT2Config(n_layer=1, n_embd=4, n_head=2, vocab_size=8, n_positions=8)))
    assert caught.value.failure == "bad_model"
    assert [finding.field for finding in caught.value.findings] == ["gradient_checkpointing"]
