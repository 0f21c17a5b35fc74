"""The tables and figures of the study of students that are trained whole, from the records of its runs."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.quality_report import DOTS_PER_INCH, Records, deviations, distinct, scores, select, spread, table, where
from jax_brcd.report.plots import BLUE, GRAY, GREEN, ORANGE, VERMILION
from jax_brcd.retrieval.searches import SEARCHES
from jax_brcd.runtime.files import atomic_path
from jax_brcd.settings.presets import PRESETS

BASE = PRESETS["cifar10-32-whole"]["method"]  # what the others are compared with
DIVERGED = "diverged"  # where an outcome says why there is no other
COURSE = "Its course: mean mAP of both searches by the validation queries"
COLORS = (BLUE, ORANGE, GREEN, VERMILION, GRAY)


def trained(records: Records) -> Records:
    """Those that did not diverge."""
    return [record for record in records if DIVERGED not in record["result"]]


def shares(records: Records, search: str, measure: str = "map") -> np.ndarray:
    """A student's measure of one search over its teacher's, one a seed."""
    return scores(records, search, measure) / scores(records, "teacher", measure)


def share(records: Records, search: str) -> str:
    """The mean share over the seeds, and its deviation."""
    return spread(shares(records, search), digits=3)


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
                             f"{scores(chosen, 'teacher', 'soft_map').mean():.4f}", *searched(chosen), took(chosen)])
    return table(["teacher", "seeds", "teacher mAP", "teacher, soft", *searches_header(), "seconds of the epochs"], rows)


def took(records: Records) -> str:
    """The least and the most seconds that the epochs of one took, beside whatever ran meanwhile."""
    seconds = [record["result"]["seconds"] for record in records]
    return " to ".join(dict.fromkeys(f"{end:,.0f}" for end in (min(seconds), max(seconds))))


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
    """A row for each method, under each teacher, with the rate that it chose; those of most seeds first, and of them the best mean of
    both searches."""
    rows = []
    for teacher in distinct(records, "teacher"):
        of_teacher = where(records, teacher=teacher)
        grouped = {label: where(of_teacher, label=label) for label in distinct(of_teacher, "label")}
        mean = {label: sum(shares(chosen, search).mean() for search in SEARCHES) for label, chosen in grouped.items()}
        for label in sorted(grouped, key=lambda label: (-len(grouped[label]), -mean[label])):
            chosen = grouped[label]
            rows.append([label, teacher, f"{chosen[0]['settings']['lr']:g}", str(len(chosen)), *searched(chosen)])
    return table(["method", "teacher", "rate", "seeds", *searches_header()], rows)


def by_teacher(records: Records) -> dict[tuple[int, float], Any]:
    """Records by the very teacher: of one seed there is another on each machine, which its own mAP tells apart."""
    return {(record["seed"], record["result"]["teacher"]["map"]): record for record in records}


def gains(records: Records, others: Records, search: str) -> np.ndarray:
    """By how much the mAP of records differs from that of others, one for each teacher that both have."""
    ours, theirs = by_teacher(records), by_teacher(others)
    shared = [teacher for teacher in ours if teacher in theirs]
    return scores([ours[one] for one in shared], search) - scores([theirs[one] for one in shared], search)


def winners(records: Records) -> str:
    """Which method wins each search under each objective of teachers, and by how much before the next one, of the very teachers.

    They are the most teachers that a method has; one that has not all of them is not compared.
    """
    lines = []
    for teacher in distinct(records, "teacher"):
        of_teacher = where(records, teacher=teacher)
        every = {label: where(of_teacher, label=label) for label in distinct(of_teacher, "label")}
        taught = {label: by_teacher(one).keys() for label, one in every.items()}
        most = max(taught.values(), key=lambda teachers: (len(teachers), sum(each >= teachers for each in taught.values())))
        found = {label: one for label, one in every.items() if taught[label] >= most}
        others = f"; those of other teachers ({len(every) - len(found)}) are not compared" if len(found) < len(every) else ""
        for search in SEARCHES if len(found) > 1 else ():
            first, second = sorted(found, key=lambda label: -scores(found[label], search).mean())[:2]
            gain = gains(found[first], found[second], search)
            known = f"over {len(gain)} seeds" if len(gain) > 1 else "of one seed, so how far seeds differ is not known"
            lines.append(f"- {teacher}, {search}: {first} by {spread(gain)} before {second}, {known}{others}")
    return "\n".join(lines)


def gains_table(records: Records, base: str) -> str:
    """By how much each method's mAP differs from that of `base`, of the very teachers; of more than one."""
    rows = []
    for teacher in distinct(records, "teacher"):
        of_teacher = where(records, teacher=teacher)
        bases = where(of_teacher, label=base)
        for label in distinct(of_teacher, "label"):
            found = [gains(where(of_teacher, label=label), bases, search) for search in SEARCHES]
            if label != base and len(found[0]) > 1:
                rows.append([label, teacher, str(len(found[0])), *(f"{gain.mean():+.4f} ± {gain.std(ddof=1):.4f}" for gain in found)])
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
        rows.append([label, f"{result['parameters']:,}", str(result["epochs"]), str(len(chosen)), *searched(chosen)])
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


def diverged_table(records: Records) -> str:
    """Students whose training diverged, and how."""
    rows = [[record["label"], record["teacher"], str(record["bits"]), str(record["seed"]), record["result"][DIVERGED]]
            for record in records]
    return table(["student", "teacher", "bits", "seed", "what happened"], rows)


def summary(records: Records) -> str:
    """The parts of the study that were carried out, as Markdown."""
    records, diverged = trained(records), [record for record in records if DIVERGED in record["result"]]
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
        ("parts of BRCD", "mse without and with BRCD, and BRCD's parts, each added to those above it; the teacher sees the student's view",
         lambda one: labels_table(one, "parts")),
        ("sizes", "Students of other sizes", sizes_table),
    ):
        chosen = select(records, part)
        found = make(chosen) if chosen else ""
        if found:
            sections.append(f"### {title}\n\n{budget(chosen)}\n\n{found}")
    if diverged:
        sections.append(f"### Diverged\n\n{diverged_table(diverged)}")
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
    """The share of the teacher's mAP against parameters, beside the first seed's mAP of the validation queries against epochs."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    by_size, by_epoch = figure.subplots(1, 2)
    for label, color in zip(distinct(records, "label"), COLORS, strict=False):
        chosen = where(records, label=label)
        parameters = chosen[0]["result"]["parameters"]
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
        if chosen := select(trained(records), part):
            with atomic_path(directory / f"{part}.png") as temporary:
                draw(chosen).savefig(temporary, format="png", dpi=DOTS_PER_INCH)
