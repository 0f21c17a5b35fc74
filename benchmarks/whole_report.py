"""The tables and figures of the study of students that are trained whole, from the records of its runs."""

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.quality_report import DOTS_PER_INCH, Records, distinct, scores, select, spread, table, where
from jax_brcd.report.plots import BLUE, GRAY, GREEN, ORANGE, VERMILION
from jax_brcd.retrieval.searches import SEARCHES
from jax_brcd.runtime.files import atomic_path
from jax_brcd.settings.presets import PRESETS

BASE = PRESETS["cifar10-32-whole"]["method"]  # what the others are compared with
COURSE = "Its course: mean mAP of both searches by the validation queries"
COLORS = (BLUE, ORANGE, GREEN, VERMILION, GRAY)


def shares(records: Records, search: str, measure: str = "map") -> np.ndarray:
    """A student's measure of one search over its teacher's, one a seed."""
    return scores(records, search, measure) / scores(records, "teacher", measure)


def deviations(found: Iterable[np.ndarray]) -> list[float]:
    """The deviation over the seeds of each; 0 of one seed."""
    return [values.std(ddof=1) if len(values) > 1 else 0.0 for values in found]


def share(records: Records, search: str) -> str:
    """The mean share over the seeds, and its deviation."""
    values = shares(records, search)
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")


def searched(records: Records) -> list[str]:
    """The cells of both searches: mAP, share of the teacher's, mAP of soft queries."""
    return [cell for search in SEARCHES for cell in (spread(scores(records, search)), share(records, search),
                                                     f"{scores(records, search, 'soft_map').mean():.4f}")]


def searches_header() -> list[str]:
    """What `searched` gives."""
    return [f"{search}{what}" for search in SEARCHES for what in ("", " of teacher", ", soft")]


def recipe_table(records: Records) -> str:
    """The recipe's students beside their teachers at every code length."""
    rows = []
    for teacher in distinct(records, "teacher"):
        for bits in distinct(records, "bits"):
            chosen = where(records, teacher=teacher, bits=bits)
            if chosen:
                rows.append([f"{teacher}, {bits} bits", str(len(chosen)), spread(scores(chosen, "teacher")),
                             f"{scores(chosen, 'teacher', 'soft_map').mean():.4f}", *searched(chosen)])
    return table(["teacher", "seeds", "teacher mAP", "teacher, soft", *searches_header()], rows)


def labels_table(records: Records, what: str) -> str:
    """A row for each label, under each teacher."""
    rows = []
    for teacher in distinct(records, "teacher"):
        for label in distinct(records, "label"):
            chosen = where(records, teacher=teacher, label=label)
            if chosen:
                rows.append([label, teacher, str(len(chosen)), *searched(chosen)])
    return table([what, "teacher", "seeds", *searches_header()], rows)


def methods_table(records: Records) -> str:
    """A row for each method, under each teacher, the best mean of both searches first, with the rate that it chose."""
    rows = []
    for teacher in distinct(records, "teacher"):
        of_teacher = where(records, teacher=teacher)
        grouped = {label: where(of_teacher, label=label) for label in distinct(of_teacher, "label")}
        for label, chosen in sorted(grouped.items(), key=lambda one: -sum(shares(one[1], search).mean() for search in SEARCHES)):
            rows.append([label, teacher, f"{chosen[0]['settings']['lr']:g}", str(len(chosen)), *searched(chosen)])
    return table(["method", "teacher", "rate", "seeds", *searches_header()], rows)


def winners(records: Records) -> str:
    """Which method wins each search under each teacher, and by how much beyond the spread over the seeds.

    Those of fewer seeds than others have other teachers, with which they are not compared.
    """
    lines = []
    for teacher in distinct(records, "teacher"):
        of_teacher = where(records, teacher=teacher)
        for search in SEARCHES:
            every = {label: scores(where(of_teacher, label=label), search) for label in distinct(of_teacher, "label")}
            seeds = max(map(len, every.values()))
            found = {label: values for label, values in every.items() if len(values) == seeds}
            fewer = f"; those of fewer seeds ({len(every) - len(found)}) are not compared" if len(found) < len(every) else ""
            if len(found) < 2:
                continue
            first, second = sorted(found, key=lambda label: -found[label].mean())[:2]
            gain = found[first].mean() - found[second].mean()
            variances = [values.var(ddof=1) for values in found.values() if len(values) > 1]
            lines.append(f"- {teacher}, {search}: {first} by {gain:.4f} before {second}; "
                         + (f"a method's deviation over the seeds is {np.sqrt(np.mean(variances)):.4f} in the root of the mean square"
                            if variances else "of one seed each, so how far seeds differ is not known") + fewer)
    return "\n".join(lines)


