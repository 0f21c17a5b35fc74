"""The results of a run as rows of text."""

from collections.abc import Mapping
from typing import Any

SKIPPED = "Evaluation was skipped: the data set has no labels."


def header(metrics: Mapping[str, Any]) -> list[str]:
    """The names of the columns."""
    k = metrics["protocol"]["k"]
    return ["", "model", f"mAP@{k}", f"tie-aware mAP@{k}", f"precision@{k}", "parameters", "FLOPs/image", "images/s"]


def rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """A row each for the teacher and both searches of the student; none where nothing was evaluated."""
    if "teacher" not in metrics:
        return []
    searches = (("teacher", "teacher", metrics["teacher"]),
                ("student, symmetric", "student", metrics["student"]["symmetric"]),
                ("student, asymmetric", "student", metrics["student"]["asymmetric"]))
    return [[name, metrics["costs"][role]["model"], *(f"{score[key]:.4f}" for key in ("map", "tie_aware_map", "precision")),
             *_cost(metrics["costs"][role])] for name, role, score in searches]


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
            f"ties {p['ties']}; {p['bits']} bits, seed {p['seed']}")


def results_table(metrics: Mapping[str, Any]) -> str:
    """The table printed at the end of a run, its protocol beneath it."""
    body = rows(metrics)
    if not body:
        return SKIPPED
    lines = [header(metrics), *body]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) if column < 2 else cell.rjust(width)
                      for column, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*text, protocol_line(metrics)])
