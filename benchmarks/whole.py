"""python -m benchmarks.whole: which recipe makes a student that is trained whole match its teacher, on CIFAR-10 at 32 pixels.

Teachers are trained once. Every student is a run of `jax_brcd.student --preset cifar10-32-whole`, but for what its row names. A
result is kept in the JSON as soon as it is there, and what is there is not run again; an interrupted run goes on from its last
checkpoint. Of commands that write the same JSON one is at work at a time.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from tqdm import tqdm

from benchmarks import whole_report
from benchmarks.jobs import as_they_end, logged
from benchmarks.quality import PARTS, study_parser, weight_files
from benchmarks.teachers import TEACHER, Trained
from benchmarks.whole_report import DIVERGED
from jax_brcd.encoder import STUDENT as STUDENT_ROLE
from jax_brcd.encoder import TEACHER as TEACHER_ROLE
from jax_brcd.encoder import WEIGHTS, read_config
from jax_brcd.methods import METHODS
from jax_brcd.retrieval.searches import SEARCHES
from jax_brcd.runtime.errors import InputError, TrainingDiverged
from jax_brcd.runtime.files import lock_beside, locked, read_json, write_json
from jax_brcd.runtime.registry import Registry
from jax_brcd.settings.command_line import flag, run_command
from jax_brcd.settings.presets import PRESETS
from jax_brcd.settings.stages import BOTH
from jax_brcd.stages.claim import settled
from jax_brcd.stages.configuration import Config, create_config
from jax_brcd.stages.context import load_context
from jax_brcd.stages.distillation import teach_student
from jax_brcd.stages.evaluation import score
from jax_brcd.stages.parts import parameters
from jax_brcd.stages.run import build_models, run_teacher
from jax_brcd.stages.teacher import train_teacher
from jax_brcd.student import kept_of, made_by
from jax_brcd.teachers.base import Encoded
from jax_brcd.training.loop import score_name

PRESET = "cifar10-32-whole"
# What a result's name leaves out
RECIPE = {name: value for name, value in PRESETS[PRESET].items() if not name.endswith("_weights")}
STUDENT = "resnet18_32"  # the student's weight file
TEACHERS = ("itq", "cibhash")  # objectives of their heads, the best first
DETAIL_BITS = 64  # of all parts but the recipe
RATES = (7e-4, 2e-3, 6e-3)  # that each method chooses from
# What a method needs beside the recipe: one that learns nothing from a teacher its own objective, one that compares what is made
# of views a teacher that sees them
NEEDED: Mapping[str, Mapping[str, Any]] = {
    "none": {"own_objective": True}, "packd": {"teacher_view": "same"}, "sskd": {"teacher_view": "same"},
    "mse+brcd": {"method_weights": "1,0.1"}, "mse+rkd": {"method_weights": "1,0.02", "rkd_relations_on": "features"},
    "mse+crovca": {"method_weights": "1,0.1"}, "mse+bits": {"method_weights": "1,0.1"}}
SUMS = tuple(name for name in NEEDED if "+" in name)
# The recipe before its targets were means over neighbours: methods are compared by how near a student comes to what its teacher
# says of each image
ALONE: Mapping[str, Any] = {"teacher_neighbours": 0}
# That with one part of it put back or exchanged; `lengths` has those of other images and epochs
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "signal: the teacher's logits": {},
    "signal: the teacher's bits": {"method": "bits"},
    "signal: its chances of a bit": {"method": "bits", "bits_temperature": 0.5},
    "signal: its features": {"method": "mse", "mse_on": "features", "own_objective": True},  # by which the head learns
    "signal: averaged over 50 neighbours": {"teacher_neighbours": 50},
    "teacher sees the same view": {"teacher_view": "same"},
    "with the student's own objective": {"own_objective": True},
    "BRCD as published, trained whole": {"method": "brcd", "own_objective": True, "teacher_view": "same", "view_recipe": "brcd"},
    "views: published": {"view_recipe": "brcd"},
    "views: published, teacher sees them": {"view_recipe": "brcd", "teacher_view": "same"},
    "views: mixed": {"mixup": 0.2},
    "schedule: constant": {"lr_schedule": "constant", "lr": 7e-4},
    "schedule: constant, averaged": {"lr_schedule": "constant", "lr": 7e-4, "ema_decay": 0.998},
    "schedule: cosine": {"lr_schedule": "cosine"},
    "averaged": {"ema_decay": 0.998},
    "optimizer: Adam": {"optimizer": "adam"},
    "optimizer: SGD": {"optimizer": "sgd", "lr": 0.1},
    "batches of 64": {"batch_size": 64, "lr": 1e-3},
    "random start": {"student_weights": "random"},
    "frozen": {"train_backbone": False},
    "bfloat16": {"dtype": "bfloat16"},
}
# BRCD tells a positive that is offset by what its teacher says of another view, so that its parts are compared where the
# teacher sees the student's; of so many kept ones its features are encoded once for all students
SEEN: Mapping[str, Any] = {**ALONE, "teacher_view": "same", "views": 4}
# What a teacher needs whose student falls short of it without neighbours: its chances of a bit as labels, in twice as many steps
CHANCES: Mapping[str, Any] = {**ALONE, "method": "bits", "bits_temperature": 1.0, "batch_size": 128, "lr": 1.5e-3}
# Less of it: a third of the epochs, those in batches of half the images, and those by the method that wins of the last teacher
SHORT: Mapping[str, Mapping[str, Any]] = {"5 epochs": {"epochs": 5},
                                          "5 epochs, batches of 128": {"epochs": 5, "batch_size": 128, "lr": 1.5e-3},
                                          "5 epochs, crovca": {"epochs": 5, "method": "crovca"}}
IMAGES = (5_000, 20_000, 50_000)  # the last are all
# Students of other sizes: the first stages of the one that the recipe has, and others from nothing, for longer
SIZES: Mapping[str, Mapping[str, Any]] = {
    "resnet18_layer2": {"student": "resnet18_layer2"},
    "resnet18_layer2, without neighbours": {**ALONE, "student": "resnet18_layer2"},
} | {f"{name}, without neighbours": {**ALONE, "student": name, "student_weights": "random", "epochs": 60, "lr": 4e-3,
                                     "validation_interval": 10} for name in ("resnet56", "resnet20", "resnet8")}


@dataclasses.dataclass(frozen=True)
class Taught:
    """One student of the study: the part it belongs to, what tells it apart there, and its settings beside the recipe's."""

    part: str
    label: str
    teacher: str  # the objective of its teacher's head
    bits: int
    seed: int
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What its result is called. Students of the same settings share one, whichever part asks for them."""
        words = [f"{flag(name)[2:]}={value}" for name, value in sorted(self.settings.items()) if RECIPE.get(name) != value]
        return "-".join([self.teacher, f"bits={self.bits}", f"seed={self.seed}", *words])

    @property
    def trained(self) -> Trained:
        """Its teacher."""
        return Trained("all", self.teacher, self.bits, self.seed)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the study is asked for.

    Attributes:
        teachers: objectives of their heads. budget: epochs, and `train_images` where they are not all, of the students whose
            methods or parts are compared, the same for each.
    """

    teachers: list[str]
    bits: list[int]
    seeds: list[int]
    methods: list[str]
    rates: list[float]
    budget: Mapping[str, Any]


