"""A suite of measurements as a command: options, rows as they come, the results file, a table and a plot."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator

from benchmarks import compiled, machine, plots, tables
from benchmarks.results import Row, Skipped, record_suite, results_path
from jax_brcd.runtime.files import atomic_path
from jax_brcd.runtime.xla import set_flags
from jax_brcd.settings.command_line import OneLineParser, add_options
from jax_brcd.settings.options import convert, option


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every suite can be told."""

    quick: bool = option(False, "fewer sizes, for all suites within ten minutes on two cores")
    samples: int = option(7, "timed samples of each contender, in turns", low=1)
    machine: str | None = option(None, "name of the machine in the results; the CPU's model and cores where not given")
    results: pathlib.Path = option(pathlib.Path("benchmarks/results"), "folder of the results")
    data_dir: pathlib.Path | None = option(None, "folder of CIFAR-10 in its binary layout, for end_to_end")
    weights_dir: pathlib.Path = option(pathlib.Path("../shared/weights"), "folder of vit_lite_7_4.safetensors and "
                                       "resnet18_32.safetensors, for end_to_end")
    run: pathlib.Path | None = option(None, "folder of a finished run whose teacher and student latency measures too, with the "
                                      "mAP of each program's bits")
    browser_runtime: pathlib.Path | None = option(None, "folder of onnxruntime-web's files, for latency in the browser")

    @property
    def case_seconds(self) -> float:
        """Seconds of a case after which it takes no more samples than it needs."""
        return 6.0 if self.quick else 60.0

    @property
    def machine_name(self) -> str:
        """The machine's name as told, or what it is."""
        return self.machine or machine.default_name()

    @property
    def path(self) -> pathlib.Path:
        """The file of the machine's results."""
        return results_path(self.results, self.machine_name)


@dataclasses.dataclass(frozen=True)
class Suite:
    """Measurements that belong together. `measure` yields rows, and what it skipped, as it goes."""

    name: str
    description: str
    measure: Callable[[Settings], Iterator[Row | Skipped]]

    def main(self, argv: list[str] | None = None) -> None:
        """Measures the suite, records it among the machine's results and shows it."""
        set_flags()
        compiled.use_fresh_cache()
        parser = OneLineParser(prog=f"python -m benchmarks.{self.name}", description=self.description, allow_abbrev=False)
        self.run(parse_settings(parser, argv))

    def run(self, settings: Settings) -> None:
        """Measures and records; what was measured before a failure is recorded with it."""
        began = time.perf_counter()
        rows: list[Row] = []
        skipped: list[Skipped] = []
        try:
            self._collect(settings, rows, skipped)
        except Exception as error:  # and not an interruption, after which what was recorded before stays and the suite is left to do
            skipped.append(Skipped("the rest of the suite", f"failed: {type(error).__name__}: {error}"))
            self._record(settings, rows, skipped, time.perf_counter() - began)
            raise
        self._record(settings, rows, skipped, time.perf_counter() - began)
        print(f"\n{tables.suite_table(rows, skipped)}\n\n{settings.path}")

    def _collect(self, settings: Settings, rows: list[Row], skipped: list[Skipped]) -> None:
        for found in self.measure(settings):
            if isinstance(found, Row):
                rows.append(found)
                print(f"{self.name}: {tables.line(found)}", flush=True)
            else:
                skipped.append(found)
                print(f"{self.name}: {found.case}: skipped, {found.reason}", flush=True)

    def _record(self, settings: Settings, rows: list[Row], skipped: list[Skipped], duration: float) -> None:
        facts = {"quick": settings.quick, "duration": duration, "machine": machine.description()}
        record_suite(settings.path, self.name, rows, skipped, **facts)
        with atomic_path(settings.results / settings.machine_name / f"{self.name}.png") as temporary:
            plots.suite_figure(self.name, rows).savefig(temporary, dpi=110)


def parse_settings(parser: OneLineParser, argv: list[str] | None) -> Settings:
    """Settings from a command line; other options of the parser are left out."""
    add_options(parser, "options", [Settings])
    names = {field.name for field in dataclasses.fields(Settings)}
    return convert(Settings, {name: value for name, value in vars(parser.parse_args(argv)).items() if name in names})
