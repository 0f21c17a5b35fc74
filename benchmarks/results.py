"""Rows of measurements, and the file of a machine's results: a suite's part is written whole as soon as it is finished."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.timing import Contender, Measurement, interleaved
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import read_json, write_json

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Row:
    """What one contender took for one case.

    Attributes:
        seconds: for the case's whole work; None where only memory was measured.
        items: what the work consists of, counted in `unit` ("images", "queries"); None where the call is the unit.
        compile_seconds: the first call less a later one, where the first compiles.
        peak_bytes: memory that a call needs beyond what was there before it.
        sweep: (panel, axis, value) of a row that is a point of a curve.
    """

    case: str
    contender: str
    seconds: Measurement | None = None
    items: int | None = None
    unit: str = "calls"
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    note: str = ""
    sweep: tuple[str, str, float] | None = None

    @property
    def rate(self) -> float:
        """Items a second."""
        return (self.items or 1) / self.seconds.median

    def to_json(self) -> dict[str, Any]:
        """Plain values, the statistics written out for readers of the file."""
        value = dataclasses.asdict(self)
        if self.seconds:
            value["seconds"] |= {"median": self.seconds.median, "low": self.seconds.low, "high": self.seconds.high}
            value["per_second"] = self.rate
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Row":
        """The row that `to_json` gave."""
        fields = {field.name: value[field.name] for field in dataclasses.fields(cls)}
        if fields["seconds"]:
            taken = fields["seconds"]
            fields["seconds"] = Measurement(tuple(taken["samples"]), taken["first"], taken["calls"])
        return cls(**{**fields, "sweep": tuple(fields["sweep"]) if fields["sweep"] else None})


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A case, or a contender of it, that was not measured, and why."""

    case: str
    reason: str


def measure(
    case: str, contenders: Sequence[Contender], *, items: int | None = None, unit: str = "calls",
    sweep: tuple[str, str, float] | None = None, peaks: Mapping[str, int] | None = None, **timing: Any,
) -> list[Row]:
    """Measures a case in turns and makes a row of each contender; `timing` is for `interleaved`."""
    taken = interleaved(contenders, **timing)
    peaks = peaks or {}
    return [Row(case, each.name, taken[each.name], items, unit,
                max(0.0, taken[each.name].first - taken[each.name].median * each.share) if each.compiled else None,
                peaks.get(each.name), each.note, sweep) for each in contenders]


def results_path(folder: pathlib.Path, machine: str) -> pathlib.Path:
    """Where a machine's results lie."""
    return folder / f"{machine}.json"


def read_results(path: pathlib.Path) -> dict[str, Any]:
    """A machine's results; empty ones where the file is absent.

    Raises:
        InputError: for a file that is not of this layout.
    """
    if not path.exists():
        return {"format": FORMAT, "pending": [], "suites": {}}
    try:
        found = read_json(path)
    except ValueError as error:
        raise InputError(f"{path}: no JSON ({error}); move it away and measure again") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path}: not the results of these benchmarks; move it away and measure again")
    return found


def record_suite(
    path: pathlib.Path, suite: str, rows: Iterable[Row], skipped: Iterable[Skipped], **facts: Any
) -> dict[str, Any]:
    """Puts a finished suite into a machine's results, in place of an older one; the others stay. `facts` stand beside it.

    Returns:
        All results of the machine.
    """
    results = read_results(path)
    results["suites"][suite] = {**facts, "rows": [row.to_json() for row in rows],
                                "skipped": [dataclasses.asdict(each) for each in skipped]}
    results["pending"] = [name for name in results["pending"] if name != suite]
    write_json(path, results)
    return results


def rows_of(results: Mapping[str, Any], suite: str) -> list[Row]:
    """The rows of a suite; none where it has not been measured."""
    return [Row.from_json(row) for row in results["suites"].get(suite, {}).get("rows", [])]
