"""python -m benchmarks.quality: which distillation method searches best, over methods, bits and seeds, on CIFAR-10 at 32
pixels.

Every run is a run directory of `jax_brcd.distill` of its own, so the study goes on run by run where it was interrupted.
"""

import argparse
import dataclasses
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tqdm import tqdm

from benchmarks import quality_report
from benchmarks.jobs import as_they_end, logged
from jax_brcd.clusters.kmeans import VARIANTS
from jax_brcd.methods import METHODS
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import atomic_path, read_json, write_json
from jax_brcd.runtime.registry import Registry
from jax_brcd.runtime.workers import cores
from jax_brcd.settings.command_line import OneLineParser, flag, run_command
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.folder import HISTORY, read_history
from jax_brcd.stages.run import run

BITS, SEEDS = (16, 32, 64), (0, 1, 2)
BACKBONES = ("vit_lite_7_4", "resnet18_32")  # of the teacher and of the student, as their weight files are called
DETAIL_BITS = 64  # of the ablation, the sensitivity and the search
# BRCD's parts, each added to the ones before it; the last is the default
PARTS = {
    "individual space": {"alpha": 1.0, "robust": False, "mask_bits": False},
    "+ structural": {"robust": False, "mask_bits": False},
    "+ robust": {"mask_bits": False},
    "+ bit mask": {},
}
SENSITIVITY = {"alpha": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "margin": (0.1, 0.3, 0.5, 0.7, 0.9), "clusters": (2, 5, 10, 14, 20),
               "temperature": (0.1, 0.2, 0.3, 0.5, 1.0), "lr": (1e-4, 3e-4, 1e-3, 3e-3), "epochs": (20, 120, 240)}
# What every method may choose from: the student's learning rate, and as many values of its own settings
RATES = ({}, {"lr": 3e-4}, {"lr": 3e-3})
WEIGHTS = ({"distillation_weight": 0.3}, {"distillation_weight": 3.0}, {"distillation_weight": 10.0})
OWN: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "brcd": ({"alpha": 0.4}, {"clusters": 5}, {"margin": 0.3}),
    "none": ({"lr": 1e-4}, {"lr": 5e-3}, {"lr": 1e-2}),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the study: the part it belongs to, what tells it apart there, and its settings."""

    part: str
    label: str
    bits: int
    seed: int
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run directory's name. Runs of the same settings share one, whichever part asks for them."""
        words = [f"{flag(name)[2:]}={value}" for name, value in sorted(self.settings.items())]
        return "-".join([*words, f"bits={self.bits}", f"seed={self.seed}"])


# The parts of the study: (methods, bits, seeds) -> runs
STUDY: Registry[Callable[[list[str], list[int], list[int]], list[Run]]] = Registry("part of the study")


@STUDY.register("methods")
def every_method(methods: list[str], bits: list[int], seeds: list[int]) -> list[Run]:
    """All methods at all bits and seeds, with their default settings."""
    return [Run("methods", method, length, seed, {"method": method}) for seed in seeds for length in bits for method in methods]


@STUDY.register("ablation")
def parts_of_brcd(methods: list[str], bits: list[int], seeds: list[int]) -> list[Run]:
    """BRCD's parts, each added to the ones before it."""
    return [Run("ablation", label, DETAIL_BITS, seed, brcd(**settings)) for seed in seeds for label, settings in PARTS.items()]


@STUDY.register("variants")
def variants_of_brcd(methods: list[str], bits: list[int], seeds: list[int]) -> list[Run]:
    """BRCD as released and as meant."""
    return [Run("variants", variant, length, seed, brcd(variant=variant))
            for seed in seeds for length in bits for variant in VARIANTS]


@STUDY.register("sensitivity")
def settings_of_brcd(methods: list[str], bits: list[int], seeds: list[int]) -> list[Run]:
    """One of BRCD's settings at a time, at the first seed."""
    return [Run("sensitivity", f"{name} {value}", DETAIL_BITS, seeds[0], brcd(**{name: value}))
            for name, values in SENSITIVITY.items() for value in values]


@STUDY.register("search")
def settings_of_every_method(methods: list[str], bits: list[int], seeds: list[int]) -> list[Run]:
    """As many settings of every method, at the first seed, for the validation queries to choose from."""
    return [Run("search", method, DETAIL_BITS, seeds[0], {"method": method, **settings})
            for method in methods for settings in (*RATES, *OWN.get(method, WEIGHTS))]


def brcd(**settings: Any) -> dict[str, Any]:
    """The settings of a BRCD run without those that are its defaults, so that equal runs are one."""
    usual = create_config(dataset="cifar10", method="brcd").flat()
    return {"method": "brcd", **{name: value for name, value in settings.items() if value != usual[name]}}


def chosen(search: Iterable[Run], results: Mapping[str, Mapping[str, Any]], seeds: Iterable[int]) -> list[Run]:
    """For either search each method under the settings that did best there on the validation queries, at every seed."""
    best: dict[tuple[str, str], Run] = {}
    for run in search:
        for kind, score in results[run.name]["validation"].items():
            place = kind, run.label
            if place not in best or score > results[best[place].name]["validation"][kind]:
                best[place] = run
    return [dataclasses.replace(run, part=f"chosen, {kind}", seed=seed) for (kind, _), run in best.items() for seed in seeds]


