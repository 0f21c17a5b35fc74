"""Everything a run can be told: one frozen dataclass a stage, the presets of published runs, and their resolution."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from jax_brcd.data import DATASETS, LABEL_FORMATS
from jax_brcd.methods import METHODS, create_method
from jax_brcd.models import BACKBONES
from jax_brcd.runtime.registry import Registry
from jax_brcd.settings import options
from jax_brcd.settings.options import option
from jax_brcd.teachers.objectives import OBJECTIVES, create_objective


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and which of their views."""

    dataset: str = option("digits", "data set")
    data_dir: pathlib.Path | None = option(None, "folder of the data set; CIFAR-10 is downloaded into it when absent; lists "
                                           "(train.txt, database.txt, test.txt) and image folders lie in it")
    split: str = option("published", "protocol that says which images train, are searched and are queries; CIFAR-10 also has "
                        "cifar10-I, cifar10-II and cifar10-III")
    train_images: str = option("published", "unlabelled images to train on: the published subset or all",
                               choices=("published", "all"))
    k: int | None = option(None, "ranks that mAP@k and precision@k look at", low=1)
    views: int = option(16, "augmented views an image that are encoded once and kept; naming them means --no-fresh-views",
                        low=2)
    fresh_views: bool = option(True, "draw new views each epoch, as published, instead of keeping --views of them")
    label_format: str | None = option(None, "how list files give labels: multi-hot, a 0 or 1 a class, or class-numbers, the number "
                                      "of the one class; to be told where an image has one label alone",
                                      choices=tuple(LABEL_FORMATS))
    max_bad_images: int = option(0, "image files that may be missing or corrupt; they are named and skipped", low=0)
    decode_workers: int | None = option(None, "processes that decode image files; 0 for none beside this one", low=0)
    resident_mib: int = option(2048, "MiB of training images kept on the device where views are drawn from pixels; more "
                               "of them travel a step at a time", low=0)
    cache_dir: pathlib.Path = option(pathlib.Path("~/.cache/jax_brcd"), "where decoded images, kept features and downloads lie")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The codes and the contrastive objective that teacher and student share."""

    bits: int = option(64, "length of the hash codes, in bits", low=1)
    temperature: float = option(0.3, "temperature of the contrastive terms", above=0)
    kl_weight: float = option(0.001, "weight of the Bernoulli KL term", low=0)


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The hashing teacher: a frozen backbone and a hash head."""

    teacher: str = option("vit_b_16", "teacher's backbone; the size it is meant for is that of all images")
    teacher_weights: str = option("imagenet", "teacher's backbone weights: a .safetensors or .pth file, 'imagenet' "
                                  "(torchvision's), 'held-out' (pretrained here on the data set's labelled held-out "
                                  "images) or 'random'")
    teacher_objective: str = option("cibhash", "what the teacher's hash head learns, or is solved by: "
                                    f"{', '.join(OBJECTIVES)}")
    pretraining_epochs: int = option(30, "epochs of pretraining under --teacher-weights held-out", low=0)
    teacher_epochs: int = option(60, "epochs of the teacher's hash head", low=0)
    teacher_lr: float = option(5e-4, "Adam's learning rate for the teacher's hash head", above=0)


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """The student and how long it learns."""

    student: str = option("resnet18", "student's backbone")
    student_weights: str = option("imagenet", "student's backbone weights: a file, 'imagenet' or 'random'")
    train_backbone: bool = option(False, "train the student whole instead of its hash head alone")
    epochs: int = option(400, "epochs of distillation at most", low=0)
    lr: float = option(1e-3, "Adam's learning rate for the student", above=0)
    validation_interval: int = option(10, "epochs between validations of both searches", low=1)
    patience: int = option(5, "stop after more than this many validations without a gain on either search", low=0)
    min_epochs: int | None = option(None, "epochs before an early stop; published: 80 for 16 bits, else none", low=0)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How the run is carried out."""

    method: str = option("brcd", f"what the student learns from the teacher: {', '.join(METHODS)}")
    batch_size: int = option(64, "images a training step", low=1)
    dtype: str = option("float32", "arithmetic of the encoders; parameters, losses and codes stay float32",
                        choices=("float32", "bfloat16"))
    seed: int = option(0, "the one seed of splits, heads, batches and views", low=0)
    checkpoint_seconds: float = option(30.0, "seconds of training between checkpoints", low=0)
    out: pathlib.Path | None = option(None, "run directory; the same command goes on with what it holds")
    processes: int = option(1, "processes of the run, one a host, that share --out and --cache-dir; each has all its devices", low=1)
    process_id: int = option(0, "which of the processes this is; process 0 prints and writes", low=0)
    coordinator: str = option("127.0.0.1:9876", "HOST:PORT at which process 0 listens for the others")


STAGES = (DataConfig, ObjectiveConfig, TeacherConfig, StudentConfig, RunConfig)

# Where a run lies and computes and how often it saves do not change what it is, so a run may go on under others.
UNCOMPARED = ("out", "data_dir", "cache_dir", "checkpoint_seconds", "decode_workers", "processes", "process_id",
              "coordinator")

PRESETS: Registry[Mapping[str, Any]] = Registry("preset")
PRESETS.register("digits")({
    "dataset": "digits", "teacher": "vit_lite_4_8", "teacher_weights": "held-out", "teacher_epochs": 40,
    "student": "resnet8", "student_weights": "random", "train_backbone": True, "epochs": 20, "lr": 2e-3,
    "views": 8,
})
PRESETS.register("cifar10-vit_b_16-resnet18")({
    "dataset": "cifar10", "teacher": "vit_b_16", "teacher_weights": "imagenet", "student": "resnet18",
    "student_weights": "imagenet",
})
PRESETS.register("cifar10-vit_b_16-efficientnet_b0")({
    **PRESETS["cifar10-vit_b_16-resnet18"], "student": "efficientnet_b0",
})


@dataclasses.dataclass(frozen=True)
class Config:
    """A run's resolved configuration. `hashing` carries the settings of the chosen teacher objective, `method` the method's."""

    data: DataConfig
    objective: ObjectiveConfig
    teacher: TeacherConfig
    student: StudentConfig
    run: RunConfig
    hashing: Any
    method: Any

    @property
    def min_epochs(self) -> int:
        """Epochs before an early stop: as told, else 80 for 16-bit codes as published."""
        told = self.student.min_epochs
        return told if told is not None else 80 if self.objective.bits == 16 else 0

    @property
    def out(self) -> pathlib.Path:
        """The run directory: as told, else a name made of what distinguishes runs."""
        if self.run.out is not None:
            return self.run.out
        parts = (self.data.dataset, self.teacher.teacher, self.student.student, f"{self.objective.bits}bits",
                 self.run.method, f"seed{self.run.seed}")
        return pathlib.Path("runs") / "-".join(parts)

    def flat(self) -> dict[str, Any]:
        """Every setting by its name, as JSON holds it."""
        stages = (self.data, self.objective, self.teacher, self.student, self.run, self.hashing, self.method)
        settings = {field.name: getattr(stage, field.name) for stage in stages for field in dataclasses.fields(stage)
                    if field.metadata}
        return {name: str(value) if isinstance(value, pathlib.Path) else value for name, value in settings.items()}

    def compared(self) -> dict[str, Any]:
        """The settings that a run directory must agree on to be gone on with."""
        return {name: value for name, value in self.flat().items() if name not in UNCOMPARED}


def create_config(preset: str | None = None, **settings: Any) -> Config:
    """Resolves settings: published defaults, then the preset, then what is given.

    The digits preset applies to the digits data set unless another preset is named. A preset or caller that names a number
    of views to keep, and says nothing of fresh ones, keeps them.

    Raises:
        InputError: for unknown names and settings out of bounds.
    """
    chosen = settings.get("dataset", "digits")
    if preset is None and chosen in PRESETS:
        preset = chosen
    merged: dict[str, Any] = {}
    for layer in (PRESETS[preset] if preset else {}, settings):
        merged |= {"fresh_views": False, **layer} if "views" in layer else layer
    known = {field.name: stage for stage in STAGES for field in dataclasses.fields(stage)}
    given = {stage: {name: value for name, value in merged.items() if known.get(name) is stage} for stage in STAGES}
    objectives_own = {field.name for kind in OBJECTIVES.values() for field in dataclasses.fields(kind)}
    for_objective = {name: value for name, value in merged.items() if name in objectives_own}
    for_method = {name: value for name, value in merged.items() if name not in known and name not in objectives_own}
    data, objective, teacher, student, run = (stage(**given[stage]) for stage in STAGES)
    for stage in (data, objective, teacher, student, run):
        options.check(stage)
    for registry, name in ((DATASETS, data.dataset), (BACKBONES, teacher.teacher), (BACKBONES, student.student)):
        registry[name]
    data = dataclasses.replace(data, cache_dir=data.cache_dir.expanduser())
    return Config(data, objective, teacher, student, run, create_objective(teacher.teacher_objective, **for_objective),
                  create_method(run.method, **for_method))


def parse_command_line(program: str, description: str, argv: list[str] | None = None) -> Config:
    """The configuration that a command line asks for; prints help or one error line and exits where it must."""
    parser = options.OneLineParser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--preset", default=None, metavar="NAME",
                        help=f"settings of a whole experiment, each still its own option: {', '.join(PRESETS)}")
    for stage, title in zip(STAGES, ("data", "codes and objective", "teacher", "student", "run"), strict=True):
        options.add_options(parser, title, [stage])
    options.add_options(parser, "teacher objective", OBJECTIVES)
    options.add_options(parser, "method", METHODS)
    given = vars(parser.parse_args(argv))
    return create_config(given.pop("preset"), **given)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The settings on which two flat configurations differ, as `--name theirs (ours now)`."""
    names = sorted(set(ours) | set(theirs))
    return [f"{options.flag(name)} {theirs.get(name)} (now {ours.get(name)})"
            for name in names if ours.get(name) != theirs.get(name)]
