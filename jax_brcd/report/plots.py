"""Plots of a run, each a function from plain arrays to a matplotlib figure."""

import functools
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jax_brcd.methods.sections import Curve, Heatmap, Section
from jax_brcd.report.grid import RetrievalGrid
from jax_brcd.retrieval.searches import SEARCHES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart
BLUE, ORANGE, GREEN, VERMILION, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"
# Widths in points, and how lines are broken: on, off, ... in widths
STROKES = ((3.2, "-"), (1.8, (0, (4, 3))), (1.6, (0, (1, 2))), (1.4, (0, (7, 2, 1, 2))), (1.2, (0, (2, 6))))
SERIES = {"teacher": (GRAY, "-"), "student symmetric": (BLUE, "-"), "student asymmetric": (ORANGE, "--")}


def _figure(**settings: Any) -> "Figure":
    from matplotlib.figure import Figure  # not above: only those who plot need it

    return Figure(**settings)


def loss_curves(history: list[dict[str, Any]]) -> "Figure":
    """A column a stage: what it minimised above, its validation scores below where it has any."""
    stages = list(dict.fromkeys(record["stage"] for record in history))
    figure = _figure(figsize=(4.2 * len(stages), 5.6), layout="constrained")
    axes = figure.subplots(2, len(stages), squeeze=False)
    for column, stage in enumerate(stages):
        records = [record for record in history if record["stage"] == stage]
        names = [name for name in dict.fromkeys(name for record in records for name in record)
                 if name not in ("stage", "epoch", "seconds")]
        scores = [name for name in names if name.endswith("_map")]
        _lines(axes[0, column], records, [name for name in names if name not in scores], f"{stage}: losses")
        _lines(axes[1, column], records, scores, f"{stage}: validation mAP")
        axes[1, column].set_visible(bool(scores))
    return figure


def _lines(axis, records: list[dict[str, Any]], names: list[str], title: str) -> None:
    """A line a name, each thinner than the one before and broken in its own way: of lines that coincide, as a loss does with
    its only large part, all show."""
    for color, (width, style), name in zip(itertools.cycle((BLUE, ORANGE, GREEN, VERMILION, GRAY)), itertools.cycle(STROKES),
                                           names, strict=False):
        points = [(record["epoch"], record[name]) for record in records if name in record]
        axis.plot(*zip(*points, strict=True), color=color, linewidth=width, linestyle=style, label=name.replace("_", " "),
                  marker="o" if len(points) < 2 or name.endswith("_map") else None, markersize=2 + width)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch")
    axis.spines[["top", "right"]].set_visible(False)
    if names:
        axis.legend(fontsize=8, frameon=False)


def course_plot(history: list[dict[str, Any]], validation: Mapping[str, Any] | None) -> "Figure":
    """A student's validation mAP of each search against epochs and against seconds of training, beside its teacher's.

    Args:
        validation: the teacher's, as metrics.json holds it; None where it is not known.
    """
    records = [record for record in history if record["stage"] == "student"]
    seconds = np.cumsum([record["seconds"] for record in records])
    figure = _figure(figsize=(8.6, 3.6), layout="constrained")
    by_epoch, by_second = figure.subplots(1, 2, sharey=True)
    for search in SEARCHES:
        color, line = SERIES[f"student {search}"]
        scored = [(record["epoch"], second, record[f"{search}_map"])
                  for record, second in zip(records, seconds, strict=True) if f"{search}_map" in record]
        epochs, seen, scores = zip(*scored, strict=True)
        for axis, where in ((by_epoch, epochs), (by_second, seen)):
            axis.plot(where, scores, linestyle=line, color=color, marker="o", markersize=3, label=f"student {search}")
    for axis, what in ((by_epoch, "epoch"), (by_second, "seconds of epochs, without validations")):
        if validation is not None:
            axis.axhline(validation["teacher"]["map"], color=GRAY, linewidth=1.2, label="teacher")
        axis.set_xlim(left=0)
        axis.set_xlabel(what)
        axis.spines[["top", "right"]].set_visible(False)
    by_epoch.set_ylabel("mAP of the validation queries")
    by_epoch.legend(fontsize=8, frameon=False)
    return figure


