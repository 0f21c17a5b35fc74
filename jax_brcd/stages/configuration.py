"""A run's resolved configuration: published defaults, then a preset, then what is given; and how two of them compare."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jax_brcd.data import DATASETS
from jax_brcd.hub import Fetched
from jax_brcd.methods import METHODS, create_method
from jax_brcd.methods.sums import PLUS, part_settings
from jax_brcd.models import BACKBONES
from jax_brcd.retrieval.searches import SEARCHES, Search
from jax_brcd.runtime.errors import UnknownName, of_setting
from jax_brcd.runtime.files import as_path
from jax_brcd.runtime.registry import unknown_name
from jax_brcd.settings import options
from jax_brcd.settings.command_line import OneLineParser, add_options, flag
from jax_brcd.settings.presets import PRESETS
from jax_brcd.settings.stages import (
    BOTH,
    STAGES,
    TITLES,
    DataConfig,
    LearningConfig,
    ObjectiveConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
)
from jax_brcd.teachers.kinds import TEACHERS
from jax_brcd.teachers.objectives import OBJECTIVES, create_objective, proposals
from jax_brcd.training.optimizers import OPTIMIZERS
from jax_brcd.training.rates import SCHEDULES

# Where a run lies and computes and how often it saves do not change what it is, so a run may go on under others.
UNCOMPARED = ("out", "data_dir", "cache_dir", "embeddings", "checkpoint_seconds", "compile_cache", "decode_workers", "processes",
              "process_id", "coordinator", "resident_mib")
# A run goes on with more of these epochs from where it ended
EXTENDABLE = ("epochs", "teacher_epochs")


@dataclasses.dataclass(frozen=True)
class Config:
    """A run's resolved configuration. `hashing` carries the settings of the chosen teacher objective, `method` the method's.

    Attributes:
        given: the settings that were given by name, and not by a preset or a default.
        fetched: what settings name that lies on the Hugging Face hub, where it is fetched already.
    """

    data: DataConfig
    objective: ObjectiveConfig
    teacher: TeacherConfig
    student: StudentConfig
    learning: LearningConfig
    run: RunConfig
    hashing: Any
    method: Any
    given: frozenset[str] = frozenset()
    fetched: Mapping[str, Fetched] = dataclasses.field(default_factory=dict)

    @property
    def min_epochs(self) -> int:
        """Epochs before an early stop: as told, else 80 for 16-bit codes as published."""
        told = self.student.min_epochs
        return told if told is not None else 80 if self.objective.bits == 16 else 0

    @property
    def kept(self) -> dict[Search, str]:
        """What the state is called that is kept for each search, and the encoder made of it: its own, or one for both."""
        return {search: BOTH if self.learning.keep == BOTH else str(search) for search in SEARCHES}

    @property
    def students(self) -> tuple[str, ...]:
        """What the student's encoders are called, each once."""
        return tuple(dict.fromkeys(self.kept.values()))

    @property
    def teacher_batch_size(self) -> int:
        """Images a step of the teacher's hash head."""
        return self.teacher.teacher_batch_size or self.run.batch_size

    @property
    def contrasts(self) -> bool:
        """Whether the student has an objective of its own beside its method's."""
        return self.learning.own_objective and not self.method.replaces_objective

    @property
    def temperatures(self) -> frozenset[str]:
        """Which of the temperatures something that is learnt looks at."""
        looked_at = {"temperature": self.contrasts or self.method.reads_temperature,
                     "teacher_temperature": getattr(self.hashing, "reads_temperature", False)}
        return frozenset(name for name, value in looked_at.items() if value)

    def teacher_epochs(self, *, head_came: bool) -> int:
        """Epochs of the teacher's hash head: of a head that came with the weights none unless they were given by name."""
        return 0 if head_came and "teacher_epochs" not in self.given else self.teacher.teacher_epochs

    @property
    def viewer(self) -> str:
        """The backbone that views are drawn for: the teacher's, or the student's where the teacher sees no images."""
        return self.student.student if self.teacher.teacher in TEACHERS else self.teacher.teacher

    @property
    def out(self) -> pathlib.Path:
        """The run directory: as told, else a name made of what distinguishes runs."""
        if self.run.out is not None:
            return as_path(self.run.out)
        parts = (self.data.dataset, self.teacher.teacher, self.student.student, f"{self.objective.bits}bits",
                 self.run.method, f"seed{self.run.seed}")
        return pathlib.Path("runs") / "-".join(part.replace("/", "_") for part in parts)

    def weights(self, setting: str) -> str:
        """What `teacher_weights` or `student_weights` names; of what was fetched from the hub, its folder."""
        return str(self.fetched[setting].folder) if setting in self.fetched else self.flat()[setting]

    @property
    def origins(self) -> dict[str, Any]:
        """Where on the hub the weights of "teacher" and "student" come from, of those that do."""
        return {setting.removesuffix("_weights"): fetched.origin for setting, fetched in self.fetched.items()}

    def with_out(self, name: str) -> "Config":
        """The configuration with a run directory of that name, unless one was told."""
        if self.run.out is not None:
            return self
        return dataclasses.replace(self, run=dataclasses.replace(self.run, out=pathlib.Path("runs") / name))

    def flat(self) -> dict[str, Any]:
        """Every setting by its name, as JSON holds it."""
        stages = (self.data, self.objective, self.teacher, self.student, self.learning, self.run, self.hashing, self.method)
        return {name: value for stage in stages for name, value in flat(stage).items()}

    def compared(self) -> dict[str, Any]:
        """The settings that a run directory must agree on to be gone on with."""
        return {name: value for name, value in self.flat().items() if name not in UNCOMPARED}


