"""How long should the prefix be? Figures and sentences from the traced rollouts of a run: an aid, not a verdict.

Where the student departs from the teacher, how sure the teacher is there, and how much probability both share. That the
teacher's signal weakens along the student's own text is the observation of arXiv 2605.30833; that the models share most
probability in healthy runs is that of arXiv 2604.13016.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from backend.divergence import AidCurve, PrefixAid
from engine.events import Subject
from engine.trace_profile import MAX_BINS, TraceProfile, bin_width, first_tokens

_WINDOW_SHARE = 16  # the smoothing takes this part of all bins: 1 of 16
_WEAK = 0.5


class AidProfile(NamedTuple):
    """The profile of a traced step, and where its prefix ended."""

    step: int
    subject: Subject
    horizon: int
    profile: TraceProfile


def prefix_aid_of(profiles: Sequence[AidProfile]) -> PrefixAid:
    """The aid from one or two steps of a run in their order, or an empty one."""
    if not profiles:
        return PrefixAid(bin_tokens=0, starts=[], curves=[], weak_from=None, sentences=[])
    width = bin_width(profiles[0].profile.length, MAX_BINS)
    curves = [_curve(one) for one in profiles]
    longest = max(len(curve.n) for curve in curves)
    weak_from = _weak_from(curves[0].reverse_kl, width)
    return PrefixAid(
        bin_tokens=width,
        starts=[width * at for at in range(longest)],
        curves=curves,
        weak_from=weak_from,
        sentences=_sentences(curves, width, weak_from, profiles[-1].profile.length),
    )


def _curve(one: AidProfile) -> AidCurve:
    profile, values = one.profile, one.profile.values
    sums = [mean * tokens for mean, tokens in zip(values["reverse_kl"].mean, profile.tokens, strict=True)]
    total = sum(sums)
    return AidCurve(
        step=one.step,
        subject=one.subject,
        horizon=one.horizon,
        num_rollouts=profile.num_rollouts,
        nats_per_rollout=profile.reverse_kl / profile.num_rollouts,
        n=profile.rollouts,
        reverse_kl=values["reverse_kl"].mean,
        teacher_entropy=values["teacher_entropy"].mean,
        overlap_mass=values["overlap_mass"].mean,
        cumulative_share=[part / total if total > 0 else 0.0 for part in accumulate(sums)],
    )


def _weak_from(means: Sequence[float], width: int) -> int | None:
    """The position behind the last window of bins whose mean is at least half of the first window's; None if that is the end."""
    size = max(1, len(means) // _WINDOW_SHARE)
    windows = [sum(means[at : at + size]) / size for at in range(len(means) - size + 1)]
    if windows[0] <= 0:
        return None
    last_strong = max(at for at, mean in enumerate(windows) if mean >= _WEAK * windows[0])
    weak = last_strong + 1
    return weak * width if weak < len(windows) else None


def _sentences(curves: Sequence[AidCurve], width: int, weak_from: int | None, length: int) -> list[str]:
    first, last = curves[0], curves[-1]
    said = []
    if first.cumulative_share[-1] > 0:
        half, most = (_tokens_that_hold(first, share, width) for share in (0.5, 0.9))
        begin = "" if half == most else f"half of it lies in the {first_tokens(half)} and "
        said.append(
            f"At step {first.step} a rollout holds {first.nats_per_rollout:.3g} nats of reverse KL on average: {begin}90 % lies in the "
            f"{first_tokens(most)} of {length:,} that a completion may have ({first.num_rollouts} rollouts)."
        )
    if weak_from is not None:
        said.append(
            f"From token {weak_from + 1:,} on, the mean reverse KL of step {first.step} stays below half of what it is at the start."
        )
    if last.horizon < length and last.cumulative_share[-1] > 0:
        inside = _share_inside(last, width)
        said.append(
            f"The prefix of {last.horizon:,} tokens holds {100 * inside:.0f} % of the {last.nats_per_rollout:.3g} nats of step "
            f"{last.step}; the rest lies behind it and was not trained at that step."
        )
    return said


def _tokens_that_hold(curve: AidCurve, share: float, width: int) -> int:
    return width * (1 + next(at for at, held in enumerate(curve.cumulative_share) if held >= share - 1e-9))


def _share_inside(curve: AidCurve, width: int) -> float:
    """To the end of the bin in which the horizon lies, and all of it when no rollout is longer."""
    inside = min(-(-curve.horizon // width), len(curve.cumulative_share))
    return curve.cumulative_share[inside - 1] if inside else 0.0
