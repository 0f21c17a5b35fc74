"""The results of a run as rows of text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax_brcd.report.results import MEASURES
from jax_brcd.retrieval.searches import SEARCHES

SKIPPED = "Evaluation was skipped: the data set has no labels."
# The names of the measures' columns; the protocol's line says k of all
NAMES = {"map": "mAP@{k}", "tie_aware_map": "tie-aware mAP@{k}", "soft_map": "soft mAP", "cosine_map": "cosine mAP",
         "precision": "precision@{k}"}
Score = Mapping[str, float | None]


def header(metrics: Mapping[str, Any]) -> list[str]:
    """The names of the columns."""
    return ["", "model", *_names(_scores(metrics).values(), metrics["protocol"]), "parameters", "FLOPs/image", "images/s"]


def rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """A row each for the teacher and the searches of the student; none where nothing was evaluated."""
    scores, costs = _scores(metrics), metrics.get("costs", {})
    return [[name, costs[_role(name)]["model"], *_cells(score, scores.values()), *_cost(costs[_role(name)])]
            for name, score in scores.items()]


def rankings_line(metrics: Mapping[str, Any]) -> str:
    """What the measures rank by that do not rank by Hamming distance, in one line; empty where there are none."""
    return _rankings(_scores(metrics).values())


def _scores(metrics: Mapping[str, Any]) -> dict[str, Score]:
    """Of the teacher and of the searches of the student, by the names of their rows."""
    found = {"teacher": metrics["teacher"]} if "teacher" in metrics else {}
    return found | {f"student, {search}": metrics["student"][search] for search in SEARCHES if "student" in metrics}


def _role(row: str) -> str:
    return row.split(",")[0]


def _shown(scores: Iterable[Score]) -> list[str]:
    """The measures that there are; earlier versions had fewer."""
    held = {measure for score in scores for measure, value in score.items() if value is not None}
    return [measure for measure in MEASURES if measure in held]


def _names(scores: Iterable[Score], protocol: Mapping[str, Any]) -> list[str]:
    return [NAMES[measure].format(k=protocol["k"]) for measure in _shown(scores)]


def _cells(score: Score, scores: Iterable[Score]) -> list[str]:
    return ["" if score.get(measure) is None else f"{score[measure]:.4f}" for measure in _shown(scores)]


def _rankings(scores: Iterable[Score]) -> str:
    shown = _shown(scores)
    if "soft_map" not in shown:
        return ""
    soft = "soft mAP: ranked by the query's logits against the database's bits"
    if "cosine_map" not in shown:
        return f"{soft}; no cosine mAP, which needs features of one backbone on both sides"
    return f"{soft}; cosine mAP: by features of one backbone on both sides"


def _cost(cost: Mapping[str, Any]) -> list[str]:
    flops = "not counted" if cost["flops"] is None else magnitude(cost["flops"])
    return [magnitude(cost["parameters"]), flops, f"{cost['images_per_second']:,.0f}"]


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
    return _lines([header(metrics), *body], metrics, rankings_line(metrics), *metrics.get("remarks", ()))


def pair_table(queries: str, database: str, score: Score, protocol: Mapping[str, Any]) -> str:
    """The table of one search, beneath it its protocol and what its measures rank by.

    Args:
        queries, database: what gave the codes. score: the measures by name, as metrics.json holds them.
    """
    lines = [["queries", "database", *_names([score], protocol)], [queries, database, *_cells(score, [score])]]
    return _lines(lines, {"protocol": protocol}, _rankings([score]))


def _lines(table: Sequence[Sequence[str]], metrics: Mapping[str, Any], *beneath: str) -> str:
    return "\n".join([*aligned(table), protocol_line(metrics), *filter(None, beneath)])
