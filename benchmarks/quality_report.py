"""The study's tables and figures, from the records of its runs."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jax_brcd.report.plots import BLUE, GRAY, GREEN, ORANGE, VERMILION
from jax_brcd.retrieval.searches import SEARCHES
from jax_brcd.runtime.files import atomic_path

DOTS_PER_INCH = 130
Records = list[Mapping[str, Any]]


def select(records: Iterable[Mapping[str, Any]], part: str, **wanted: Any) -> Records:
    """The records of a part of the study whose fields have the given values."""
    return where(records, part=part, **wanted)


def where(records: Iterable[Mapping[str, Any]], **wanted: Any) -> Records:
    """The records whose fields have the given values."""
    return [record for record in records if all(record[name] == value for name, value in wanted.items())]


def distinct(records: Iterable[Mapping[str, Any]], field: str) -> list[Any]:
    """The values of a field in the order they first appear."""
    return list(dict.fromkeys(record[field] for record in records))


def scores(records: Records, search: str, measure: str = "map") -> np.ndarray:
    """A measure of one search ("symmetric", "asymmetric" or "teacher") in every record, one a seed."""
    return np.array([record["result"][search][measure] for record in records])


def spread(values: np.ndarray, digits: int = 4) -> str:
    """Mean and sample standard deviation over the seeds."""
    deviation = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}"


def deviations(found: Iterable[np.ndarray]) -> list[float]:
    """The sample standard deviation over the seeds of each; 0 of one seed."""
    return [values.std(ddof=1) if len(values) > 1 else 0.0 for values in found]


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table; all but the first column are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def overview_table(records: Records) -> str:
    """Each method's mAP in both searches at all code lengths, the teacher's above."""
    chosen = select(records, "methods")
    bits, labels = distinct(chosen, "bits"), distinct(chosen, "label")
    teacher = [spread(scores(select(chosen, "methods", bits=length, label=labels[0]), "teacher")) for length in bits]
    rows = [[label, *[spread(scores(select(chosen, "methods", bits=length, label=label), search))
                      for search in SEARCHES for length in bits]] for label in labels]
    return table(["method", *[f"{search}, {length} bits" for search in SEARCHES for length in bits]],
                 [["teacher", *teacher * len(SEARCHES)], *rows])


def methods_table(records: Records, bits: int) -> str:
    """Each method at one code length: both searches, tie-aware beside them, and their share of the teacher's mAP."""
    of_length = select(records, "methods", bits=bits)
    rows = [["teacher", *[spread(scores(select(of_length, "methods", label=distinct(of_length, "label")[0]), "teacher",
                                        measure))
                          for measure in ("map", "tie_aware_map")], "1.000", "", "", ""]]
    for label in distinct(of_length, "label"):
        runs = select(of_length, "methods", label=label)
        teacher = scores(runs, "teacher")
        cells = [label]
        for search in SEARCHES:
            cells += [spread(scores(runs, search)), spread(scores(runs, search, "tie_aware_map")),
                      f"{(scores(runs, search) / teacher).mean():.3f}"]
        rows.append(cells)
    k = of_length[0]["result"]["protocol"]["k"]
    return table(["method", *[f"{search} {column}" for search in SEARCHES
                              for column in (f"mAP@{k}", f"tie-aware mAP@{k}", "of teacher")]], rows)


def parts_table(records: Records, part: str, what: str) -> str:
    """Both searches for each label of a part of the study, a row for each code length."""
    chosen = select(records, part)
    rows = [[label, str(bits), *[spread(scores(select(chosen, part, label=label, bits=bits), search)) for search in SEARCHES]]
            for bits in distinct(chosen, "bits") for label in distinct(chosen, "label")]
    return table([what, "bits", *SEARCHES], rows)


def sensitivity_table(records: Records) -> str:
    """Both searches under one setting at a time, with the teacher's mAP: a setting that moves the teacher too shows here."""
    rows = []
    for record in select(records, "sensitivity"):
        teacher, *students = (scores([record], search) for search in ("teacher", *SEARCHES))
        rows.append([record["label"], str(record["bits"]), *map(spread, (teacher, *students)),
                     *[f"{(student / teacher).mean():.3f}" for student in students]])
    return table(["setting", "bits", "teacher", *SEARCHES, *[f"{search} of teacher" for search in SEARCHES]], rows)


