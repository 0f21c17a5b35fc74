"""The student's stage of a run: what it sees, its training under the distillation method, its encoders in a folder."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_brcd import encoder as encoders
from jax_brcd.encoder import HashEncoder, create_encoder, load
from jax_brcd.methods import Needs
from jax_brcd.methods.sections import Section, section_from_dict, section_to_dict
from jax_brcd.models import HashModel
from jax_brcd.retrieval import mean_average_precision, nearest_neighbours
from jax_brcd.retrieval.searches import SEARCHES, Search
from jax_brcd.runtime import devices
from jax_brcd.runtime.files import read_json, write_json
from jax_brcd.settings.stages import BOTH, CLEAN, StudentConfig
from jax_brcd.stages.clusters import know
from jax_brcd.stages.configuration import Config, unusual
from jax_brcd.stages.context import STUDENT, Context, live
from jax_brcd.stages.folder import HISTORY, StageFolder, read_history, write_history
from jax_brcd.stages.models import Built
from jax_brcd.stages.neighbours import neighbours_of
from jax_brcd.stages.student import put, student_stage
from jax_brcd.teachers.base import Parts, Teacher
from jax_brcd.training.loop import Fit, TrainState, backbone_scans
from jax_brcd.training.rates import SCHEDULES
from jax_brcd.views.features import weights_digest
from jax_brcd.views.source import Source

SECTIONS = "report.json"
# Settings that a student depends on by what becomes of them
TOLD = ("student", "student_weights", "student_size", "epochs", "min_epochs", "bits")


@dataclasses.dataclass(frozen=True)
class Student:
    """A taught student.

    Attributes:
        encoders: at the best validation of each search, or of both, which then share one; of the last epoch where nothing is
            validated.
        sections: what the method shows in the report.
    """

    encoders: Mapping[Search, HashEncoder]
    history: list[dict[str, Any]]
    sections: tuple[Section, ...]
    context: Context

    @functools.cached_property
    def parts(self) -> Parts:
        """The data set's parts; of a frozen backbone, which both encoders share, its features."""
        return student_parts(self.context, next(iter(self.encoders.values())).model)


def student_parts(context: Context, model: HashModel) -> Parts:
    """The data set's parts under a student."""
    seen = context.as_student
    return seen.pixel_parts() if live(context) else seen.kept_parts(context.cache(context.config.student.student, model))


def teach_student(context: Context, built: Built, teacher: Teacher) -> Student:
    """The student, trained here or taken from the folder of a run that trained it."""
    config = context.config
    knowledge, clusters = know(context, teacher)
    labels = ("labels of validation", "labels of database", "images of validation", "images of database")
    ends = SCHEDULES[config.learning.lr_schedule].ends or config.method.counts_steps
    never_stops = config.student.patience is None  # which is told below where there could be a stop
    told = (*TOLD, "patience") if never_stops else TOLD
    folder = context.folder("student", {
        "teacher": teacher.identity, "clusters": None if clusters is None else clusters.name,
        "method": [config.run.method, config.run.method_weights], "batch_size": config.run.batch_size,
        "model": config.student.student, "weights": weights_digest(built.model), "bits": config.objective.bits,
        "views": context.plan.facts(), "min_epochs": config.min_epochs, "k": context.k if context.dataset.labelled else None,
        "settings": {**unusual(config.student, told), **unusual(config.objective, TOLD),
                     **unusual(config.learning), **unusual(config.method)},
        **({"epochs": config.student.epochs} if ends else {}),
        **({"patience": None} if never_stops and could_stop(config.student) else {}),
        **({"unseen": config.method.needs.unseen} if config.method.needs.unseen and not config.contrasts else {}),
        **context.student_facts(),
        **context.data_facts("images of train", *(labels if context.dataset.labelled else ()))},
        None if ends else config.student.epochs)
    with folder.held(context.say):
        if folder.finished:
            context.say(f"Student: taken from {folder.path}.")
        else:
            fitted = _train(context, folder, built.model, teacher, knowledge)
            _write(context, folder, built.model, teacher, fitted)
    with folder.reading():
        loaded = {name: load(folder.path / name) for name in config.students}
        sections = tuple(map(section_from_dict, read_json(folder.path / SECTIONS)))
        return Student({search: loaded[name] for search, name in config.kept.items()},
                       read_history(folder.path / HISTORY), sections, context)


