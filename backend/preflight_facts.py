"""What a preflight adds to the engine's findings: the estimated cost beside the memory of the device that it looked at."""

from collections.abc import Mapping

from backend.estimate import estimate
from backend.problems import Refusal
from engine.findings import Finding
from engine.spec import RunSpec

Facts = dict[str, int | float | str | None]


def estimated_facts(spec: RunSpec, facts: Mapping[str, int | float | str | None]) -> tuple[Facts, list[Finding]]:
    """The facts with estimated memory and FLOPs, and a warning when the device has less memory than that.

    Models whose config.json is not on this machine have no estimate.
    """
    try:
        found = estimate(spec, [])
    except Refusal:
        return dict(facts), []
    estimated: Facts = {
        "estimated_memory_bytes": found.memory_total_bytes,
        "estimated_training_flops": found.flops.training,
        "estimated_evaluation_flops": found.flops.evaluation,
    }
    available = facts.get("device_memory_bytes")
    needed = found.memory_total_bytes if found.memory_least_bytes is None else found.memory_least_bytes
    if not isinstance(available, int) or needed <= available:
        return {**facts, **estimated}, []
    message = (
        f"micro_batch_rollouts is {spec.micro_batch_rollouts} and the run needs about {needed / 1e9:.1f} GB of memory, "
        f"of which the worker's device has {available / 1e9:.1f} GB; lower micro_batch_rollouts or max_completion_tokens, set "
        "adapter to lora or choose smaller models."
    )
    return {**facts, **estimated}, [Finding(field="micro_batch_rollouts", message=message, severity="warning")]
