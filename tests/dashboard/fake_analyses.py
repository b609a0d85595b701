"""Analyses in each state, as the API would tell of them."""

from fake_records import NOW

from backend.analyses import Analysis, AnalysisState
from engine.analysis_spec import AnalysisResult, AnalysisRow, AnalysisSpec, TeacherPrefix
from engine.findings import Finding
from engine.spec import RunSpec

_ACCURACIES = {0: 0.39, 4: 0.92, 8: 1.0, 16: 1.0}


def analysis(state: AnalysisState, run: RunSpec, asked: AnalysisSpec | None = None) -> Analysis:
    """One in this state, called a-STATE."""
    result = AnalysisResult(
        kind="teacher_prefix", axis="teacher tokens at the start", measure="accuracy", interval="95 % over prompts (Wilson)",
        rows=[
            AnalysisRow(start=k, end=k + 1, value=v, low=max(0, v - 0.1), high=min(1, v + 0.1), count=64, details={"eos_rate": 1.0})
            for k, v in _ACCURACIES.items()
        ],
        sentences=["Alone, the student is right in 0.390 [0.290, 0.490]."], num_prompts=64, seconds=3.2,
    )  # fmt: skip
    failed = [Finding(field="teacher.path", message="teacher.path is '/nowhere', but there is no such folder.")]
    return Analysis(
        id=f"a-{state}", created_at=NOW, spec=asked or AnalysisSpec(run=run, analysis=TeacherPrefix()), state=state,
        done={"running": 0.4, "succeeded": 1.0}.get(state, 0.0), detail="the student goes on from 8 tokens",
        eta_seconds=12.0 if state == "running" else None, findings=failed if state == "failed" else [],
        result=result if state == "succeeded" else None, started_at=NOW, finished_at=None,
    )  # fmt: skip
