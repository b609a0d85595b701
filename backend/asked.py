"""What a worker answers without training, and what it finds: one queue for analyses, questions and exports."""

from backend.exports import QueuedExport
from backend.playground import QueuedQuestion
from engine.analysis_spec import AnalysisResult, AnalysisSpec
from engine.export_spec import ExportResult
from engine.playground_spec import PlaygroundResult

Asked = AnalysisSpec | QueuedQuestion | QueuedExport
Found = AnalysisResult | PlaygroundResult | ExportResult