def flat(settings: Any) -> dict[str, Any]:
    """The settings of a dataclass instance by name, as JSON holds them."""
    values = {field.name: getattr(settings, field.name) for field in options.settings_of(settings)}
    return {name: str(value) if isinstance(value, pathlib.PurePath) else value for name, value in values.items()}


def unusual(settings: Any, without: Iterable[str] = ()) -> dict[str, Any]:
    """The settings (but for some) that differ from their defaults: what they are told by, whatever is added later."""
    values = flat(settings)
    return {field.name: values[field.name] for field in options.settings_of(settings)
            if field.name not in without and getattr(settings, field.name) != field.default}


def create_config(preset: str | None = None, **settings: Any) -> Config:
    """Resolves settings: published defaults, then the preset, then what is given, converted as the command line does.

    The digits preset applies to the digits data set unless another preset is named. A preset or caller that names a number
    of views to keep, and says nothing of fresh ones, keeps them; one that names a teacher objective takes what that proposes
    for all else that it does not name itself, whatever a preset before it said.

    Raises:
        InputError: for unknown names, and for settings of other types or out of bounds.
    """
    chosen = settings.get("dataset", "digits")
    if preset is None and isinstance(chosen, str) and chosen in PRESETS:
        preset = chosen
    merged: dict[str, Any] = {}
    for layer in (PRESETS[preset] if preset else {}, TEACHERS.get(str(settings.get("teacher")), {}), settings):
        named = layer.get("teacher_objective")
        proposed = proposals(OBJECTIVES.get(named)) if isinstance(named, str) else {}
        merged |= {**proposed, **({"fresh_views": False} if "views" in layer else {}), **layer}
    known = {field.name: stage for stage in STAGES for field in options.settings_of(stage)}
    given = {stage: {name: value for name, value in merged.items() if known.get(name) is stage} for stage in STAGES}
    objectives_own = names_of(*OBJECTIVES.values())
    usual = {*known, *objectives_own, *names_of(*METHODS.values())}
    for name in sorted({*merged} - usual - names_of(*part_settings(METHODS).values())):
        raise UnknownName(unknown_name("setting", name, usual), field=name, value=merged[name])
    for_objective = {name: value for name, value in merged.items() if name in objectives_own}
    for_method = {name: value for name, value in merged.items() if name not in known and name not in objectives_own}
    data, objective, teacher, student, learning, run = (options.convert(stage, given[stage]) for stage in STAGES)
    for registry, field, name in ((DATASETS, "dataset", data.dataset), (BACKBONES, "teacher", teacher.teacher),
                                  (BACKBONES, "student", student.student), (OPTIMIZERS, "optimizer", learning.optimizer),
                                  (SCHEDULES, "lr_schedule", learning.lr_schedule)):
        names = [*registry, *(TEACHERS if field == "teacher" else ())]
        if name not in names:
            raise UnknownName(unknown_name(registry.kind, name, names), field=field, value=name)
    for field, place in (("data_dir", data.data_dir), ("cache_dir", data.cache_dir), ("embeddings", teacher.embeddings),
                         ("out", run.out)):
        if place is not None:
            with of_setting(field, place):
                as_path(place)
    data = dataclasses.replace(data, cache_dir=as_path(data.cache_dir))
    if SCHEDULES[learning.lr_schedule].ends and "patience" not in settings:  # it goes to its end, as nothing else was told
        student = dataclasses.replace(student, patience=None)
    return Config(data, objective, teacher, student, learning, run,
                  create_objective(teacher.teacher_objective, **for_objective),
                  create_method(run.method, method_weights=run.method_weights, **for_method), frozenset(settings))


