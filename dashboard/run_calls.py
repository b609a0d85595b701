"""What the API says of one run: its traced rollouts taken together, and what it ran on."""

from backend.divergence import DivergenceGrid, DivergentTokens, PositionQuantiles, PrefixAid
from backend.resources import RunResources
from dashboard.api_transport import ApiTransport
from engine.trace_profile import TraceMetric


class RunCalls(ApiTransport):
    """A part of ApiClient."""

    def divergence_grid(self, run_id: str, metric: TraceMetric) -> DivergenceGrid:
        """A quantity by position and step, in at most 64 x 60 cells."""
        return self._get(f"/api/v1/runs/{run_id}/divergence/grid", DivergenceGrid, {"metric": metric})

    def divergence_positions(self, run_id: str, metric: TraceMetric, step: int) -> PositionQuantiles:
        """Mean and quantiles by position at a step."""
        wanted = {"metric": metric, "step": step}
        return self._get(f"/api/v1/runs/{run_id}/divergence/positions", PositionQuantiles, wanted)

    def divergent_tokens(self, run_id: str, *, step: int | None = None, limit: int = 50) -> DivergentTokens:
        """The token types with most of the reverse KL, over all traced steps if none is named."""
        wanted = {"step": step, "limit": limit}
        return self._get(f"/api/v1/runs/{run_id}/divergence/tokens", DivergentTokens, wanted)

    def prefix_aid(self, run_id: str, step: int) -> PrefixAid:
        """Figures for the choice of a prefix: of the first traced step and of this one."""
        return self._get(f"/api/v1/runs/{run_id}/prefix-aid", PrefixAid, {"step": step})

    def run_resources(self, run_id: str) -> RunResources:
        """Where the run's attempts ran, and samples of what they used."""
        return self._get(f"/api/v1/runs/{run_id}/resources", RunResources)