def search_table(records: Records) -> str:
    """What each method chose on the validation queries for either search, and its scores there with the test queries."""
    rows = []
    for label in distinct(select(records, "search"), "label"):
        cells = [label, str(len(select(records, "search", label=label)))]
        for search in SEARCHES:
            runs = select(records, f"chosen, {search}", label=label)
            settings = [f"{name} {value}" for name, value in runs[0]["settings"].items() if name != "method"]
            cells += [", ".join(settings) or "defaults", spread(scores(runs, search))]
        rows.append(cells)
    return table(["method", "settings tried", *[column for search in SEARCHES for column in (f"chosen, {search}", search)]],
                 rows)


def summary(records: Records) -> str:
    """The parts of the study that were carried out, as Markdown."""
    protocol = records[0]["result"]["protocol"]
    sections = [
        f"{protocol['dataset']}, split {protocol['split']}, {protocol['queries']:,} test queries, database of "
        f"{protocol['database']:,}, k = {protocol['k']}, ties {protocol['ties']}; mean ± standard deviation over the seeds.",
        *[f"### mAP@{protocol['k']}\n\n{overview_table(records)}"] * bool(select(records, "methods")),
        *[f"### {bits} bits\n\n{methods_table(records, bits)}" for bits in distinct(select(records, "methods"), "bits")]]
    for part, title, make in (
        ("search", "Settings chosen on the validation queries for either search", search_table),
        ("ablation", "Parts of BRCD, each added to those above it", lambda records: parts_table(records, "ablation", "parts")),
        ("variants", "BRCD as released and as meant", lambda records: parts_table(records, "variants", "variant")),
        ("sensitivity", "One setting of BRCD at a time", sensitivity_table),
    ):
        if select(records, part):
            sections.append(f"### {title}\n\n{make(records)}")
    return "\n\n".join(sections) + "\n"


def methods_figure(records: Records) -> Figure:
    """mAP of every method by code length, a panel for each search."""
    chosen = select(records, "methods")
    bits, labels = distinct(chosen, "bits"), distinct(chosen, "label")
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axis, search in zip(figure.subplots(1, 2), SEARCHES, strict=True):
        width = 0.8 / len(bits)
        for place, (length, color) in enumerate(zip(bits, (ORANGE, GREEN, BLUE, VERMILION, GRAY), strict=False)):
            values = [scores(select(chosen, "methods", bits=length, label=label), search) for label in labels]
            where = np.arange(len(labels)) + (place - (len(bits) - 1) / 2) * width
            axis.bar(where, [part.mean() for part in values], width, color=color, label=f"{length} bits",
                     yerr=deviations(values), error_kw={"elinewidth": 0.8})
            teacher = scores(select(chosen, "methods", bits=length), "teacher").mean()
            axis.axhline(teacher, color=color, linestyle="--", linewidth=0.8)
        axis.set_xticks(np.arange(len(labels)), labels, rotation=30)
        axis.set(title=f"{search} search (dashed: teacher)", ylabel="mAP")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    return figure


def parts_figure(records: Records, part: str, title: str) -> Figure:
    """Both searches for each label of a part, at the longest codes."""
    chosen = select(records, part, bits=max(distinct(select(records, part), "bits")))
    labels = distinct(chosen, "label")
    figure = Figure(figsize=(1.5 + 0.9 * len(labels), 3.6), layout="constrained")
    axis = figure.subplots()
    for search, color, shift in zip(SEARCHES, (BLUE, ORANGE), (-0.08, 0.08), strict=True):
        values = [scores(select(chosen, part, label=label), search) for label in labels]
        axis.errorbar(np.arange(len(labels)) + shift, [one.mean() for one in values], color=color, marker="o", linestyle="",
                      yerr=deviations(values), label=search, capsize=3)
    axis.set_xticks(np.arange(len(labels)), labels, rotation=30, ha="right")
    axis.set(title=title, ylabel="mAP")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return figure


def write(directory: pathlib.Path, records: Records) -> None:
    """Writes quality.md and the figures of the parts that were carried out, each whole or not at all."""
    with atomic_path(directory / "quality.md") as temporary:
        temporary.write_text(summary(records))
    figures = {"methods": methods_figure, "ablation": lambda records: parts_figure(records, "ablation", "Parts of BRCD"),
               "variants": lambda records: parts_figure(records, "variants", "BRCD as released and as meant"),
               "sensitivity": lambda records: parts_figure(records, "sensitivity", "One setting of BRCD at a time")}
    for part, draw in figures.items():
        if select(records, part):
            with atomic_path(directory / f"{part}.png") as temporary:
                draw(records).savefig(temporary, format="png", dpi=DOTS_PER_INCH)