@dataclasses.dataclass(frozen=True)
class Study:
    """Where the study's runs lie and what they all share."""

    folder: pathlib.Path
    shared: Mapping[str, Any]
    jobs: int

    def carry_out(self, runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
        """Runs what has not been run; returns the outcome of each by name.

        The first run of each method and seed encodes the views that later ones reuse, so these go one at a time.
        """
        distinct = list({run.name: run for run in runs}.values())
        first = list({(run.settings["method"], run.seed): run for run in reversed(distinct)}.values())
        rest = [run for run in distinct if run not in first]
        with tqdm(total=len(distinct), desc="study", unit="run", dynamic_ncols=True) as bar:
            for stage, jobs in ((first, 1), (rest, self.jobs)):
                self._stage(stage, jobs, bar)
        return {run.name: outcome(self.folder / run.name) for run in distinct}

    def _stage(self, runs: list[Run], jobs: int, bar: tqdm) -> None:
        settings = [{**self.shared, **run.settings, "bits": run.bits, "seed": run.seed, "out": self.folder / run.name}
                    for run in runs]
        for _ in as_they_end(jobs, distil, ((one,) for one in settings)):
            bar.update()


def distil(settings: Mapping[str, Any]) -> None:
    """One run of the distillation command; what it prints goes to a log beside its run directory."""
    out = settings["out"]
    with logged(out.with_name(f"{out.name}.log"), out.parent / ".compiled"):  # the names hold numbers with points
        run(create_config(**settings), say=print)


def outcome(directory: pathlib.Path) -> dict[str, Any]:
    """What the study keeps of a run: its test scores, and the best validation mAP of each search."""
    metrics = read_json(directory / "metrics.json")
    history = [record for record in read_history(directory / HISTORY) if "symmetric_map" in record]
    best = {search: max(record[f"{search}_map"] for record in history) for search in quality_report.SEARCHES}
    return {"protocol": metrics["protocol"], "teacher": metrics["teacher"], **metrics["student"], "validation": best,
            "epochs": history[-1]["epoch"]}


def study_parser(name: str, description: str | None, weights: Iterable[str]) -> OneLineParser:
    """The options that studies on CIFAR-10 share; `weights` are the files that one needs, without their ending."""
    parser = OneLineParser(prog=f"python -m benchmarks.{name}", description=description, allow_abbrev=False)
    parser.add_argument("--data-dir", type=pathlib.Path, required=True, help="folder of CIFAR-10's binary layout")
    files = " and ".join(f"{each}.safetensors" for each in weights)
    parser.add_argument("--weights", type=pathlib.Path, default=pathlib.Path("../shared/weights"),
                        help=f"folder of {files} (default: %(default)s)")
    parser.add_argument("--bits", nargs="+", type=int, default=list(BITS), help="code lengths in bits (default: 16 32 64)")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="seeds (default: 0 1 2)")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs") / name,
                        help="folder of the run directories (default: %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results") / name,
                        help="folder of the JSON, the tables and the figures (default: %(default)s)")
    return parser


def weight_files(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    """The paths of weight files by their names. Raises InputError for one that is not there."""
    files = {name: folder / f"{name}.safetensors" for name in names}
    for path in files.values():
        if not path.is_file():
            raise InputError(f"{path}: no such weight file; give its folder by --weights")
    return {name: str(path) for name, path in files.items()}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line of the study."""
    parser = study_parser("quality", __doc__, BACKBONES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="distillation methods (default: all)")
    parser.add_argument("--parts", nargs="+", default=list(STUDY), help=f"parts of the study (default: {' '.join(STUDY)})")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of distillation at most (default: %(default)s)")
    parser.add_argument("--views", type=int, default=4, help="kept views an image (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=cores(), help="runs at once (default: the cores)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Carries out the study and writes its results."""
    options = parse(argv)
    for registry, names in ((METHODS, options.methods), (STUDY, options.parts)):
        for name in names:
            registry[name]
    teacher_weights, student_weights = weight_files(options.weights, BACKBONES).values()
    shared = {"dataset": "cifar10", "data_dir": options.data_dir, "teacher": "vit_lite_7_4",
              "teacher_weights": teacher_weights, "student": "resnet18",
              "student_weights": student_weights, "epochs": options.epochs, "views": options.views}
    study = Study(options.runs, shared, options.jobs)
    runs = [one for part in options.parts for one in STUDY[part](options.methods, options.bits, options.seeds)]
    results = study.carry_out(runs)
    again = chosen([run for run in runs if run.part == "search"], results, options.seeds)
    results |= study.carry_out(again)
    runs += again
    records = [{**dataclasses.asdict(run), "result": results[run.name]} for run in runs]
    command = f"python -m benchmarks.quality {' '.join(sys.argv[1:] if argv is None else argv)}"
    write_json(options.out / "quality.json", {"command": command, "settings": {
        name: str(value) for name, value in shared.items()},
                                              "runs": records})
    quality_report.write(options.out, records)
    usual = Run("methods", "brcd", max(options.bits), options.seeds[0], brcd())
    if usual.name in results:
        with atomic_path(options.out / "bit_masks.png") as temporary:
            shutil.copyfile(options.runs / usual.name / "plots" / "bit_masks.png", temporary)
    print((options.out / "quality.md").read_text())


if __name__ == "__main__":
    run_command(main)
