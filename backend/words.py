"""Values of a spec in a few words, for lists and charts."""

from engine.adaptive_prefixes import DivergenceSharePrefix, PlateauPrefix, ValidationPrefix
from engine.anchoring import EveryNthStep, FractionOfBatch
from engine.divergences import JSD, ForwardKL, ReverseKL, SkewKL
from engine.loss_region import SuffixRegion, WindowRegion
from engine.objective_spec import Divergence
from engine.policy_gradient import PolicyGradient
from engine.prefixes import (
    ConstantPrefix,
    CosinePrefix,
    FullPrefix,
    LinearPrefix,
    PrefixSchedule,
    RatioPrefix,
    StagesPrefix,
    StaircasePrefix,
)
from engine.spec import RunSpec
from engine.termination_guard import ForwardKLGuard
from engine.token_weights import NoWeights, PositionLinear, PositionPower, RemainingAdvantage, TokenWeighting, TopShare
from engine.topk_divergences import TeacherOrder, TopKKL

_MAX_STAGES = 3  # said one by one


def prefix_in_words(spec: RunSpec) -> str:
    """The horizons of a run, such as `8`, `16 + 1/step`, `full`, `8, every 8th full` or `full, loss on [32, 64)`."""
    parts = [schedule_in_words(spec.prefix)]
    cap = getattr(spec.prefix, "cap_tokens", None)
    if cap is not None:
        parts.append(f"at most {cap}")
    if isinstance(spec.loss_region, WindowRegion):
        parts.append(f"loss on [{spec.loss_region.start}, {spec.loss_region.end})")
    elif isinstance(spec.loss_region, SuffixRegion):
        parts.append(f"loss on the last {spec.loss_region.tokens}")
    if isinstance(spec.anchoring, EveryNthStep):
        parts.append(f"every {_ordinal(spec.anchoring.n)} full")
    elif isinstance(spec.anchoring, FractionOfBatch):
        parts.append(f"{spec.anchoring.share:.3g} of each batch full")
    return ", ".join(parts)


def schedule_in_words(prefix: PrefixSchedule) -> str:
    """The schedule alone, such as `16 + 16 every 20 steps` or `16 + 16 at plateaus`."""
    match prefix:
        case ConstantPrefix():
            return str(prefix.tokens)
        case RatioPrefix():
            return f"{prefix.share:.3g} of full"
        case FullPrefix():
            return "full"
        case LinearPrefix():
            return f"{prefix.start_tokens} + {prefix.increment_tokens:g}/step"
        case StaircasePrefix():
            return f"{prefix.start_tokens} + {prefix.increment_tokens} every {prefix.every_steps} steps"
        case CosinePrefix():
            return f"{prefix.start_tokens} to {prefix.end_tokens} along a cosine"
        case StagesPrefix():
            lengths = [str(stage.tokens) for stage in prefix.stages]
            return ", then ".join(lengths[:_MAX_STAGES]) + (", …" if len(lengths) > _MAX_STAGES else "")
        case PlateauPrefix():
            when = "at plateaus"
        case DivergenceSharePrefix():
            when = "while the outer part diverges"
        case ValidationPrefix():
            when = "when validation stalls"
    return f"{prefix.start_tokens} + {prefix.increment_tokens} {when}"


def objective_in_words(spec: RunSpec) -> str:
    """The divergence and what stands beside it, such as `reverse KL, TIP 0.5, stop guard 0.1`."""
    parts = [divergence_in_words(spec.divergence)]
    if not isinstance(spec.token_weights, NoWeights):
        parts.append(weights_in_words(spec.token_weights))
    if spec.merge_stop_tokens:
        parts.append("stops merged")
    if isinstance(spec.termination_guard, ForwardKLGuard):
        parts.append(f"stop guard {spec.termination_guard.weight:.3g}")
    return ", ".join(parts)


def weights_in_words(weighting: TokenWeighting) -> str:
    """Token weights, such as `position^-0.5` or `IW-OPD 0.5`."""
    match weighting:
        case PositionPower():
            return f"position^{weighting.exponent:.3g}"
        case PositionLinear():
            return f"position slope {weighting.slope:.3g}"
        case TopShare():
            return f"TIP {weighting.share:.3g}"
        case RemainingAdvantage():
            return f"IW-OPD {weighting.gamma:.3g}"
    return "all tokens alike"


def divergence_in_words(divergence: Divergence) -> str:
    """The divergence, such as `reverse KL`, `JSD(0.5)` or `reverse KL of the teacher's top 32 + tail`."""
    match divergence:
        case ReverseKL():
            return "reverse KL"
        case ForwardKL():
            return "forward KL"
        case JSD():
            return f"JSD({divergence.beta:g})"
        case SkewKL():
            return f"{divergence.direction} skew KL({divergence.alpha:g})"
        case TopKKL():
            owner = "both models'" if divergence.support == "union" else f"the {divergence.support}'s"
            rest = "+ tail" if divergence.rest == "tail_bucket" else "renormalised"
            return f"{divergence.direction} KL of {owner} top {divergence.k} {rest}"
        case PolicyGradient():
            return "policy gradient" + (" with baseline" if divergence.baseline == "closed_form" else "")
        case TeacherOrder():
            return f"order of the teacher's top {divergence.k}"


def _ordinal(n: int) -> str:
    if n % 100 in (11, 12, 13):
        return f"{n}th"
    return f"{n}{({1: 'st', 2: 'nd', 3: 'rd'}).get(n % 10, 'th')}"