# The parts of the study, and the students of each, those that matter most first
STUDY: Registry[Callable[[Asked], Iterator[Taught]]] = Registry("part of the study")


@STUDY.register("recipe")
def of_recipe(asked: Asked) -> Iterator[Taught]:
    """The recipe as it is, at all code lengths."""
    return of_lengths("recipe", {}, asked)


@STUDY.register("alone")
def of_alone(asked: Asked) -> Iterator[Taught]:
    """The recipe but for neighbours, at all code lengths."""
    return of_lengths("alone", ALONE, asked)


@STUDY.register("short")
def of_short(asked: Asked) -> Iterator[Taught]:
    """Shorter trainings, of every teacher."""
    return of_labels("short", SHORT, asked.seeds, asked.teachers)


@STUDY.register("chances")
def of_chances(asked: Asked) -> Iterator[Taught]:
    """The last teacher's chances of a bit as the signal."""
    for seed in asked.seeds:
        yield Taught("chances", "chances", asked.teachers[-1], DETAIL_BITS, seed, CHANCES)


@STUDY.register("sizes")
def of_sizes(asked: Asked) -> Iterator[Taught]:
    """Small students, of the first teacher."""
    return of_labels("sizes", SIZES, asked.seeds[:2], asked.teachers[:1])


@STUDY.register("search")
def of_search(asked: Asked) -> Iterator[Taught]:
    """Every method and sum of methods at every rate, at the first seed, for the validation queries to choose from."""
    for teacher in asked.teachers:
        for method in asked.methods:
            for rate in asked.rates:
                yield Taught("search", method, teacher, DETAIL_BITS, asked.seeds[0],
                             {**of_method(method, rate), **asked.budget})


