"""Parity with TRL 1.16: loss and gradients of its chunked divergence, and of its IW-OPD loss, on the same ids.

    pip install -e '.[peer]'; python -m benchmarks.trl_parity [--json]

The student of the tiny pair samples completions; both libraries then get the same hidden states and heads. TRL computes in
float32, so both are also held against a float64 computation over the whole [N, V] in one piece: a difference of ours to
TRL's that is no larger than TRL's own rounding is no difference of method.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from torch import Tensor

from engine.batch import RolloutBatch
from engine.divergences import JSD, DistributionDivergence, ForwardKL, ReverseKL
from engine.fused_loss import Heads, fused_divergence
from engine.language_model import LanguageModel, OutputHead, load_language_model
from engine.model_spec import ModelSpec
from engine.objective import Objective
from engine.policy_gradient import PolicyGradient
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.token_weighting import weights_of_batch
from engine.token_weights import RemainingAdvantage

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
PROMPTS = ["k3 k2 c2 c3 c3 5 N14 |", "k0 k1 c0 c5 c3 2 N13 |", "k2 k2 c1 c1 c4 9 N16 |"]
ROLLOUTS, HORIZON, GAMMA = 4, 48, 0.5
# Of the largest entry; float32 rounds at 6e-8, and a gradient of the head sums over all tokens.
TOLERANCE = 1e-5
# TRL's beta: 0 is the forward KL, 1 the reverse KL, between them the mixture's weight of the teacher.
CASES: list[tuple[str, DistributionDivergence, float]] = [
    ("forward KL", ForwardKL(), 0.0),
    ("reverse KL", ReverseKL(), 1.0),
    ("JSD 0.5", JSD(beta=0.5), 0.5),
    ("JSD 0.1", JSD(beta=0.1), 0.1),
]


@dataclass(frozen=True)
class Sampled:
    """The tokens that both libraries get, and what the models make of them."""

    rollouts: list[Rollout]
    batch: RolloutBatch
    student: LanguageModel
    teacher: LanguageModel
    student_hidden: Tensor
    teacher_hidden: Tensor


@dataclass(frozen=True)
class Outcome:
    """A loss, and its gradient by hidden states and head."""

    loss: Tensor
    gradients: tuple[Tensor, Tensor]


def sampled() -> Sampled:
    """Completions of the tiny student at temperature 1, and hidden states of both models on them."""
    device = torch.device("cpu")
    student = load_language_model(ModelSpec(path="builtin:tiny/models/student-skill"), "student", device, "float32")
    teacher = load_language_model(ModelSpec(path="builtin:tiny/models/teacher"), "teacher", device, "float32")
    requests = [
        RolloutRequest(index, student.tokenizer(prompt)["input_ids"], ROLLOUTS, 1)
        for index, prompt in enumerate(PROMPTS)
    ]
    rollouts = Sampler(student, 0, 1.0).sample(requests, HORIZON)
    batch = RolloutBatch.collate(rollouts, student.pad_token_id, device)
    with torch.no_grad():
        hidden = [model.hidden(batch.token_ids).flatten(0, 1)[batch.hidden_index] for model in (student, teacher)]
    return Sampled(rollouts, batch, student, teacher, *hidden)


def outcome(loss_of: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor) -> Outcome:
    """The loss of (hidden, weight) with its gradient by both."""
    leaves = hidden.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    loss = loss_of(*leaves)
    by_hidden, by_weight = torch.autograd.grad(loss, leaves)
    return Outcome(loss.detach(), (by_hidden, by_weight))


def compared(name: str, ours: Outcome, theirs: Outcome, exact: Outcome) -> dict[str, float | str]:
    """Differences of the loss and of both gradients, relative to the largest entry of the float64 computation."""
    row: dict[str, float | str] = {"case": name, "loss": float(exact.loss)}
    for part, find in (
        ("loss", lambda one: one.loss),
        ("hidden", lambda one: one.gradients[0]),
        ("head", lambda one: one.gradients[1]),
    ):
        wanted = find(exact)
        scale = float(wanted.abs().max())
        pairs = {"ours_to_trl": (ours, theirs), "ours_to_float64": (ours, exact), "trl_to_float64": (theirs, exact)}
        for label, (a, b) in pairs.items():
            row[f"{part}_{label}"] = float((find(a).double() - find(b).double()).abs().max()) / scale
    return row


def divergence_row(
    given: Sampled,
    name: str,
    divergence: DistributionDivergence,
    beta: float,
    temperature: float,
    softcap: float | None,
) -> dict[str, float | str]:
    """Our fused loss and TRL's ChunkedDivergenceFunction on one divergence."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    num_tokens = len(given.batch.target_ids)
    mine, theirs = given.student.head.weight.detach(), given.teacher.head.weight.detach()
    vocabulary = len(mine)

    def by_us(hidden: Tensor, weight: Tensor) -> Tensor:
        heads = Heads(
            OutputHead(weight, None, 1.0, softcap, vocabulary),
            OutputHead(theirs, None, 1.0, softcap, vocabulary),
            temperature,
        )
        return fused_divergence(
            hidden, given.teacher_hidden, given.batch.target_ids,
            heads=heads, objective=Objective(divergence), num_supervised_tokens=num_tokens,
        ).total  # fmt: skip

    def by_trl(hidden: Tensor, weight: Tensor) -> Tensor:
        per_token, _ = ChunkedDivergenceFunction.apply(
            hidden, weight, None, given.teacher_hidden, theirs, None, beta, temperature, 1.0, softcap, 1.0, softcap
        )
        return per_token.sum() / num_tokens

    def in_one_piece(hidden: Tensor, weight: Tensor) -> Tensor:
        def logprobs(states: Tensor, head: Tensor) -> Tensor:
            logits = states.double() @ head.double().T
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            return torch.log_softmax(logits / temperature, -1)

        return divergence.between(logprobs(hidden, weight), logprobs(given.teacher_hidden, theirs)).mean()

    label = f"{name}, T {temperature:g}" + (f", softcap {softcap:g}" if softcap else "")
    runs = [outcome(by, given.student_hidden, mine) for by in (by_us, by_trl, in_one_piece)]
    return compared(label, *runs)