def agreement_plot(agreement: Mapping[str, Float[np.ndarray, "bits"]]) -> "Figure":
    """For each bit the share of test queries of which student and teacher say the same, from chance at a half up."""
    figure = _figure(figsize=(8, 3.2), layout="constrained")
    axis = figure.subplots()
    for name, shares in agreement.items():
        color, _ = SERIES[name]
        axis.plot(np.arange(1, len(shares) + 1), shares, linestyle="", marker="o" if color == BLUE else "x", markersize=4,
                  color=color, label=f"{name}, {shares.mean():.3f} on average")
    axis.axhline(0.5, color=GRAY, linewidth=0.8, linestyle=":")
    axis.set(xlabel="bit", ylabel="share of queries", ylim=(None, 1.01))
    axis.set_title("Bits on which student and teacher agree (dotted: by chance)", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return figure


def precision_recall_plot(
    curves: Mapping[str, tuple[Float[np.ndarray, "radii"], Float[np.ndarray, "radii"]]]
) -> "Figure":
    """Precision against recall, a point for each Hamming radius."""
    figure = _figure(figsize=(5.6, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, (precision, recall) in curves.items():
        color, line = SERIES.get(name, (GREEN, "-."))
        axis.plot(recall, precision, line, color=color, marker=".", markersize=4, label=name)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axis.set_title("Precision and recall by Hamming radius", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return figure


@functools.singledispatch
def section_plot(section: Section) -> "Figure":
    """What a method shows of itself; each kind of section is drawn in its own way.

    Raises:
        TypeError: for a kind of section that has no plot.
    """
    raise TypeError(f"no plot for a section of type {type(section).__name__}")


@section_plot.register(Heatmap)
def heatmap_plot(section: Heatmap) -> "Figure":
    """A cell an entry, the darker the nearer to 1."""
    figure = _figure(figsize=(8, 1.4 + 0.22 * len(section.matrix)), layout="constrained")
    axis = figure.subplots()
    axis.pcolormesh(np.asarray(section.matrix), cmap="Blues", vmin=0, vmax=1.3, edgecolors="white", linewidth=0.5)
    axis.set_yticks(np.arange(len(section.matrix)) + 0.5, section.rows, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(section.columns)
    axis.set_title(section.title, fontsize=10)
    return figure


@section_plot.register(Curve)
def curve_plot(section: Curve) -> "Figure":
    """Points joined by a line; the one that is marked has a line of its own."""
    figure = _figure(figsize=(5.6, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.plot(section.x, section.y, color=BLUE, marker="o", markersize=4)
    if section.marked is not None:
        axis.axvline(section.marked, color=VERMILION, linestyle="--", label=section.mark)
        axis.legend(fontsize=8, frameon=False)
    axis.set(xlabel=section.x_label, ylabel=section.y_label)
    axis.set_title(section.title, fontsize=10)
    if np.issubdtype(np.asarray(section.x).dtype, np.integer):
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def retrieval_grid_plot(grid: RetrievalGrid) -> "Figure":
    """Each row a query and its first results; a solid green frame is right, a dashed red one wrong."""
    queries, results = grid.correct.shape
    # Inches are the units of the one pair of axes: a pair for each picture would take seconds to lay out
    down = CELL[1] + NAME_LINE * max(name.count("\n") for name in grid.query_names)
    width, height = CELL[0] * (results + 1) + 0.1, down * queries + 0.6
    figure = _figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    for row in range(queries):
        top = 0.5 + down * row
        _picture(axes, (0.1, top), grid.query_images[row], grid.query_names[row], "black", "-")
        for column in range(results):
            right = grid.correct[row, column]
            _picture(axes, (0.1 + CELL[0] * (column + 1), top), grid.result_images[row, column], grid.result_names[row][column],
                     GREEN if right else VERMILION, "-" if right else (0, (2, 1)))
    heads = itertools.accumulate((count for _, count in grid.columns), initial=1)
    for column, name in [(0, "query"), *zip(heads, (name for name, _ in grid.columns), strict=False)]:
        axes.text(0.1 + CELL[0] * column + PICTURE / 2, 0.46, name, ha="center", va="bottom", fontsize=8, fontweight="bold")
    title = f"{grid.title} (solid green: right, dashed red: wrong)"
    axes.text(width / 2, 0.1, title, ha="center", va="top", fontsize=10)
    return figure


CELL, PICTURE = (0.86, 1.0), 0.76  # inches: from one picture to the next, to the right and down; a picture's side
NAME_LINE = 0.12  # inches of a further line of a name


def _picture(axes, place: tuple[float, float], image: np.ndarray, name: str, color: str, line) -> None:
    from matplotlib.patches import Rectangle

    left, top = place
    height, width = image.shape[0] * PICTURE / max(image.shape[:2]), image.shape[1] * PICTURE / max(image.shape[:2])
    left, top = left + (PICTURE - width) / 2, top + (PICTURE - height) / 2
    axes.imshow(image, interpolation="nearest", extent=(left, left + width, top + height, top), aspect="auto")
    # Projecting caps would fill the gaps between dashes
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=color, linewidth=2.5, linestyle=line,
                             capstyle="butt"))
    # A class may be called as its folder is: with signs of mathematics, or bytes that are no text
    shown = name.encode("utf-8", "backslashreplace").decode()
    axes.text(left + width / 2, top + height + 0.04, shown, ha="center", va="top", fontsize=7, parse_math=False)
