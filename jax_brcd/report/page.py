"""One self-contained page: the results, their protocol, the plots and the configuration."""

import base64
import dataclasses
import io
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import jax_brcd
from jax_brcd.methods.sections import Section
from jax_brcd.report import table
from jax_brcd.report.grid import RetrievalGrid
from jax_brcd.runtime.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
PLOTS = "plots"
DOTS_PER_INCH = 130


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything the page shows; `metrics` is the content of metrics.json, `history` has a record an epoch."""

    title: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    history: list[dict[str, Any]]
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]  # (precision, recall) of each search
    grid: RetrievalGrid | None = None
    sections: tuple[Section, ...] = ()  # what the distillation method shows of itself
    notes: tuple[str, ...] = ()
    lost: Mapping[str, RetrievalGrid] = dataclasses.field(default_factory=dict)  # by search, the queries that lost most
    agreement: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # with the teacher, by encoder and bit (bits,)


def figures(report: Report) -> dict[str, "Figure"]:
    """The plots that the report has something for, by file name."""
    from jax_brcd.report import plots

    drawn = {}
    if report.grid is not None:
        drawn["retrieval"] = plots.retrieval_grid_plot(report.grid)
    drawn |= {f"queries_that_lost_most_in_{search}_search": plots.retrieval_grid_plot(grid)
              for search, grid in report.lost.items()}
    if any(name.endswith("_map") for record in report.history for name in record):
        drawn["student_and_teacher"] = plots.course_plot(report.history, report.metrics.get("validation"))
    if report.agreement:
        drawn["bit_agreement"] = plots.agreement_plot(report.agreement)
    if report.curves:
        drawn["precision_recall"] = plots.precision_recall_plot(report.curves)
    drawn |= {section.name: plots.section_plot(section) for section in report.sections}
    if report.history:
        drawn["losses"] = plots.loss_curves(report.history)
    return drawn


def write_report(directory: pathlib.Path, report: Report) -> pathlib.Path:
    """Writes plots/*.png and report.html, each whole or not at all; returns the page's path."""
    import jinja2

    images = {}
    for name, figure in figures(report).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
        images[name] = base64.b64encode(buffer.getvalue()).decode()
        with atomic_path(directory / PLOTS / f"{name}.png") as temporary:
            temporary.write_bytes(buffer.getvalue())
    environment = jinja2.Environment(loader=jinja2.PackageLoader("jax_brcd.report", "."), autoescape=True,
                                     undefined=jinja2.StrictUndefined)
    page = environment.get_template("page.html").render(
        report=report, images=images, header=table.header(report.metrics), rows=table.rows(report.metrics),
        skipped=table.SKIPPED, protocol=table.protocol_line(report.metrics),
        rankings=table.rankings_line(report.metrics), version=jax_brcd.__version__)
    with atomic_path(directory / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")  # names of files may be no text
    return directory / PAGE