@STUDY.register("variants")
def of_variants(asked: Asked) -> Iterator[Taught]:
    """Parts of the recipe one by one, of the first teacher."""
    labelled = {label: {**ALONE, **asked.budget, **settings} for label, settings in (VARIANTS | lengths(asked.budget)).items()}
    return of_labels("variants", labelled, asked.seeds[:2], asked.teachers[:1])


@STUDY.register("parts of BRCD")
def of_brcd(asked: Asked) -> Iterator[Taught]:
    """BRCD's parts, each added to the ones before it, and `mse` with and without all of it."""
    methods = {name: {"method": name, **NEEDED.get(name, {})} for name in ("mse", "mse+brcd")}
    parts = {label: {"method": "brcd", **settings} for label, settings in PARTS.items()}
    labelled = {label: {**SEEN, **settings, **asked.budget} for label, settings in (methods | parts).items()}
    return of_labels("parts of BRCD", labelled, asked.seeds[:2], asked.teachers)


def lengths(budget: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Other images than the budget's in as many steps, and other epochs of the same images."""
    epochs, images = budget["epochs"], budget.get("train_images", IMAGES[-1])

    def run(epochs: int, images: int) -> dict[str, Any]:
        return {"epochs": epochs, "validation_interval": max(5, epochs // 3),
                "train_images": RECIPE["train_images"] if images == IMAGES[-1] else images}

    others = [(max(1, round(epochs * images / count)), count) for count in IMAGES if count != images]
    longer = [(max(1, round(epochs * factor)), images) for factor in (1 / 3, 2, 4)]
    return ({f"{count:,} images in as many steps": run(number, count) for number, count in others}
            | {f"{number} epochs": run(number, count) for number, count in longer})


def of_lengths(part: str, settings: Mapping[str, Any], asked: Asked) -> Iterator[Taught]:
    """The same settings at all code lengths, of every teacher at every seed."""
    for seed in asked.seeds:
        for teacher in asked.teachers:
            for length in asked.bits:
                yield Taught(part, part, teacher, length, seed, settings)


def of_labels(
    part: str, labelled: Mapping[str, Mapping[str, Any]], seeds: Iterable[int], teachers: Iterable[str]
) -> Iterator[Taught]:
    """Settings by their labels, at one code length."""
    for seed in seeds:
        for teacher in teachers:
            for label, settings in labelled.items():
                yield Taught(part, label, teacher, DETAIL_BITS, seed, settings)


def of_method(method: str, rate: float) -> dict[str, Any]:
    """The settings of a method's student."""
    return {**ALONE, "method": method, "lr": rate, **NEEDED.get(method, {})}


def chosen(search: Iterable[Taught], results: Mapping[str, Mapping[str, Any]], seeds: Iterable[int]) -> list[Taught]:
    """Of each teacher every method at the rate that did best on the validation queries, at every seed; at none where all diverged."""
    best: dict[tuple[str, str], Taught] = {}
    for student in search:
        place = student.teacher, student.label
        if DIVERGED in results[student.name]:
            continue
        if place not in best or results[student.name]["validation"] > results[best[place].name]["validation"]:
            best[place] = student
    return [dataclasses.replace(student, part="methods", seed=seed) for seed in seeds for student in best.values()]


@dataclasses.dataclass(frozen=True)
class Study:
    """Where the study's runs and results lie and what they all share."""

    runs: pathlib.Path
    results: pathlib.Path
    shared: Mapping[str, Any]
    jobs: int

    def carry_out(self, students: Iterable[Taught], described: str) -> None:
        """Trains what has not been trained, teachers first."""
        wanted = {student.name: student for student in students}
        known = outcomes(self.results)
        left = [student for name, student in wanted.items() if name not in known]
        teachers = [teacher for teacher in dict.fromkeys(student.trained for student in left)
                    if not (self.runs / "teachers" / teacher.name / "teacher" / WEIGHTS).exists()]
        with tqdm(total=len(wanted) + len(teachers), initial=len(wanted) - len(left), desc=described, unit="run",
                  dynamic_ncols=True, smoothing=0) as bar:
            for _ in self._each(train, teachers):
                bar.update()
            for name, found in self._each(teach, left):
                known[name] = found
                write_json(self.results, {"recipe": RECIPE, "outcomes": known})
                shutil.rmtree(self.runs / "students" / name)  # there are hundreds; the features it links to stay
                bar.update()

    def _each(self, work: Callable[..., Any], wanted: list[Any]) -> Iterator[Any]:
        return as_they_end(self.jobs, work, ((self.runs, self.shared, one) for one in wanted))


def outcomes(results: pathlib.Path) -> dict[str, dict[str, Any]]:
    """What is known of each student, by name. Raises InputError for those of another recipe, whose names mean something else."""
    if not results.exists():
        return {}
    found = read_json(results)
    if found.get("recipe") != RECIPE:
        raise InputError(f"{results}: its students learnt by another recipe than {PRESET} is now; move it away or give another --out")
    return found["outcomes"]


def train(folder: pathlib.Path, shared: Mapping[str, Any], teacher: Trained) -> None:
    """A teacher, in a run directory of its own."""
    out = folder / "teachers" / teacher.name
    own = {name: shared[name] for name in ("data_dir", "teacher_weights")}
    with logged(out.with_name(f"{out.name}.log"), folder / "compiled"):
        run_teacher(create_config(dataset="cifar10", teacher=TEACHER, cache_dir=folder / "cache", **own, **teacher.settings(),
                                  out=out), say=print)


def teach(folder: pathlib.Path, shared: Mapping[str, Any], student: Taught) -> tuple[str, dict[str, Any]]:
    """A student's name and what the study keeps of it."""
    teacher = folder / "teachers" / student.trained.name / "teacher"
    cache = folder / "students" / student.name
    with logged(cache.with_name(f"{cache.name}.log"), folder / "compiled"):  # a name may hold a point
        for place in (cache, folder / "cache" / "features"):
            place.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # features of images are everyone's
            (cache / "features").symlink_to((folder / "cache" / "features").absolute())
        made = made_by(read_config(teacher)["provenance"])
        settings = {**kept_of(PRESET, made), **made, "teacher": TEACHER, "teacher_weights": str(teacher),
                    "data_dir": shared["data_dir"], "student_weights": shared["student_weights"], **student.settings}
        config = create_config(PRESET, **settings, bits=student.bits, seed=student.seed, cache_dir=cache, out=cache / "run")
        return student.name, outcome(config, teacher.with_name("scores.json"))


def outcome(config: Config, of_teachers: pathlib.Path) -> dict[str, Any]:
    """Of a student the scores of both searches by the test queries beside its teacher's, its validations, the best of them, the
    seconds its epochs took, how many parameters it has, and what it ran on.

    They are those of a run but for the cosine of features, which takes longer than all else. Of one that diverged it is why.

    Args:
        of_teachers: where the teacher's scores are kept for its other students.
    """
    context = load_context(config, say=print)
    of_teacher, of_student = build_models(context, student=True)
    context = dataclasses.replace(context, config=settled(config, head_came=of_teacher.head_came))
    teacher, _ = train_teacher(context, of_teacher)
    try:
        student = teach_student(context, of_student, teacher)
    except TrainingDiverged as error:
        return {DIVERGED: error.problem.split(";")[0]}  # and not how this very run would go on
    encoder = next(iter(student.encoders.values()))
    queries, database = (student.parts.outputs(encoder.model, part) for part in ("test", "database"))
    databases = {STUDENT_ROLE: database, TEACHER_ROLE: teacher.outputs("database")}

    def scores(seen: Encoded, searched: Encoded) -> dict[str, float | None]:
        found = score(context, seen, searched, alike=False)
        return {"map": found.map, "tie_aware_map": found.tie_aware_map, "soft_map": found.soft_map}

    if not of_teachers.exists():
        write_json(of_teachers, scores(teacher.outputs("test"), databases[TEACHER_ROLE]))
    validations = [{name: record[name] for name in record if name == "epoch" or name.endswith("_map")}
                   for record in student.history if score_name(BOTH) in record]
    return {"protocol": context.protocol(), TEACHER_ROLE: read_json(of_teachers),
            **{str(search): scores(queries, databases[search.database]) for search in SEARCHES},
            "parameters": parameters(encoder.model), "validations": validations,
            "validation": max(record[score_name(BOTH)] for record in validations),
            "seconds": sum(record["seconds"] for record in student.history), "epochs": len(student.history),
            "device": jax.devices()[0].device_kind}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line of the study."""
    parser = study_parser("whole", __doc__, [TEACHER, STUDENT])
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS), help="objectives of the teachers (default: itq cibhash)")
    parser.add_argument("--parts", nargs="+", default=list(STUDY), help=f"parts of the study (default: {' '.join(STUDY)})")
    parser.add_argument("--methods", nargs="+", default=[*METHODS, *SUMS], help="methods to compare (default: all, and sums)")
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES),
                        help="learning rates that each method chooses from (default: 0.0007 0.002 0.006)")
    parser.add_argument("--epochs", type=int, default=PRESETS[PRESET]["epochs"],
                        help="epochs of the students whose methods or parts are compared (default: %(default)s)")
    parser.add_argument("--train-images", type=int, help="images that these train on (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="train nothing: tables and figures of what is there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Carries out the study and writes its results."""
    options = parse(argv)
    for part in options.parts:
        STUDY[part]
    results = options.out / "whole.json"
    budget = {"epochs": options.epochs} | ({} if options.train_images is None else {"train_images": options.train_images})
    asked = Asked(options.teachers, options.bits, options.seeds, options.methods, options.rates, budget)
    students = [student for part in options.parts for student in STUDY[part](asked)]
    search = [student for student in students if student.part == "search"]
    if not options.report:
        weights = weight_files(options.weights, [TEACHER, STUDENT])
        shared = {"data_dir": options.data_dir, "teacher_weights": weights[TEACHER], "student_weights": weights[STUDENT]}
        study = Study(options.runs, results, shared, options.jobs)
        with locked(lock_beside(results), lambda: print(f"Another study writes {results}; this one waits for it.", flush=True)):
            study.carry_out(students, "study")
            study.carry_out(chosen(search, outcomes(results), options.seeds), "chosen")
    known = outcomes(results)
    students += chosen((student for student in search if student.name in known), known, options.seeds)
    records = [{**dataclasses.asdict(student), "result": known[student.name]} for student in students if student.name in known]
    if all(DIVERGED in record["result"] for record in records):
        raise InputError(f"{results}: holds no results of {', '.join(options.parts)}; leave --report out to have them")
    whole_report.write(options.out, records)
    print((options.out / "whole.md").read_text())


if __name__ == "__main__":
    run_command(main)
