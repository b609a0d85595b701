"""The plots of studies, as SVGs that are the same for the same figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from incipit.arm_study import ArmStudy
from incipit.study_data import StudyData
from incipit.study_readouts import curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito: told apart by most kinds of colour vision; beyond eight arms the line's dashes tell them apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
DASHES = ("solid", "dashed", "dotted", "dashdot")


@contextmanager
def drawing(name: str, path: Path) -> Iterator[Axes]:
    """Axes to draw on, with a legend beside them, written as an SVG at the end of the block."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 10}):
        figure, axes = pyplot.subplots(figsize=(9.0, 5.0), layout="constrained")
        yield axes
        axes.grid(visible=True, linewidth=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def draw(study: ArmStudy, data: StudyData, path: Path) -> None:
    """Write the plot of a study of arms: its measure against training FLOPs."""
    with drawing(study.name, path) as axes:
        for number, arm in enumerate(study.arms):
            colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
            runs = curves(data, arm.name, study.seeds, study.measure.key)
            for points in runs:
                shown = points[1:]  # nothing was spent before the first step, and a logarithm has no place for it
                axes.plot(
                    [one.flops for one in shown], [one.value for one in shown], color=colour, linewidth=0.5, alpha=0.35
                )
            length = min((len(points) for points in runs), default=0)
            means = [
                (fmean(points[at].flops for points in runs), fmean(points[at].value for points in runs))
                for at in range(1, length)
            ]
            if means:
                axes.plot(
                    *zip(*means, strict=True), color=colour, linestyle=dashes, marker="o", markersize=3, label=arm.name
                )
        axes.set_xscale("log")
        axes.set_xlabel("training FLOPs")
        axes.set_ylabel(f"{study.measure.name}, dev")
