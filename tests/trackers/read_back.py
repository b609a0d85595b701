"""Reads a run back with the tracker's own reader and prints it as JSON; it runs in the environment with the trackers.

python read_back.py TRACKER FOLDER RUN_ID: {"runs": how many there are, "metrics": {name: [[step, value], …]}, "units", "parameters",
"notes"}.
"""

import json
import os
import struct
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

PROJECT = "incipit"


def tensorboard(out: Path, run_id: str) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data
    from tensorboard.util.tensor_util import make_ndarray

    read = EventAccumulator(str(out / run_id), size_guidance={"tensors": 0})
    read.Reload()
    metrics, units, notes = {}, {}, {}
    for name in read.Tags()["tensors"]:
        kind = read.SummaryMetadata(name).plugin_data.plugin_name
        points = [(event.step, make_ndarray(event.tensor_proto)) for event in read.Tensors(name)]
        if kind == "scalars":
            metrics[name] = [(step, float(value)) for step, value in points]
            units[name] = read.SummaryMetadata(name).summary_description
        elif kind == "text":
            notes[name] = points[-1][1].item().decode()
    content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    given = parse_session_start_info_plugin_data(content).hparams
    parameters = {name: getattr(value, value.WhichOneof("kind")) for name, value in given.items()}
    return {
        "runs": len(list(out.glob("*/events.out.*"))),
        "metrics": metrics,
        "units": units,
        "parameters": parameters,
        "notes": notes,
    }


def mlflow(out: Path, run_id: str) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{out.absolute() / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name(PROJECT).experiment_id])
    run = next(run for run in runs if run.data.tags["incipit.run_id"] == run_id)
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    tags = run.data.tags
    return {
        "runs": len(runs),
        "metrics": {name: [(point.step, point.value) for point in points] for name, points in histories.items()},
        "units": {name.removeprefix("unit."): text for name, text in tags.items() if name.startswith("unit.")},
        "parameters": run.data.params,
        "notes": {name.replace(".", "/", 1): text for name, text in tags.items()},
        "status": run.info.status,
    }


def wandb(out: Path, run_id: str) -> dict[str, Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    files = list(out.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    result: dict[str, Any] = {
        "runs": len(files),
        "metrics": defaultdict(list),
        "parameters": {},
        "notes": {},
        "tags": [],
    }
    for data in _leveldb_records(files[0].read_bytes()):
        record = Record.FromString(data)
        for item in (*record.run.config.update, *record.config.update):
            result["parameters"][item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        for item in record.summary.update:
            result["notes"]["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        result["tags"] = list(record.run.tags) or result["tags"]
        line = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for name, value in line.items():
            if not name.startswith("_") and name != "step":
                result["metrics"][name].append((line["step"], value))
    result["units"] = result["parameters"].pop("units")
    return result


def _leveldb_records(data: bytes) -> list[bytes]:
    """Records of a LevelDB log behind W&B's header of 7 bytes: blocks of 32 KiB, each fragment (crc 4, length 2, type 1)."""
    assert data[:4] == b":W&B"
    records, place, begun = [], 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        begun += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole, or its last fragment
            records.append(begun)
            begun = b""
    return records


def trackio(out: Path, run_id: str) -> dict[str, Any]:
    os.environ["TRACKIO_DIR"] = str(out)
    import trackio as library
    from trackio.sqlite_storage import SQLiteStorage

    runs = list(library.Api().runs(PROJECT))
    run = next(run for run in runs if run.name.endswith(run_id))
    metrics = defaultdict(list)
    for line in SQLiteStorage.get_logs(PROJECT, run.name, run_id=run.id):
        for name, value in line.items():
            if name not in ("step", "timestamp"):
                metrics[name].append((line["step"], value))
    notes = {alert["title"]: alert["text"] for alert in run.alerts()}
    return {
        "runs": len(runs),
        "metrics": metrics,
        "units": json.loads(notes["fact/units"]),
        "parameters": run.config,
        "notes": notes,
    }


if __name__ == "__main__":
    read = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb, "trackio": trackio}[sys.argv[1]]
    print("\n" + json.dumps(read(Path(sys.argv[2]), sys.argv[3])))
