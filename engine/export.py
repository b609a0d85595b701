"""Makes an export of a checkpoint: a plain folder, a GGUF file, or a repository of the hub.

A checkpoint is a plain Hugging Face folder already, with LoRA merged (engine/weights.py), beside the state of its training.
An export leaves that state out, casts the weights if asked to, and adds a model card. Files are written beside their place
and renamed when they are whole (engine/staging.py).
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.adapter_spec import Lora
from engine.disk_space import mebibytes
from engine.errors import RunError, is_out_of_space
from engine.events import FailureKind
from engine.export_meter import ExportMeter, Report
from engine.export_spec import ExportResult, ExportSpec, GgufFile, HubRepository, MergedFolder, SavedAs
from engine.findings import Finding
from engine.gguf_conversion import Conversion
from engine.hub_upload import HubUpload
from engine.locations import resolve
from engine.manifest import MANIFEST, Expected, Manifest, ManifestFile, damage_of
from engine.model_card import model_card
from engine.model_guard import problem_of_folder
from engine.staging import put_in_place, sealed_files, staging_beside, write_synced
from engine.weight_files import cast_weights, num_weights

CARD = "README.md"
_OF_TRAINING = ("trainer/", "adapter/")
_CHUNK_BYTES = 16 * 1024**2
_RESERVE_BYTES = 256 * 1024**2  # left for journals, the database and its log
_BYTES_OF_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_ADVICE = "export another one of the list."


@dataclass(frozen=True)
class Source:
    """The files of a checkpoint that make its model."""

    folder: Path
    files: list[ManifestFile]
    notes: list[str]

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


def export(asked: ExportSpec, report: Report, out: Path) -> ExportResult:
    """Make what is asked, as the new folder `out` unless it is for the hub; RunError with findings when it cannot be made."""
    began = time.monotonic()
    report(0.0, "looking at the checkpoint")
    folder = Path(resolve(asked.folder))
    source = _source(folder, asked)
    choice = asked.export
    try:
        match choice:
            case MergedFolder():
                result = _kept(asked, out, source, report)
            case GgufFile():
                conversion = Conversion(choice)  # refuses before anything is read
                result = _converted(conversion, asked, out, source, report)
            case HubRepository():
                result = _pushed(HubUpload(choice, asked), asked, out, source, report)
    except (FileNotFoundError, RunError) as error:  # the converter says it in words of its own
        if all((folder / file.name).exists() for file in source.files):
            raise
        message = f"The checkpoint was removed while it was exported; pin one to keep it, or {_ADVICE}"
        raise refused("checkpoint_id", message, "bad_checkpoint") from error
    except Exception as error:
        if not is_out_of_space(error):
            raise
        raise _no_room(out, source.num_bytes) from error
    report(1.0, "done")
    return result.model_copy(update={"seconds": time.monotonic() - began})


def refused(field: str, message: str, failure: FailureKind = "bad_spec") -> RunError:
    """The end of an export, at a field of its request."""
    return RunError(failure, message, [Finding(field=field, message=message)])


def _source(folder: Path, asked: ExportSpec) -> Source:
    """What is to be exported, as its manifest lists it. Contents are hashed later, beside the bar."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        message = f"The checkpoint at step {asked.card.step} is not there any more, or damaged; {_ADVICE}"
        raise refused("checkpoint_id", message, "bad_checkpoint") from error
    problem = problem_of_folder(folder)
    if problem is not None:
        raise refused("checkpoint_id", f"The checkpoint is {problem}.", "bad_checkpoint")
    # A tokenizer may have folders of its own, such as that of its named chat templates.
    files = [file for file in manifest.files if not file.name.startswith(_OF_TRAINING)]
    adapter = asked.card.spec.adapter
    note = (
        f"LoRA of rank {adapter.rank} is merged into the weights of the base."
        if isinstance(adapter, Lora)
        else "All weights were trained, so that nothing had to be merged: the model is that of the checkpoint, without its optimizer."
    )
    return Source(folder, files, [note])


def _verify(source: Source, asked: ExportSpec, meter: ExportMeter) -> None:
    manifest = Manifest.model_validate_json((source.folder / MANIFEST).read_bytes())
    meter.begin("verifying the checkpoint", manifest.num_bytes)
    expected = Expected(manifest_sha256=asked.manifest_sha256)
    damage = damage_of(source.folder, expected, on_chunk=lambda: meter.advance(_CHUNK_BYTES))
    if damage is not None:
        raise refused("checkpoint_id", f"The checkpoint is damaged: {damage}; {_ADVICE}", "bad_checkpoint")


