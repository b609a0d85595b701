"""The sampled-token estimator of the reverse KL and its policy gradient. N tokens of a chunk, V vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from engine.divergences import ReverseKL, TokenObjective, TokenScores

if TYPE_CHECKING:
    from torch import Tensor


class PolicyGradient(TokenObjective):
    """Reverse KL from the sampled token alone (the k1 estimator), by policy gradient: the reward is log teacher - log student.

    Each token is rewarded for itself (discount 0), so that on the student's own samples the expected gradient is the
    gradient of the reverse KL at that position. On texts that another model wrote it is not.
    """

    kind: Literal["policy_gradient"] = "policy_gradient"
    baseline: Literal["none", "closed_form"] = "none"
    """closed_form subtracts the reward's exact mean, -KL(student‖teacher), which lowers the variance (vOPD, arXiv 2605.07865)."""

    def per_token(self, scores: TokenScores) -> Tensor:
        """log student - log teacher of the token, [N], in nats; its gradient is that of -log student · (reward - baseline)."""
        ids = scores.token_ids[:, None]
        student = scores.student_logprobs.gather(-1, ids).squeeze(-1)
        reward = scores.teacher_logprobs.gather(-1, ids).squeeze(-1) - student.detach()
        advantage = reward
        if self.baseline == "closed_form":
            advantage = reward + ReverseKL().between(scores.student_logprobs.detach(), scores.teacher_logprobs)
        # The difference is 0: it changes the gradient and not the value, which stays comparable with the reverse KL.
        return -reward - advantage * (student - student.detach())
