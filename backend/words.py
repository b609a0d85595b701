"""Values of a spec in a few words, for lists and charts."""

from engine.divergences import JSD, Divergence, ForwardKL
from engine.loss_region import SuffixRegion, WindowRegion
from engine.prefixes import ConstantPrefix, EveryNthStep, LinearPrefix
from engine.spec import RunSpec


def prefix_in_words(spec: RunSpec) -> str:
    """The horizons of a run, such as `8`, `16 + 1/step`, `full`, `8, every 8th full` or `full, loss on [32, 64)`."""
    if isinstance(spec.prefix, ConstantPrefix):
        schedule = str(spec.prefix.tokens)
    elif isinstance(spec.prefix, LinearPrefix):
        schedule = f"{spec.prefix.start_tokens} + {spec.prefix.increment_tokens:g}/step"
    else:
        schedule = "full"
    parts = [schedule]
    if isinstance(spec.loss_region, WindowRegion):
        parts.append(f"loss on [{spec.loss_region.start}, {spec.loss_region.end})")
    elif isinstance(spec.loss_region, SuffixRegion):
        parts.append(f"loss on the last {spec.loss_region.tokens}")
    if isinstance(spec.anchoring, EveryNthStep):
        parts.append(f"every {_ordinal(spec.anchoring.n)} full")
    return ", ".join(parts)


def divergence_in_words(divergence: Divergence) -> str:
    """The divergence, such as `reverse KL` or `JSD(0.5)`."""
    if isinstance(divergence, JSD):
        return f"JSD({divergence.beta:g})"
    return "forward KL" if isinstance(divergence, ForwardKL) else "reverse KL"


def _ordinal(n: int) -> str:
    if n % 100 in (11, 12, 13):
        return f"{n}th"
    return f"{n}{({1: 'st', 2: 'nd', 3: 'rd'}).get(n % 10, 'th')}"