def _kept(asked: ExportSpec, out: Path, source: Source, report: Report) -> ExportResult:
    assert isinstance(asked.export, MergedFolder)
    size = _size_as(source, asked.export.dtype)
    _require_room(out, size)
    meter = ExportMeter(report, _checkpoint_bytes(source) + 2 * size)
    _verify(source, asked, meter)
    staging = staging_beside(out)
    try:
        notes = _write_folder(staging, asked, source, asked.export.dtype, meter)
        return _in_place(staging, out, "merged", notes, meter)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _converted(conversion: Conversion, asked: ExportSpec, out: Path, source: Source, report: Report) -> ExportResult:
    size = conversion.expected_bytes(num_weights(source.folder))
    _require_room(out, size)
    meter = ExportMeter(report, _checkpoint_bytes(source) + 2 * size)
    _verify(source, asked, meter)
    staging, links = staging_beside(out), staging_beside(out)
    try:
        for file in source.files:
            _place(links, file.name).symlink_to(source.folder / file.name)
        # The converter reads title, base and tags out of the card.
        write_synced(links / CARD, model_card(asked.card, source.notes).encode())
        meter.begin(f"converting to {conversion.file_type}", size)
        path = staging / f"{asked.title}-{conversion.file_type}.gguf"
        conversion.run(links, path, asked.card.run_name, meter.advance)
        return _in_place(staging, out, "gguf", source.notes, meter)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(links, ignore_errors=True)


def _pushed(upload: HubUpload, asked: ExportSpec, out: Path, source: Source, report: Report) -> ExportResult:
    """What is sent is written down first: a repository gets all files in one commit, of bytes that do not change meanwhile."""
    assert isinstance(asked.export, HubRepository)
    size = _size_as(source, asked.export.dtype)
    _require_room(out, size)
    meter = ExportMeter(report, _checkpoint_bytes(source) + 3 * size)
    found = upload.found()
    if found is None:
        _verify(source, asked, meter)
    staging = staging_beside(out)
    try:
        notes = _write_folder(staging, asked, source, asked.export.dtype, meter)
        files = _sealed(staging, meter)
        meter.begin(f"sending to {asked.export.repository}", sum(file.num_bytes for file in files))
        sent = found or upload.send(staging, [file.name for file in files], meter.advance)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return ExportResult(
        kind="hub", files=files, is_kept=False, url=sent.url, commit=sent.commit, notes=[*notes, *sent.notes], seconds=0
    )


def _write_folder(staging: Path, asked: ExportSpec, source: Source, dtype: SavedAs, meter: ExportMeter) -> list[str]:
    """Write model, tokenizer and card into an empty folder; what a reader must know of them."""
    meter.begin("writing", _size_as(source, dtype))
    notes = list(source.notes)
    for file in source.files:
        target = _place(staging, file.name)
        if dtype == "saved" or not file.name.endswith(".safetensors"):
            _copy(source.folder / file.name, target, meter)
        else:
            lost = cast_weights(source.folder / file.name, target, dtype)
            if lost:
                message = f"export.dtype is float16, but {lost} weights lie beyond its largest number, 65,504; choose bfloat16 or float32."
                raise refused("export.dtype", message)
            meter.advance(target.stat().st_size)
    if dtype != "saved":
        config = staging / "config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"dtype": dtype}, indent=2, sort_keys=True) + "\n"
        )
        notes.append(f"The weights were cast to {dtype}.")
    write_synced(staging / CARD, model_card(asked.card, notes).encode())
    return notes


def _in_place(
    staging: Path, out: Path, kind: Literal["merged", "gguf"], notes: list[str], meter: ExportMeter
) -> ExportResult:
    files = _sealed(staging, meter)
    put_in_place(staging, out)
    return ExportResult(kind=kind, files=files, is_kept=True, notes=notes, seconds=0)


def _place(folder: Path, name: str) -> Path:
    """Where a file of the checkpoint goes in a new folder; what lies between is made."""
    path = folder / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _sealed(staging: Path, meter: ExportMeter) -> list[ManifestFile]:
    meter.begin("hashing", sum(path.stat().st_size for path in staging.rglob("*") if path.is_file()))
    return sealed_files(staging)


def _copy(source: Path, target: Path, meter: ExportMeter) -> None:
    with source.open("rb") as reading, target.open("xb") as writing:
        while chunk := reading.read(_CHUNK_BYTES):
            writing.write(chunk)
            meter.advance(len(chunk))


def _checkpoint_bytes(source: Source) -> int:
    return Manifest.model_validate_json((source.folder / MANIFEST).read_bytes()).num_bytes


def _size_as(source: Source, dtype: SavedAs) -> int:
    """About the bytes of the folder that is written."""
    if dtype == "saved":
        return source.num_bytes
    others = sum(file.num_bytes for file in source.files if not file.name.endswith(".safetensors"))
    return others + int(_BYTES_OF_WEIGHT[dtype] * num_weights(source.folder))


def _require_room(out: Path, num_bytes: int) -> None:
    parent = next(one for one in out.parents if one.is_dir())
    if shutil.disk_usage(parent).free < num_bytes + _RESERVE_BYTES:
        raise _no_room(out, num_bytes)


def _no_room(out: Path, num_bytes: int) -> RunError:
    parent = next(one for one in out.parents if one.is_dir())
    free = mebibytes(shutil.disk_usage(parent).free)
    message = (
        f"{free} are free on the disk of {parent}, but the export needs {mebibytes(num_bytes + _RESERVE_BYTES)} "
        f"({mebibytes(_RESERVE_BYTES)} in reserve); free some, or choose 16 bits or q8_0."
    )
    return refused("", message, "disk_full")