def gains_table(records: Records, base: str) -> str:
    """By how much each method's mAP differs from that of `base` at the same seeds, which are the same teachers; of more than one."""
    rows = []
    for teacher in distinct(records, "teacher"):
        of_teacher = where(records, teacher=teacher)
        bases = {record["seed"]: record for record in where(of_teacher, label=base)}
        for label in distinct(of_teacher, "label"):
            chosen = [record for record in where(of_teacher, label=label) if record["seed"] in bases]
            if label != base and len(chosen) > 1:
                gains = [scores(chosen, search) - scores([bases[record["seed"]] for record in chosen], search) for search in SEARCHES]
                rows.append([label, teacher, str(len(chosen)), *(f"{gain.mean():+.4f} ± {gain.std(ddof=1):.4f}" for gain in gains)])
    return table(["method", "teacher", "seeds", *map(str, SEARCHES)], rows) if rows else ""


def curve_table(records: Records) -> str:
    """The mean mAP of both searches by the validation queries, for which states are kept, after so many epochs."""
    rows = []
    for teacher in distinct(records, "teacher"):
        for bits in distinct(records, "bits"):
            chosen = [record["result"]["validations"] for record in where(records, teacher=teacher, bits=bits)]
            if chosen:
                rows.append([f"{teacher}, {bits} bits", *(spread(np.array([one[place]["both_map"] for one in chosen]))
                                                          for place in range(len(chosen[0])))])
    epochs = [one["epoch"] for one in records[0]["result"]["validations"]]
    return table(["teacher", *(f"{epoch} epochs" for epoch in epochs)], rows)


def sizes_table(records: Records) -> str:
    """Students by their size."""
    rows = []
    for label in distinct(records, "label"):
        chosen = where(records, label=label)
        result = chosen[0]["result"]
        rows.append([label, f"{result['cost']['parameters']:,}", str(result["epochs"]), str(len(chosen)), *searched(chosen)])
    return table(["student", "parameters", "epochs", "seeds", *searches_header()], rows)


def protocols(records: Records) -> str:
    """How the figures come about."""
    protocol = records[0]["result"]["protocol"]
    return (f"{protocol['dataset']}, split {protocol['split']}, {protocol['queries']:,} test queries, database of "
            f"{protocol['database']:,}, mAP@{protocol['k']}, ties {protocol['ties']}; mean ± standard deviation over the seeds.")


def budget(records: Records) -> str:
    """What the students of a part were trained for and on what; where they differ, labels or a column tell them apart."""
    results = [record["result"] for record in records]
    epochs = sorted(distinct(results, "epochs"))
    images = sorted({one["protocol"]["training"] for one in results})
    return (f"{' or '.join(map(str, epochs))} epochs of {' or '.join(f'{count:,}' for count in images)} images, on "
            f"{', '.join(sorted(distinct(results, 'device')))}.")


def summary(records: Records) -> str:
    """The parts of the study that were carried out, as Markdown."""
    sections = [protocols(records)]
    for part, title, make in (
        ("recipe", "The recipe", recipe_table),
        ("recipe", COURSE, curve_table),
        ("short", "Shorter trainings", lambda one: labels_table(one, "trained for")),
        ("alone", "Without neighbours", recipe_table),
        ("alone", COURSE, curve_table),
        ("chances", "Without neighbours, with the teacher's chances of a bit, in batches of 128", recipe_table),
        ("chances", COURSE, curve_table),
        ("methods", "Methods, without neighbours, each at the rate that the validation queries chose",
         lambda one: f"{methods_table(one)}\n\n{winners(one)}"),
        ("methods", f"By how much methods differ from {BASE} at the same seed", lambda one: gains_table(one, BASE)),
        ("variants", "Without neighbours, with one part exchanged", lambda one: labels_table(one, "recipe")),
        ("parts of BRCD", "Parts of BRCD, each added to those above it", lambda one: labels_table(one, "parts")),
        ("sizes", "Students of other sizes", sizes_table),
    ):
        chosen = select(records, part)
        found = make(chosen) if chosen else ""
        if found:
            sections.append(f"### {title}\n\n{budget(chosen)}\n\n{found}")
    return "\n\n".join(sections) + "\n"


