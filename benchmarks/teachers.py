"""python -m benchmarks.teachers: which objective of the teacher's hash head searches best, on CIFAR-10 at 32 pixels.

Every teacher is a run directory of `jax_brcd.teacher` of its own, so the comparison goes on teacher by teacher where it was
interrupted.
"""

import argparse
import contextlib
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from benchmarks.quality import study_parser, weight_files
from benchmarks.quality_report import spread, table
from jax_brcd.runtime.files import atomic_path, write_json
from jax_brcd.settings.command_line import run_command
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.folder import HISTORY, read_history
from jax_brcd.stages.run import run_teacher
from jax_brcd.teachers.objectives import OBJECTIVES

TEACHER = "vit_lite_7_4"
VIEWS = {"published": 4, "all": 2}  # kept ones of an image, by the images that train: 5,000 and 50,000
MEASURES = {"map": "mAP", "soft_map": "soft mAP"}


@dataclasses.dataclass(frozen=True)
class Trained:
    """One teacher of the comparison."""

    images: str  # that it trains on, as `train_images` says
    objective: str
    bits: int
    seed: int

    @property
    def name(self) -> str:
        """The run directory's name."""
        return f"{self.images}-{self.objective}-{self.bits}bits-seed{self.seed}"

    def settings(self) -> dict[str, Any]:
        """What tells its configuration apart."""
        return {"train_images": self.images, "teacher_objective": self.objective, "bits": self.bits, "seed": self.seed,
                "views": VIEWS[self.images]}


def carry_out(teachers: Iterable[Trained], folder: pathlib.Path, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Trains what has not been trained; a record each of what it is, how well it searches and how long its head took."""
    records = []
    for teacher in tqdm(list(teachers), desc="teachers", unit="run", dynamic_ncols=True):
        out = folder / teacher.name
        log = folder / f"{teacher.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file, contextlib.redirect_stdout(file):
            metrics = run_teacher(create_config(**shared, **teacher.settings(), out=out), say=print)
        seconds = [record["seconds"] for record in read_history(out / HISTORY) if record["stage"] == "teacher"]
        records.append({**dataclasses.asdict(teacher), **metrics["teacher"], "seconds": sum(seconds),
                        "k": metrics["protocol"]["k"]})
    return records


def comparison(records: list[Mapping[str, Any]]) -> str:
    """A table for each choice of training images: objectives down, measures and bits across, mean and deviation over seeds."""
    pages = []
    for images in dict.fromkeys(record["images"] for record in records):
        chosen = [record for record in records if record["images"] == images]
        bits, k = sorted({record["bits"] for record in chosen}), chosen[0]["k"]
        header = ["objective", *(f"{name}@{k}, {length} bits" for name in MEASURES.values() for length in bits),
                  *(f"seconds, {length} bits" for length in bits)]
        rows = [[objective, *(spread(_values(chosen, objective, length, measure)) for measure in MEASURES for length in bits),
                 *(f"{np.median(_values(chosen, objective, length, 'seconds')):.2g}" for length in bits)]
                for objective in dict.fromkeys(record["objective"] for record in chosen)]
        seeds = sorted({record["seed"] for record in chosen})
        pages.append(f"Training images: {images}; seeds {', '.join(map(str, seeds))}\n\n{table(header, rows)}\n")
    return "\n".join(pages)


def _values(records: list[Mapping[str, Any]], objective: str, bits: int, measure: str) -> Float[np.ndarray, "seeds"]:
    return np.array([record[measure] for record in records if (record["objective"], record["bits"]) == (objective, bits)])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line of the comparison."""
    parser = study_parser("teachers", __doc__, [TEACHER])
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), help="teacher objectives (default: all)")
    parser.add_argument("--images", nargs="+", default=list(VIEWS), choices=VIEWS,
                        help="training images (default: published all)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Carries out the comparison and writes its results."""
    options = parse(argv)
    for name in options.objectives:
        OBJECTIVES[name]
    weights = weight_files(options.weights, [TEACHER])
    shared = {"dataset": "cifar10", "data_dir": options.data_dir, "teacher": TEACHER, "teacher_weights": weights[TEACHER]}
    # Teachers of one choice of images, recipe and seed share the views that the first of them encodes
    teachers = [Trained(images, objective, bits, seed) for images in options.images for seed in options.seeds
                for objective in options.objectives for bits in options.bits]
    records = carry_out(teachers, options.runs, shared)
    write_json(options.out / "teachers.json", {"teacher": TEACHER, "views": VIEWS, "teachers": records})
    with atomic_path(options.out / "teachers.md") as temporary:
        temporary.write_text(comparison(records))
    print(comparison(records))


if __name__ == "__main__":
    run_command(main)
