"""The ready experiments that come with Incipit: experiments/presets/*.json."""

from functools import cache
from pathlib import Path

from backend.schemas import Preset
from engine.locations import resolve


@cache
def presets() -> tuple[Preset, ...]:
    """All presets, by file name."""
    folder = Path(resolve("builtin:presets"))
    return tuple(Preset.model_validate_json(path.read_bytes()) for path in sorted(folder.glob("*.json")))
