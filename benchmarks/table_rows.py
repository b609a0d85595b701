"""From what the benchmarks print to the rows of the tables in docs/performance.md; each row is its cells."""

from __future__ import annotations

from typing import Any

Row = list[str]


def step_rate_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            str(one["horizon"]),
            f"{one['ours_step_seconds'] * 1e3:.1f}",
            f"{one['generate_step_seconds'] * 1e3:.1f}",
            f"{one['step_ratio']:.2f}",
            f"{one['sampling_ratio']:.2f}",
        ]
        for one in result["results"]
    ]


def run_list_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            result["database"],
            f"{result['list_milliseconds_median']:.0f}",
            f"{result['list_cpu_milliseconds']:.0f}",
            f"{result['create_milliseconds']:.0f}",
        ]
    ]


def memory_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [str(one["tokens"]), f"{one['fused_bytes'] / 1e6:.0f}", f"{one['naive_bytes'] / 1e6:.0f}"]
        for one in result["results"]
    ]


def estimate_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            one["case"],
            f"{one['estimate_bytes'] / 1e6:.0f}",
            f"{one['peak_bytes'] / 1e6:.0f}",
            f"{one['estimate_bytes'] / one['peak_bytes']:.2f}",
            f"{one['process_bytes'] / 1e6:.0f}",
        ]
        for one in result["results"]
    ]


def prefix_memory_rows(result: dict[str, Any]) -> list[Row]:
    names = (
        "peak", "estimate", "held", "activations", "cache", "divergence", "loss_fused", "loss_whole", "peak_with_whole_logits",
    )  # fmt: skip
    return [[str(one["prefix"]), *(f"{one[f'{name}_bytes'] / 1e6:.0f}" for name in names)] for one in result["results"]]


def counted_shape_rows(result: dict[str, Any]) -> list[Row]:
    phases = ("rollout", "teacher", "student_forward", "student_backward", "recompute")
    return [
        [
            *_shape_cells(result, one),
            *(f"{100 * one['shares'][phase]:.0f} %" for phase in phases),
            f"{one['memory_bytes'] / 1e9:.0f}",
        ]
        for one in result["results"]
    ]


def measured_shape_rows(result: dict[str, Any]) -> list[Row]:
    longest = max(one["seconds"] for one in result["results"])
    return [
        [
            *_shape_cells(result, one),
            f"{one['rollout_seconds']:.1f}",
            f"{one['update_seconds']:.1f}",
            f"{longest / one['seconds']:.1f}",
            f"{one['peak_bytes'] / 1e9:.0f}",
        ]
        for one in result["results"]
    ]


def _shape_cells(result: dict[str, Any], one: dict[str, Any]) -> Row:
    """Pair, prefix, TFLOP of a step, and how many times fewer that is than at the longest prefix."""
    full = max(other["training_flops"] for other in result["results"])
    flops = one["training_flops"]
    return [
        f"{result['student']} ← {result['teacher']}",
        str(one["prefix"]),
        f"{flops / 1e12:.0f}",
        f"{full / flops:.1f}",
    ]


def shape_memory_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            f"{one['student']} ← {one['teacher']}",
            one["trained"],
            f"{one['usual_bytes'] / 1e9:.0f}",
            f"{one['least_bytes'] / 1e9:.0f}",
        ]
        for one in result["results"]
    ]


def recorded_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            one["database"],
            str(one["batch"]),
            str(one["steps"]),
            f"{one['points_per_second']:,}",
            f"{one['p50_milliseconds']:.0f}",
            f"{one['p95_milliseconds']:.0f}",
            f"{one['cpu_milliseconds']:.1f}",
        ]
        for one in result["results"]
    ]


def api_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            one["database"],
            name.replace("_", " "),
            f"{times['p50_milliseconds']:.0f}",
            f"{times['p95_milliseconds']:.0f}",
        ]
        for one in result["results"]
        for name, times in one.items()
        if name != "database"
    ]


def rollout_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            one["database"],
            *(f"{one[f'{name}_milliseconds']:.0f}" for name in ("first", "p50", "p95", "cpu")),
            f"{one['bytes'] / 1e3:.0f}",
        ]
        for one in result["results"]
    ]


def fleet_rows(result: dict[str, Any]) -> list[Row]:
    times = (result[f"{name}_milliseconds"] for name in ("alone", "p50", "p95"))
    return [
        [
            *(f"{result[name]:,}" for name in ("runs", "claimers", "owners")),
            f"{result['claims_per_second']:.0f}",
            *(f"{one:.0f}" for one in times),
            f"{result['deviation_percent']:.1f}",
            str(result["twice"]),
        ]
    ]


def start_rows(result: dict[str, Any]) -> list[Row]:
    held = [" / ".join(f"{size:.0f}" for size in result[name].values()) for name in ("supervisor", "control", "server")]
    return [
        [one["pair"], *(f"{one[f'{name}_seconds']:.1f}" for name in ("ready", "cpu", "loading")), *held]
        for one in result["results"]
    ]


def dashboard_rows(result: dict[str, Any]) -> list[Row]:
    paint, growth = result["paint_milliseconds"], result["growth_megabytes"]
    return [
        [
            *(
                f"{paint[page]['median']} ({paint[page]['first']})"
                for page in ("home", "runs", "inspect", "inspect_by_link")
            ),
            f"{result['requests_per_2_seconds']:.1f}",
            f"{growth['dashboard']:.0f}",
            f"{growth['api']:.0f}",
        ]
    ]


def decode_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            one["dtype"],
            str(one["batch"]),
            str(one["tokens"]),
            f"{one['incipit_tokens_per_second']:.0f}",
            f"{one['generate_tokens_per_second']:.0f}",
            *(f"{one[f'{name}_ratio']:.2f}" for name in ("decode", "cpu", "wall")),
        ]
        for one in result["results"]
    ]


def vllm_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            str(one["batch"]),
            str(one["tokens"]),
            f"{one['incipit_tokens_per_second']:.0f}",
            f"{one['vllm_tokens_per_second']:.0f}",
            *(f"{one[f'{name}_ratio']:.2f}" for name in ("decode_wall", "decode_cpu", "wall", "cpu")),
        ]
        for one in result["results"]
    ]


def sync_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            str(one["batch"]),
            str(one["tokens"]),
            *(f"{one[name]:.2f}" for name in ("engine", "whole", "sync")),
            f"{one['gap']:.3f}",
        ]
        for one in result["results"]
    ]


def overlap_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [str(one["steps"]), *(f"{one[name]:.2f}" for name in ("plain", "overlapped", "ratio"))]
        for one in result["results"]
    ]


def profile_rows(result: dict[str, Any]) -> list[Row]:
    """A cell for each phase: CPU seconds and the share of its roofline."""
    return [
        [
            one["pair"],
            one["dtype"],
            str(one["batch"]),
            str(one["tokens"]),
            f"{one['matrix_rate'] / 1e9:.0f}",
            f"{one['copy_bandwidth'] / 1e9:.0f}",
            *(f"{phase['seconds']:.2f} ({phase['reached']:.0%})" for phase in one["phases"].values()),
        ]
        for one in result["results"]
    ]
