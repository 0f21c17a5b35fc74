"""A whole run: data -> teacher -> clusters -> student -> both searches -> report. What any run has made is not made again."""

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from flax import nnx

from jax_brcd import __version__
from jax_brcd.report import SKIPPED, Report, results, write_report
from jax_brcd.retrieval.searches import SEARCHES
from jax_brcd.runtime import devices
from jax_brcd.runtime.errors import InputError, TrainingDiverged
from jax_brcd.runtime.files import atomic_path, read_json, write_json
from jax_brcd.runtime.progress import Progress, silent
from jax_brcd.stages.configuration import EXTENDABLE, UNCOMPARED, Config, differences, spelled
from jax_brcd.stages.context import STUDENT, TEACHER, Context, Say, load_context, unheard
from jax_brcd.stages.distillation import Student, teach_student
from jax_brcd.stages.evaluation import CODES, METRICS, Evaluation, evaluate_run
from jax_brcd.stages.folder import DIVERGED, HISTORY, write_history
from jax_brcd.stages.models import Built, build
from jax_brcd.stages.pretraining import NOTE, needs_pretraining
from jax_brcd.stages.teacher import check_objective, train_teacher
from jax_brcd.teachers.base import Teacher

CONFIG = "config.json"
# What a diverged training may be gone on with: these settings lower or higher
REMEDIES = {"student": {"lr": -1, "temperature": 1}, "teacher": {"teacher_lr": -1, "teacher_temperature": 1}}


def run(config: Config, *, progress: Progress = silent, say: Say = unheard) -> dict[str, Any]:
    """Runs or goes on with the run that `config` describes and returns its metrics.

    Args:
        progress: told how far long work is. say: told what a reader should know at once.

    Raises:
        InputError: for bad input and for a run directory that holds another run.
        TrainingDiverged: the same run at a lower learning rate goes on from the last good state.
        OSError: for a full disk.
    """
    return _run(config, progress, say, student=True)


def run_teacher(config: Config, *, progress: Progress = silent, say: Say = unheard) -> dict[str, Any]:
    """The teacher's part of a run alone: the run directory then holds `teacher`. Arguments and errors as `run`."""
    return _run(config, progress, say, student=False)


def _run(config: Config, progress: Progress, say: Say, *, student: bool) -> dict[str, Any]:
    out = config.out
    earlier = read_claim(out)
    check_settings(out, config, earlier)
    context = load_context(config, progress=progress, say=say)
    continued = claim(out, context, earlier)
    if continued is None:
        say(f"{out}: already there; nothing was run again.")
        return read_json(out / METRICS)
    teacher_built, student_built = build_models(context, student=student)
    context = write_claim(out, context, continued)
    notes = _notes(context, teacher_built, student_built)
    for note in notes:
        say(note)
    try:
        teacher, history = train_teacher(context, teacher_built)
        taught = None if student_built is None else teach_student(context, student_built, teacher)
    except TrainingDiverged as error:
        _mark_diverged(out, error)
        raise
    found = evaluate_run(context, teacher, taught)
    if devices.is_first():
        _write(context, teacher, taught, found, history, notes)
    return dict(found.metrics)


def read_claim(out: pathlib.Path) -> dict[str, Any] | None:
    """What a run directory says of its run; None for a new one.

    Raises:
        InputError: for a directory of an older version, which kept no record of its data.
    """
    if not (out / CONFIG).exists():
        return None
    try:
        earlier = read_json(out / CONFIG)
    except ValueError as error:
        raise InputError(f"{out / CONFIG}: broken ({error}); name another `out`, or delete the directory") from None
    if "settings" not in earlier:
        raise InputError(f"{out}: written by an older jax_brcd, which kept no record of the data it used; name another `out`, or "
                         "delete it")
    return earlier


def check_settings(out: pathlib.Path, config: Config, earlier: Mapping[str, Any] | None) -> None:
    """Raises InputError where `out` holds a run of other settings that cannot be gone on with under these."""
    if earlier is None:
        return
    changes = _changes(config, earlier)
    allowed = _remedies(out) | dict.fromkeys(EXTENDABLE, 1)
    forbidden = {name: pair for name, pair in changes.items()
                 if name not in allowed or (pair[1] > pair[0]) != (allowed[name] > 0)}
    if forbidden:
        raise InputError(f"{out}: holds a run with {spelled(forbidden)}; name another `out`, or delete it")


