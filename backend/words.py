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
