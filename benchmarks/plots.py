"""Plots of the results, each a function from rows or verdicts to a matplotlib figure."""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks.results import Row
from benchmarks.targets import Verdict

# Okabe and Ito's colours, which the colour-blind can tell apart
COLORS = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#777777")
MARKERS = "osD^vPX"
BLUE, VERMILION, GRAY = COLORS[0], COLORS[1], COLORS[-1]


def suite_figure(title: str, rows: Iterable[Row]) -> Figure:
    """Curves of the rows that are points of one, bars of the others."""
    rows = list(rows)
    swept = [row for row in rows if row.sweep]
    return curves(title, swept) if swept else bars(title, [row for row in rows if row.seconds])


def curves(title: str, rows: Sequence[Row]) -> Figure:
    """A column a panel: seconds above, peak memory below where any was measured; both axes logarithmic."""
    panels = list(dict.fromkeys(row.sweep[0] for row in rows))
    quantities = [("seconds", lambda row: row.seconds and row.seconds.median),
                  ("peak memory in MiB", lambda row: row.peak_bytes and row.peak_bytes / 2**20)]
    shown = [each for each in quantities if any(each[1](row) for row in rows)]
    figure = Figure(figsize=(4.4 * len(panels) + 2.6, 3.2 * len(shown) + 0.4), layout="constrained")
    axes = figure.subplots(len(shown), len(panels), squeeze=False)
    names = list(dict.fromkeys(row.contender for row in rows))
    for line, (label, value) in enumerate(shown):
        for column, panel in enumerate(panels):
            axis = axes[line, column]
            inside = [row for row in rows if row.sweep[0] == panel]
            for place, name in enumerate(names):
                points = sorted((row.sweep[2], value(row)) for row in inside if row.contender == name and value(row))
                axis.plot(*zip(*points, strict=True) if points else ([], []), color=COLORS[place % len(COLORS)],
                          marker=MARKERS[place % len(MARKERS)], markersize=4, label=name)
            axis.set(xscale="log", yscale="log", xlabel=inside[0].sweep[1], ylabel=label)
            axis.set_title(f"{title}, {panel}", fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def bars(title: str, rows: Sequence[Row]) -> Figure:
    """Items a second of every contender of every case, on a logarithmic axis, with their quartiles."""
    figure = Figure(figsize=(8, 0.9 + 0.28 * (len(rows) + len({row.case for row in rows}))), layout="constrained")
    axis = figure.subplots()
    place, ticks, seen = 0.0, [], None
    for row in rows:
        place += 1.0 if row.case == seen else 1.6
        seen = row.case
        items = row.items or 1
        ours = row.contender.startswith("jax_brcd")
        spread = [[row.rate - items / row.seconds.high], [items / row.seconds.low - row.rate]]
        axis.barh(place, row.rate, 0.8, xerr=np.maximum(spread, 0), color=BLUE if ours else GRAY, error_kw={"linewidth": 1})
        ticks.append((place, f"{row.case}: {row.contender}"))
    axis.set_yticks([place for place, _ in ticks], [label for _, label in ticks], fontsize=8)
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel=f"{rows[0].unit if rows else 'items'} a second")
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def summary_figure(verdicts: Sequence[Verdict]) -> Figure:
    """The measured ratio of every target beside the ratio that was to be reached."""
    measured = [verdict for verdict in verdicts if verdict.ratio is not None]
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(measured)), layout="constrained")
    axis = figure.subplots()
    for place, verdict in enumerate(measured):
        axis.barh(place, verdict.ratio, 0.6, color=BLUE if verdict.met else VERMILION, hatch=None if verdict.met else "//",
                  edgecolor="white")
        axis.plot([verdict.target.least] * 2, [place - 0.42, place + 0.42], color="black", linewidth=2)
        axis.annotate(f" {verdict.ratio:.3g}x", (max(verdict.ratio, verdict.target.least), place), va="center", fontsize=8)
    axis.set_yticks(range(len(measured)), [f"{each.target.what}\nagainst {each.target.against}" for each in measured],
                    fontsize=7)
    axis.invert_yaxis()
    axis.axvline(1.0, color=GRAY, linewidth=0.8)
    axis.set(xscale="log", xlabel="ratio (black mark: target; hatched: not met)")
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
