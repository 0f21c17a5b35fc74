"""Results as text: a suite's rows, and the summary of the targets in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.results import Row, Skipped
from benchmarks.targets import Verdict


def duration(seconds: float) -> str:
    """Seconds with three digits and a unit a reader can grasp."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * (2 if size >= 60 else 1):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def size(count: float | None) -> str:
    """Bytes in powers of 1,024."""
    if count is None:
        return ""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 2**10:.3g} KiB"


def number(value: float) -> str:
    """Three digits, with a comma between thousands and without exponents."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells(row: Row) -> list[str]:
    """A row of `suite_table`."""
    taken = row.seconds
    time = [duration(taken.median), f"{duration(taken.low)} to {duration(taken.high)}", f"{number(row.rate)} {row.unit}/s",
            "" if row.compile_seconds is None else duration(row.compile_seconds)] if taken else [""] * 4
    return [row.case, row.contender, *time, size(row.peak_bytes), row.note]


HEADER = ["case", "contender", "median", "quartiles", "rate", "compile", "peak memory", "note"]


def line(row: Row) -> str:
    """A row as one line of a log."""
    return "; ".join(f"{name} {cell}" if name in ("compile", "peak memory") else cell
                     for name, cell in zip(HEADER, cells(row), strict=True) if cell)


def suite_table(rows: Sequence[Row], skipped: Sequence[Skipped] = ()) -> str:
    """All rows of a suite in columns, what was skipped beneath."""
    body = [HEADER, *map(cells, rows)]
    widths = [max(len(cells[column]) for cells in body) for column in range(len(HEADER))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in body]
    return "\n".join([*text, *(f"skipped {each.case}: {each.reason}" for each in skipped)])


def summary(results: Mapping[str, Any], verdicts: Sequence[Verdict]) -> str:
    """The targets as a Markdown table, and beneath it the machine and how the numbers came about."""
    lines = ["| what | against | target | measured | ours | theirs | met |", "|---|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(_summary_cells(verdict))} |" for verdict in verdicts]
    notes = list(dict.fromkeys(f"{verdict.target.what}: {verdict.note}." for verdict in verdicts if verdict.note))
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), *([""] if notes else []), machine_lines(results), ""])


def _summary_cells(verdict: Verdict) -> Iterable[str]:
    target = verdict.target
    least = f">= {target.least:g}x" if target.quantity == "speed" else f"<= 1/{target.least:g}"
    if verdict.ratio is None:
        return [target.what, target.against, least, "", "", "", "not measured"]
    if target.quantity == "memory":
        return [target.what, target.against, least, f"1/{verdict.ratio:.3g}", size(verdict.ours.peak_bytes),
                size(verdict.theirs.peak_bytes), _met(verdict)]
    return [target.what, target.against, least,
            f"{number(verdict.ratio)}x ({number(verdict.low)} to {number(verdict.high)})",
            _side(verdict.ours), _side(verdict.theirs), _met(verdict)]


def _met(verdict: Verdict) -> str:
    return "yes" if verdict.met else "**no**"


def _side(row: Row) -> str:
    return duration(row.seconds.median) if row.items is None else f"{number(row.rate)} {row.unit}/s"


def machine_lines(results: Mapping[str, Any]) -> str:
    """The machines and versions that the suites were measured with: one line where they are all the same."""
    described: dict[str, list[str]] = {}
    for name, suite in results["suites"].items():
        described.setdefault(_machine_line(suite["machine"]), []).append(name)
    if len(described) == 1:
        return next(iter(described))
    return "\n\n".join(f"{', '.join(names)}: {text}" for text, names in described.items())


def _machine_line(machine: Mapping[str, Any]) -> str:
    hardware = ", ".join(filter(None, (machine["cpu"], f"{machine['cores']} cores", f"{machine['memory_gib']:g} GiB",
                                       machine["accelerator"], " ".join(machine["instructions"]))))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    flags = f"; XLA_FLAGS {machine['xla_flags']}" if machine["xla_flags"] else ""
    return f"Measured on {hardware}; Python {machine['python']}, {versions}{flags}; {machine['date']}."