def _changes(config: Config, earlier: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    theirs = {name: value for name, value in earlier["settings"].items() if name not in UNCOMPARED}
    return differences(config.compared(), theirs)


def _remedies(out: pathlib.Path) -> dict[str, int]:
    """The settings that a diverged run may be gone on with, and which way they may change."""
    return REMEDIES.get(read_json(out / DIVERGED)["stage"], {}) if (out / DIVERGED).exists() else {}


def claim(out: pathlib.Path, context: Context, earlier: Mapping[str, Any] | None) -> dict[str, str] | None:
    """By stage the folder of a diverged training that the run goes on from; None where all of the run is already there.

    Raises:
        InputError: where the data has changed since the run.
    """
    if earlier is None:
        return {}
    theirs = earlier["data"]
    changed = [name for name in sorted({*theirs, *context.digests}) if theirs.get(name) != context.digests.get(name)]
    if changed:
        raise InputError(f"{out}: its data has changed since: {', '.join(changed)}; name another `out`, or delete it")
    changes = _changes(context.config, earlier)
    continued = dict(earlier.get("continued", {}))
    if not changes:
        return None if earlier.get("finished") and devices.agreed((out / METRICS).exists()) else continued
    if (out / DIVERGED).exists() and set(changes) & set(_remedies(out)):
        diverged = read_json(out / DIVERGED)
        continued[diverged["stage"]] = diverged["folder"]
    return continued


def write_claim(out: pathlib.Path, context: Context, continued: dict[str, str]) -> Context:
    """Makes `out` this run's directory, and returns the context with what the run goes on from."""
    context = dataclasses.replace(context, continued=continued)
    if devices.is_first():
        _write_claim(out, context, finished=False)
        (out / DIVERGED).unlink(missing_ok=True)
    return context


def _write_claim(out: pathlib.Path, context: Context, *, finished: bool) -> None:
    write_json(out / CONFIG, {"version": __version__, "settings": context.config.flat(), "data": dict(context.digests),
                              "continued": dict(context.continued), "finished": finished})


def _mark_diverged(out: pathlib.Path, error: TrainingDiverged) -> None:
    if devices.is_first():
        write_json(out / DIVERGED, {"stage": error.folder.stage, "folder": error.folder.name, "problem": error.problem})


def build_models(context: Context, *, student: bool) -> tuple[Built, Built | None]:
    """Teacher and student with their weights, both before either trains, so that a wrong file is known at once.

    Raises:
        InputError: for weights that do not fit, a student of another size than the images, an objective without a solution.
    """
    config = context.config
    # What is to be pretrained here starts at random
    teacher_weights = "random" if needs_pretraining(config) else config.teacher.teacher_weights
    roles = [(config.teacher.teacher, teacher_weights, "teacher_weights", TEACHER)]
    if student:
        roles.append((config.student.student, config.student.student_weights, "student_weights", STUDENT))
    built = [build(name, config.objective.bits, weights, option=option, seed=context.seed(stage), dtype=config.run.dtype,
                   cache_dir=config.data.cache_dir) for name, weights, option, stage in roles]
    size = context.preprocessing.size
    for (name, _, option, _), made in zip(roles[1:], built[1:], strict=True):
        backbone = made.model.backbone
        if backbone.fixed_size and backbone.image_size != size:
            raise InputError(f"takes {backbone.image_size} pixels, but {config.teacher.teacher} sees {size}; name a student of that "
                             "size or a convolutional one", field=option.removesuffix("_weights"), value=name)
    check_objective(built[0].model, config.hashing, bits=config.objective.bits, images=len(context.dataset.train),
                    name=config.teacher.teacher_objective)
    return built[0], built[1] if student else None


def _notes(context: Context, teacher: Built, student: Built | None) -> list[str]:
    """What a reader of the results must know."""
    unlabelled = [] if context.dataset.labelled else [f"{SKIPPED} The student is the one of the last epoch."]
    remarks = [*teacher.remarks, *(student.remarks if student else ())]
    pretrained = [NOTE.format(images=len(context.dataset.pretraining))] if needs_pretraining(context.config) else []
    return [*context.dataset.notes, *(views_notes(context, student) if student else ()), *remarks, *unlabelled, *pretrained]


def views_notes(context: Context, student: Built) -> list[str]:
    """What the choice of views means for the speed and the batch norm of a frozen student."""
    if context.config.student.train_backbone:
        return []
    if context.plan.kept is None:
        views = context.config.data.views
        return [f"The frozen student encodes new views each epoch; `views` {views} would encode {views} of each image once, and "
                "train far faster."]
    normalised = "; its batch norm runs on its running averages, where `fresh_views` take each batch's statistics"
    return [f"The frozen student encodes {context.plan.kept} views of each image once"
            f"{normalised if nnx.state(student.model, nnx.BatchStat) else ''}."]


def _write(
    context: Context, teacher: Teacher, student: Student | None, found: Evaluation, history: list[dict[str, Any]],
    notes: list[str],
) -> None:
    """Everything a run leaves in its directory; config.json says last that it is finished."""
    config, dataset, out = context.config, context.dataset, context.config.out
    came_from = {"version": __version__, "protocol": found.metrics["protocol"], "data": dict(context.digests),
                 "settings": config.flat()}
    teacher.save(out / "teacher", metrics=found.metrics.get("teacher"), notes=list(teacher.remarks), **came_from)
    _flat_copy(out, "teacher")
    if student is not None:
        for search, encoder in student.encoders.items():
            metrics = found.metrics["student"][search] if "student" in found.metrics else None
            encoder.with_provenance(search=str(search), metrics=metrics, **came_from).save(out / f"student_{search}")
            _flat_copy(out, f"student_{search}")
        history = [*history, *student.history]
    write_history(out / HISTORY, history)
    with atomic_path(out / CODES) as temporary:
        shutil.copyfile(found.codes, temporary)
    names = [config.teacher.teacher] if student is None else [config.student.student, "taught by", config.teacher.teacher]
    write_report(out, Report(
        title=f"{' '.join(names)} on {dataset.name}, {config.objective.bits} bits", config=config.flat(), metrics=found.metrics,
        history=history, curves=found.curves, sections=() if student is None else student.sections,
        grid=results.retrieval_grid(dataset, found.codes, SEARCHES[0] if student else "teacher") if dataset.labelled else None,
        notes=(*notes, *teacher.remarks)))
    write_json(out / METRICS, found.metrics)
    _write_claim(out, context, finished=True)


def _flat_copy(out: pathlib.Path, name: str) -> None:
    """The encoder's weights once more as `name`.safetensors, the file that PyTorch users load; no copy where links are possible."""
    with atomic_path(out / f"{name}.safetensors") as temporary:
        temporary.unlink()
        try:
            temporary.hardlink_to(out / name / "model.safetensors")
        except OSError:
            shutil.copyfile(out / name / "model.safetensors", temporary)