def create_parser(
    program: str, description: str, wanted: Callable[[str], bool] = lambda name: True, *, presets: bool = True
) -> OneLineParser:
    """A parser with an option for each setting that is `wanted`, and one for the preset."""
    parser = OneLineParser(prog=program, description=description, allow_abbrev=False,
                           epilog=f"Data sets: {', '.join(DATASETS)}. Backbones: {', '.join(BACKBONES)}. "
                           f"Teachers that are none: {', '.join(TEACHERS)}. "
                           f"Teacher objectives: {', '.join(OBJECTIVES)}. Methods: {', '.join(METHODS)}.")
    if presets:
        parser.add_argument(flag("preset"), default=None, metavar="NAME",
                            help=f"settings of a whole experiment, each still its own option: {', '.join(PRESETS)}")
    usual = DataConfig().dataset  # whose preset applies where nothing is told
    values = {**PRESETS[usual], "fresh_views": False} if presets else {}
    by_itself = {usual: {name: value for name, value in values.items() if name != "dataset"}}
    by_itself |= {name: found for name, kind in OBJECTIVES.items() if (found := proposals(kind))}
    for stage, title in zip(STAGES, TITLES, strict=True):
        add_options(parser, title, [stage], wanted, by_itself)
    add_options(parser, "teacher objective", OBJECTIVES, wanted)
    add_options(parser, "method", METHODS, wanted)
    add_options(parser, "method as part of a sum", part_settings(METHODS), wanted)
    return parser


def parse_command_line(program: str, description: str, argv: list[str] | None = None) -> Config:
    """The configuration that a command line asks for; prints help or one error line and exits where it must."""
    given = vars(create_parser(program, description).parse_args(argv))
    return create_config(given.pop("preset"), **given)


def students_settings() -> frozenset[str]:
    """The names of the settings that a teacher does not depend on."""
    return names_of(StudentConfig, LearningConfig, *METHODS.values(), *part_settings(METHODS).values()) | {
        "temperature", "kl_weight", "method", "method_weights"}


def names_of(*kinds: Any) -> frozenset[str]:
    """The names of the settings of some dataclasses."""
    return frozenset(field.name for kind in kinds for field in options.settings_of(kind))


def defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The default of every setting of the stages, and of the objective and the methods that a flat configuration names."""
    values = {name: value for stage in STAGES for name, value in flat(stage()).items()}
    chosen = values | dict(settings)
    parts = chosen["method"].split(PLUS)
    kinds = [OBJECTIVES.get(chosen["teacher_objective"])]
    kinds += [(METHODS if len(parts) == 1 else part_settings(METHODS)).get(part) for part in parts]
    return values | {field.name: field.default for kind in kinds if kind is not None for field in options.settings_of(kind)}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings on which two flat configurations differ, each with (theirs, ours).

    A setting that one of them does not know was added since, or is another method's, and had its default's effect. Earlier
    versions told the default patience where a schedule that ends leaves none.
    """
    usual, usual_theirs = defaults(ours), defaults(theirs)
    ours, theirs, names = usual_theirs | usual | dict(ours), usual | usual_theirs | dict(theirs), sorted({*ours, *theirs})
    pairs = {name: (theirs.get(name), ours.get(name)) for name in names}
    schedule = SCHEDULES.get(theirs["lr_schedule"])
    untold = {"patience": (StudentConfig().patience, None)} if schedule is not None and schedule.ends else {}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and pair != untold.get(name)}


def spelled(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """`bits` 32 (now 64); ... in the way that errors name settings."""
    return "; ".join(f"`{name}` {theirs} (now {ours})" for name, (theirs, ours) in changes.items())