def methods_figure(records: Records) -> Figure:
    """The share of the teacher's mAP of every method, a panel for each search, a colour for each teacher."""
    labels, teachers = distinct(records, "label"), distinct(records, "teacher")
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    for axis, search in zip(figure.subplots(1, 2), SEARCHES, strict=True):
        for place, (teacher, color) in enumerate(zip(teachers, COLORS, strict=False)):
            shift = (place - (len(teachers) - 1) / 2) * 0.2
            chosen = {number: where(records, teacher=teacher, label=label) for number, label in enumerate(labels)}
            found = {number + shift: shares(values, search) for number, values in chosen.items() if values}
            axis.errorbar(list(found), [values.mean() for values in found.values()], yerr=deviations(found.values()), color=color,
                          marker="o", linestyle="", capsize=3, label=f"{teacher} teacher")
        _share_axis(axis, f"{search} search")
        axis.set_xticks(np.arange(len(labels)), labels, rotation=60, ha="right")
        axis.legend(fontsize=8, frameon=False)
    return figure


def _share_axis(axis: Any, title: str) -> None:
    axis.axhline(1, color=GRAY, linestyle="--", linewidth=0.8)
    axis.set(title=title, ylabel="share of the teacher's mAP")
    axis.spines[["top", "right"]].set_visible(False)


def variants_figure(records: Records) -> Figure:
    """The share of the teacher's mAP under each variant of the recipe."""
    labels = distinct(records, "label")
    figure = Figure(figsize=(8, 0.9 + 0.28 * len(labels)), layout="constrained")
    axis = figure.subplots()
    for search, color, shift in zip(SEARCHES, COLORS, (-0.12, 0.12), strict=False):
        found = [shares(where(records, label=label), search) for label in labels]
        axis.errorbar([values.mean() for values in found], np.arange(len(labels)) + shift, color=color, marker="o", linestyle="",
                      xerr=deviations(found), capsize=3, label=search)
    axis.axvline(1, color=GRAY, linestyle="--", linewidth=0.8)
    axis.set_yticks(np.arange(len(labels)), labels)
    axis.invert_yaxis()
    axis.set(xlabel="share of the teacher's mAP")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return figure


def sizes_figure(records: Records) -> Figure:
    """The share of the teacher's mAP against parameters, beside that of the validation queries against epochs."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    by_size, by_epoch = figure.subplots(1, 2)
    for label, color in zip(distinct(records, "label"), COLORS, strict=False):
        chosen = where(records, label=label)
        parameters = chosen[0]["result"]["cost"]["parameters"]
        for search, marker in zip(SEARCHES, ("o", "s"), strict=True):
            by_size.plot(parameters, shares(chosen, search).mean(), color=color, marker=marker, linestyle="",
                         label=f"{label}, {search}")
        validations = chosen[0]["result"]["validations"]
        by_epoch.plot([one["epoch"] for one in validations], [one["both_map"] for one in validations], color=color, marker="o",
                      label=label)
    by_size.set(xscale="log", xlabel="parameters")
    _share_axis(by_size, "")
    by_size.legend(fontsize=7, frameon=False)
    by_epoch.set(xlabel="epochs", ylabel="validation mAP, mean of both searches")
    by_epoch.spines[["top", "right"]].set_visible(False)
    by_epoch.legend(fontsize=8, frameon=False)
    return figure


FIGURES = {"methods": methods_figure, "variants": variants_figure, "sizes": sizes_figure}


def write(directory: pathlib.Path, records: Records) -> None:
    """Writes whole.md and the figures of the parts that were carried out, each whole or not at all."""
    with atomic_path(directory / "whole.md") as temporary:
        temporary.write_text(summary(records))
    for part, draw in FIGURES.items():
        if chosen := select(records, part):
            with atomic_path(directory / f"{part}.png") as temporary:
                draw(chosen).savefig(temporary, format="png", dpi=DOTS_PER_INCH)