def iw_opd_row(given: Sampled, temperature: float) -> dict[str, float | str]:
    """Our policy gradient with IW-OPD weights and TRL's IW-OPD loss, whose method needs no more of its trainer than three numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.iw_opd.iw_opd_trainer import IWOPDTrainer

    num_tokens = len(given.batch.target_ids)
    mine, theirs = given.student.head, given.teacher.head
    counts = [len(rollout.supervised) for rollout in given.rollouts]
    with torch.no_grad():
        teacher = torch.log_softmax(theirs.logits(given.teacher_hidden) / temperature, -1)
        teacher = teacher.gather(-1, given.batch.target_ids[:, None]).squeeze(-1)

    def padded(values: Tensor, filler: float) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(values.split(counts)), batch_first=True, padding_value=filler)

    trainer = SimpleNamespace(
        temperature=temperature, iw_opd_gamma=GAMMA, iw_opd_epsilon=1e-8, model=SimpleNamespace(training=True),
        _metrics={"train": _Anything()},
    )  # fmt: skip

    def by_trl(hidden: Tensor, weight: Tensor) -> Tensor:
        ids = given.batch.target_ids
        loss: Tensor = IWOPDTrainer._compute_iw_opd_loss(
            trainer,
            padded(hidden @ weight.T, 0.0),
            padded(ids, 0),
            padded(ids, -100),
            padded(teacher.to(hidden.dtype), 0.0),
        )
        return loss

    def by_us(hidden: Tensor, weight: Tensor) -> Tensor:
        heads = Heads(replace(mine, weight=weight), theirs, temperature)
        objective = Objective(PolicyGradient())
        states = hidden.detach(), given.teacher_hidden
        weights = weights_of_batch(
            RemainingAdvantage(gamma=GAMMA), given.batch, *states, heads=heads, objective=objective
        )
        loss = fused_divergence(
            hidden, given.teacher_hidden, given.batch.target_ids,
            heads=heads, objective=objective, num_supervised_tokens=num_tokens, weights=weights,
        )  # fmt: skip
        # TRL reports the surrogate -log s·w·a, we the weighted estimate of the divergence; their gradients are to agree.
        reward = given_reward(loss.student_logprob)
        assert weights is not None, "IW-OPD has weights"
        surrogate = -(loss.student_logprob * weights * reward).sum() / num_tokens
        return loss.total + (surrogate - loss.total).detach()

    def given_reward(student_logprob: Tensor) -> Tensor:
        return teacher.to(student_logprob.dtype) - student_logprob

    def in_float64(hidden: Tensor, weight: Tensor) -> Tensor:
        return by_trl(hidden.double(), weight.double())

    runs = [outcome(by, given.student_hidden, mine.weight) for by in (by_us, by_trl, in_float64)]
    return compared(f"IW-OPD policy gradient, T {temperature:g}", *runs)


class _Anything(dict[str, list[float]]):
    def __missing__(self, key: str) -> list[float]:
        return self.setdefault(key, [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    given = sampled()
    rows = [divergence_row(given, *case, temperature, None) for case in CASES for temperature in (1.0, 0.6)]
    rows += [divergence_row(given, *case, 1.0, 5.0) for case in CASES]
    rows += [iw_opd_row(given, temperature) for temperature in (1.0, 0.6)]
    worst = max(float(value) for row in rows for key, value in row.items() if key.endswith("ours_to_trl"))
    if arguments.json:
        print(json.dumps({"tokens": len(given.batch.target_ids), "worst": worst, "rows": rows}))
        return int(worst > TOLERANCE)
    print(
        f"{len(given.batch.target_ids)} tokens of {len(given.rollouts)} rollouts; relative differences, ours to TRL's (TRL's to float64)"
    )
    for row in rows:
        parts = (
            f"{part} {row[f'{part}_ours_to_trl']:.1e} ({row[f'{part}_trl_to_float64']:.1e})"
            for part in ("loss", "hidden", "head")
        )
        print(f"{row['case']:34} loss {row['loss']:8.5f}: {', '.join(parts)}")
    print(f"Worst: {worst:.1e}; the limit is {TOLERANCE:.0e}.")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
