"""The results of a run as rows of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax_brcd.retrieval.searches import SEARCHES

SKIPPED = "Evaluation was skipped: the data set has no labels."
MEASURES = ("map", "tie_aware_map", "precision")


def header(metrics: Mapping[str, Any]) -> list[str]:
    """The names of the columns."""
    k = metrics["protocol"]["k"]
    return ["", "model", f"mAP@{k}", f"tie-aware mAP@{k}", f"precision@{k}", "parameters", "FLOPs/image", "images/s"]


def rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """A row each for the teacher and the searches of the student; none where nothing was evaluated."""
    found = [("teacher", "teacher", metrics["teacher"])] if "teacher" in metrics else []
    found += [(f"student, {search}", "student", metrics["student"][search]) for search in SEARCHES if "student" in metrics]
    return [[name, metrics["costs"][role]["model"], *_measures(score), *_cost(metrics["costs"][role])]
            for name, role, score in found]


def _measures(score: Mapping[str, float]) -> list[str]:
    return [f"{score[measure]:.4f}" for measure in MEASURES]


def _cost(cost: Mapping[str, Any]) -> list[str]:
    return [magnitude(cost["parameters"]), magnitude(cost["flops"]), f"{cost['images_per_second']:,.0f}"]


def magnitude(value: float | int) -> str:
    """A count with its thousands as k, M, G or T."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def protocol_line(metrics: Mapping[str, Any]) -> str:
    """How the figures came about, in one line."""
    p = metrics["protocol"]
    return (f"{p['dataset']}, split: {p['split']}; {p['queries']:,} test queries, database of {p['database']:,}; k = {p['k']}, "
            f"ties {p['ties']}; {p['bits']} bits, seed {p['seed']}{_sizes(p)}")


def _sizes(protocol: Mapping[str, Any]) -> str:
    """At which sizes images were seen, where models differ, and to which files were decoded, where that is not as published."""
    seen = ", ".join(f"{role} {size}" for role, size in protocol.get("sizes", {}).items())
    decoded = f"; images decoded to squares of {protocol['squares']} pixels" if "squares" in protocol else ""
    return (f"; pixels seen: {seen}" if seen else "") + decoded


def aligned(lines: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    """Lines of cells with columns of one width, a rule under the first; the first `left` columns begin at the left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) if column < left else cell.rjust(width)
                      for column, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in lines]
    return [text[0], "  ".join("-" * width for width in widths), *text[1:]]


def results_table(metrics: Mapping[str, Any]) -> str:
    """The table printed at the end of a run, beneath it its protocol and what is to be known of the teacher."""
    body = rows(metrics)
    if not body:
        return SKIPPED
    return "\n".join([*aligned([header(metrics), *body]), protocol_line(metrics), *metrics.get("remarks", ())])


def pair_table(queries: str, database: str, score: Mapping[str, float], protocol: Mapping[str, Any]) -> str:
    """The table of one search, beneath it its protocol.

    Args:
        queries, database: what gave the codes. score: the measures by name, as metrics.json holds them.
    """
    k = protocol["k"]
    lines = [["queries", "database", f"mAP@{k}", f"tie-aware mAP@{k}", f"precision@{k}"], [queries, database, *_measures(score)]]
    return "\n".join([*aligned(lines), protocol_line({"protocol": protocol})])