def could_stop(student: StudentConfig) -> bool:
    """Whether there are validations enough for an early stop."""
    patience = StudentConfig().patience if student.patience is None else student.patience
    return student.epochs // student.validation_interval > patience


def _train(context: Context, folder: StageFolder, model: HashModel, teacher: Teacher, knowledge) -> Fit:
    config, needs = context.config, needs_of(context.config)
    partners = nearest_neighbours(knowledge.codes, needs.neighbours) if needs.neighbours else None
    student = config.student
    schedule = context.schedule(
        STUDENT, student.epochs, validation_interval=student.validation_interval, patience=student.patience,
        min_epochs=config.min_epochs, scan=backbone_scans() or not live(context))
    clean = config.learning.teacher_view == CLEAN
    neighbours = neighbours_of(context, teacher) if needs.views else None  # a method without views sees nothing of the teacher
    of_teacher = (teacher.still_source(needs, neighbours) if clean or not needs.views
                  else teacher.source(context.plan, needs, partners))
    stage, parameters, carry = student_stage(
        model, of_teacher, config.method, knowledge,
        source=_source(context, model, needs, partners), schedule=schedule, train_backbone=student.train_backbone,
        learning_rate=student.lr, temperature=config.objective.temperature, kl_weight=config.objective.kl_weight,
        method_seed=context.seed(STUDENT), learning=config.learning, **_validation(context, model, teacher))
    return context.fit(folder, stage, parameters, carry)


def needs_of(config: Config) -> Needs:
    """What the method needs, and the teacher's logits where views are mixed: of them are the codes of a mixture."""
    needs = config.method.needs
    if not config.learning.mixup or "logits" in needs.teacher:
        return needs
    return dataclasses.replace(needs, teacher=(*needs.teacher, "logits"))


def _source(context: Context, model: HashModel, needs: Needs, partners: np.ndarray | None) -> Source:
    """What the student trains on."""
    plan = context.as_student.plan
    if live(context):
        return plan.pixels(train=True, partners=partners)
    return plan.kept_features(context.cache(context.config.student.student, model), needs.derivations, partners)


def _validation(context: Context, model: HashModel, teacher: Teacher) -> dict[str, Any]:
    """The function that scores a training state by mAP@k of the searches with the validation queries, and what states are kept
    for; nothing without labels.

    The teacher's own mAP is the same for both searches, so that the best mean share of it is the best mean.
    """
    dataset, students = context.dataset, context.config.students
    if not dataset.labelled:
        return {}
    parts, teacher_codes = student_parts(context, model), teacher.codes("database")

    def validate(state: TrainState) -> dict[str, float]:
        put(model, state)
        queries = parts.codes(model, "validation")
        databases = {"student": parts.codes(model, "database"), "teacher": teacher_codes}
        found = {str(search): mean_average_precision(queries, databases[search.database], dataset.validation.labels,
                                                     dataset.database.labels, context.k) for search in SEARCHES}
        return found | ({BOTH: sum(found.values()) / len(found)} if BOTH in students else {})

    return {"validate": validate, "searches": students}


def _write(context: Context, folder: StageFolder, model: HashModel, teacher: Teacher, fitted: Fit) -> None:
    """Leaves the encoders, the history and what the method carried in the stage's folder."""
    config = context.config
    if devices.is_first():
        # A student whose queries are for the teacher's database speaks the teacher's bits, where the method taught them
        for_teachers = {name for search, name in config.kept.items() if search.database == encoders.TEACHER}
        for name in config.students:
            space = teacher.space if name in for_teachers and config.method.meets_teacher else None
            create_encoder(put(model, fitted.best.get(name, fitted.state)), config.student.student,
                           context.student_preprocessing, bits=config.objective.bits, role=encoders.STUDENT, space=space,
                           dtype=config.run.dtype).save(folder.path / name)
        shown = config.method.report(fitted.state.carry["memory"])
        write_json(folder.path / SECTIONS, [section_to_dict(section) for section in shown])
        write_history(folder.path / HISTORY, fitted.history)
    folder.finish(weights=config.origins.get(encoders.STUDENT))
