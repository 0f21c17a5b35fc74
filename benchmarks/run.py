"""python -m benchmarks.run: every suite in a process of its own, then one table and one figure of the targets."""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks import compiled, plots, tables, targets
from benchmarks.results import read_results
from benchmarks.suite import Settings, parse_settings
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import atomic_path, write_json
from jax_brcd.runtime.registry import unknown_name
from jax_brcd.settings.command_line import OneLineParser, flag, run_command

# In this order: what the targets need first, the longest last
SUITES = ("loss", "evaluate", "search", "multi_index", "augment", "encode", "latency", "train_step", "whole_step", "end_to_end")


def main(argv: list[str] | None = None) -> None:
    """Measures the suites that are asked for, or goes on with what an interrupted run left, and writes the summary.

    Raises:
        InputError: for unknown suites, and at the end where a suite failed.
    """
    compiled.use_fresh_cache()
    parser = OneLineParser(prog="python -m benchmarks.run", description=__doc__, allow_abbrev=False)
    parser.add_argument("--suite", action="append", default=None, metavar="NAME",
                        help=f"measure this suite alone; may be given several times: {', '.join(SUITES)}")
    parser.add_argument("--summary", action="store_true", help="measure nothing: table and figure of what was measured")
    settings = parse_settings(parser, argv)
    own = parser.parse_args(argv)
    for name in own.suite or ():
        if name not in SUITES:
            raise InputError(unknown_name("suite", name, SUITES))
    began = time.perf_counter()
    failed = [] if own.summary else [name for name in begin(settings, own.suite) if not run_suite(name, settings)]
    print(f"\n{write_summary(settings)}\n{tables.duration(time.perf_counter() - began)} in all; {settings.path}")
    if failed:
        raise InputError(f"{', '.join(failed)}: failed, as written above; the other suites are recorded")


def begin(settings: Settings, asked: Sequence[str] | None) -> list[str]:
    """The suites to measure: those asked for, else those that an interrupted run of the same settings left, else all.

    A run of all is noted in the results file as pending, suite by suite, until each is recorded.
    """
    if asked:
        return list(asked)
    results = read_results(settings.path)
    settled = {"quick": settings.quick, "samples": settings.samples}
    left = [name for name in SUITES if name in results["pending"]]
    if left and results.get("run") == settled:
        print(f"going on with an interrupted run: {', '.join(left)} left", flush=True)
        return left
    write_json(settings.path, {**results, "run": settled, "pending": list(SUITES)})
    return list(SUITES)


def run_suite(name: str, settings: Settings) -> bool:
    """Measures a suite in a child process, which records it; returns whether it ended well."""
    print(f"--- {name}", flush=True)
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments(settings)], check=False).returncode == 0


def arguments(settings: Settings) -> list[str]:
    """The command line that gives these settings; the machine's name is settled here, once for all suites."""
    values = {**dataclasses.asdict(settings), "machine": settings.machine_name}
    given = {field.name: values[field.name] for field in dataclasses.fields(settings)
             if values[field.name] != field.default}
    return [word for name, value in given.items() for word in ([flag(name)] if value is True else [flag(name), str(value)])]


def write_summary(settings: Settings) -> str:
    """Writes the table and the figure beside the results; returns the table."""
    results = read_results(settings.path)
    verdicts = targets.verdicts(results)
    table = tables.summary(results, verdicts)
    with atomic_path(settings.path.with_suffix(".md")) as temporary:
        temporary.write_text(table)
    with atomic_path(settings.path.with_suffix(".png")) as temporary:
        plots.summary_figure(verdicts).savefig(temporary, dpi=110)
    return table


if __name__ == "__main__":
    run_command(main)
