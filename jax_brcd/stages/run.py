"""A whole run: data -> teacher -> clusters -> student -> both searches -> report. What any run has made is not made again."""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx

from jax_brcd import __version__
from jax_brcd.data.dataset import square_side
from jax_brcd.models import BACKBONES
from jax_brcd.models.variants import Preprocessing
from jax_brcd.report import SKIPPED, Report, results, results_table, write_report
from jax_brcd.report.page import PAGE
from jax_brcd.retrieval.searches import SEARCHES
from jax_brcd.runtime import devices
from jax_brcd.runtime.errors import InputError, Naming
from jax_brcd.runtime.files import atomic_path, check_folder, lock_beside, locked, read_json, write_json
from jax_brcd.runtime.progress import Progress, Say, silent, unheard
from jax_brcd.stages.claim import (
    Claim,
    changes,
    check_data,
    check_no_student,
    check_settings,
    continued,
    fetch_weights,
    mark_diverged,
    read_claim,
    settled,
    unmark_diverged,
    weights_digests,
)
from jax_brcd.stages.configuration import Config
from jax_brcd.stages.context import STUDENT, TEACHER, Context, StageDiverged, load_context
from jax_brcd.stages.distillation import Student, teach_student
from jax_brcd.stages.evaluation import CODES, METRICS, Evaluation, evaluate_run
from jax_brcd.stages.folder import HISTORY, write_history
from jax_brcd.stages.learning import check_blocks, check_learning, check_new
from jax_brcd.stages.models import Built, build, build_over_rows, check_place
from jax_brcd.stages.pretraining import NOTE, needs_pretraining
from jax_brcd.stages.sight import brought_encoder
from jax_brcd.stages.table import check_embeddings
from jax_brcd.stages.teacher import check_objective, check_teacher, train_teacher
from jax_brcd.teachers.base import Teacher
from jax_brcd.teachers.objectives import head_of


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
    check_folder(config.out, field="out")
    with _alone(config.out, say):
        devices.wait_for_all(f"{config.out} is held")
        return _run_alone(config, progress, say, student=student)


def _run_alone(config: Config, progress: Progress, say: Say, *, student: bool) -> dict[str, Any]:
    if student:
        check_learning(config)
    earlier = read_claim(config.out)
    # Directories of earlier versions may hold what is refused of new runs
    if student and not (earlier is not None and earlier.student):
        check_new(config)
    config, missed = fetch_weights(config, student=student, progress=progress)
    out, weights = config.out, weights_digests(config, student=student)
    missed = missed or absent_weights(config, student=student)
    if missed is not None and not (earlier is not None and earlier.finished):  # a run that has ended needs weights no more
        raise missed
    brought = brought_encoder(config, "teacher_weights")
    check_embeddings(config, brought, student=student)
    if earlier is None and brought is None:  # settings of one made elsewhere tell how it was
        check_teacher(config)
    if earlier is not None:
        check_settings(out, config, weights, earlier, student=student)
    context = load_context(config, student=student, progress=progress, say=say)
    data = {**context.digests, **weights}
    changed: dict[str, Any] = {}
    if earlier is not None:
        check_data(out, data, earlier)
        changed = changes(config, data, earlier, student=student)
        if changed and not student:
            check_no_student(out, changed)
        metrics = _finished(out, earlier, config.students if student else (), labelled=context.dataset.labelled) if not changed else None
        if metrics is not None:
            say(f"{out}: already there; nothing was run again.")
            return metrics
    if missed is not None:
        raise missed
    teacher_built, student_built = build_models(context, student=student)
    context = dataclasses.replace(
        context, config=settled(config, head_came=teacher_built.head_came),
        continued={} if earlier is None else continued(out, changed, earlier))
    claim = Claim(context.config.flat(), data, context.continued, student, teacher_built.head_came)
    devices.wait_for_all(f"{out} was read")  # before the first process changes what it says
    claim.write(out)
    if changed:
        unmark_diverged(out)
    metrics = _carry_out(context, data, teacher_built, student_built)
    claim.finish(out)
    return metrics


@contextlib.contextmanager
def _alone(out: pathlib.Path, say: Say) -> Iterator[None]:
    """Keeps another run of the same directory waiting, whatever it is called and wherever its cache lies."""
    place = out.resolve()
    waits = functools.partial(say, f"Another run is at work in {out}; this one waits for it.")
    with contextlib.ExitStack() as held:
        if devices.is_first():
            with contextlib.suppress(PermissionError, NotADirectoryError):  # told where it matters
                held.enter_context(locked(lock_beside(place), waits))
        yield


def _carry_out(
    context: Context, data: Mapping[str, str], teacher_built: Built, student_built: Built | None
) -> dict[str, Any]:
    """All stages, and what they leave in the run directory; returns the metrics."""
    out = context.config.out
    notes = _notes(context, teacher_built, student_built)
    for note in notes:
        context.say(note)
    try:
        teacher, history = train_teacher(context, teacher_built)
        taught = None if student_built is None else teach_student(context, student_built, teacher)
    except StageDiverged as error:
        mark_diverged(out, error)
        raise
    found = evaluate_run(context, teacher, taught)
    if devices.is_first():
        _write(context, data, teacher, taught, found, history, notes)
    unmark_diverged(out)
    return dict(found.metrics)


def _finished(out: pathlib.Path, earlier: Claim, students: tuple[str, ...], *, labelled: bool) -> dict[str, Any] | None:
    """The metrics of a run that has ended and is whole; `students` are what its encoders are called."""
    roles = ("teacher", *(f"student_{name}" for name in students))
    files = [METRICS, HISTORY, CODES, PAGE, *(f"{role}{file}" for role in roles
                                              for file in (".safetensors", "/config.json", "/model.safetensors"))]
    whole = earlier.finished and earlier.student >= bool(students) and all((out / file).exists() for file in files)
    if not devices.agreed(whole):
        return None
    try:
        metrics = read_json(out / METRICS)
        results_table(metrics)
        return metrics if "protocol" in metrics and ("teacher" in metrics) == labelled else None
    except (ValueError, TypeError, LookupError, AttributeError):
        return None  # is written anew


def absent_weights(config: Config, *, student: bool) -> InputError | None:
    """Why weights cannot be had where nothing lies that is called so; what lies on the hub was fetched before."""
    named = [] if needs_pretraining(config) else [("teacher_weights", config.teacher.teacher)]
    named += [("student_weights", config.student.student)] if student else []
    try:
        for setting, backbone in named:
            if setting not in config.fetched:
                check_place(backbone, config.weights(setting), option=setting)
    except InputError as error:
        return error
    return None


def build_models(context: Context, *, student: bool) -> tuple[Built, Built | None]:
    """Teacher and student with their weights, both before either trains, so that a wrong file is known at once.

    Raises:
        InputError: for weights that do not fit, an objective without a solution, and a student without the blocks told.
    """
    config = context.config
    # What is to be pretrained here starts at random
    teacher_weights = "random" if needs_pretraining(config) else config.teacher.teacher_weights
    form = head_of(config.hashing)
    # A head that came is trained further as it is, but for an objective with a head of its own
    of_teacher = {"form": form, "any_form": form is None or config.teacher_epochs(head_came=True) == 0}

    def built(name: str, weights: str, option: str, seen: Preprocessing, stage: int, **head: Any) -> Built:
        return build(name, config.objective.bits, weights, option=option, size=seen.size, seed=context.seed(stage),
                     dtype=config.run.dtype, cache_dir=config.data.cache_dir, fetched=config.fetched.get(option),
                     progress=context.progress, **head)

    if context.table is None:
        teacher = built(config.teacher.teacher, teacher_weights, "teacher_weights", context.preprocessing, TEACHER, **of_teacher)
    else:
        teacher = build_over_rows(context.table.width, config.objective.bits, config.weights("teacher_weights"),
                                  option="teacher_weights", seed=context.seed(TEACHER), **of_teacher)
    learner = built(config.student.student, config.student.student_weights, "student_weights", context.student_preprocessing,
                    STUDENT) if student else None
    if learner is not None:
        check_blocks(config.learning, learner.model, config.student.student)
    if not (teacher.head_came and config.teacher_epochs(head_came=True) == 0):  # else nothing is solved
        check_objective(teacher.model, config.hashing, bits=config.objective.bits, images=len(context.dataset.train),
                        name=config.teacher.teacher_objective)
    return teacher, learner


def _notes(context: Context, teacher: Built, student: Built | None) -> list[str]:
    """What a reader of the results must know."""
    unlabelled = [] if context.dataset.labelled else [f"{SKIPPED} The student is the one of the last epoch."]
    remarks = [*teacher.remarks, *(student.remarks if student else ())]
    pretrained = [NOTE.format(images=len(context.dataset.pretraining))] if needs_pretraining(context.config) else []
    of_squares = square_notes(context, student=student is not None)
    for_student = [*views_notes(context, student), *colour_notes(context)] if student else []
    return [*context.dataset.notes, *of_squares, *for_student, *remarks, *unlabelled, *pretrained]


def square_notes(context: Context, *, student: bool) -> list[str]:
    """Says where image files are decoded to fewer pixels than a model sees, and which size mends it: where a `student` is
    taught by a teacher that was brought along the student's, as the command that teaches it alone has no other."""
    side, size = context.dataset.squares, context.preprocessing.size
    if side is None or square_side(size) <= side:
        return []
    brought = student and brought_encoder(context.config, "teacher_weights") is not None
    setting = "student_size" if brought or context.table is not None else "teacher_size"
    return [Naming(f"{context.config.viewer} sees {size} pixels of image files that are decoded to squares of {side}; "
                   f"`{setting}` {size} decodes them to {square_side(size)}.")]


def colour_notes(context: Context) -> list[str]:
    """Says where the student's weights are meant for other colours than it is given."""
    config, seen = context.config, context.student_preprocessing
    meant = BACKBONES[config.student.student].preprocessing
    own = config.student.student_size is not None or config.student.student_weights == "random"
    if own or (meant.mean, meant.std) == (seen.mean, seen.std):
        return []
    return [Naming(f"The student sees colours normalised as {config.teacher.teacher} does, and not as "
                   f"{config.student.student} is meant to; with `student_size` {seen.size} it would see its own.")]


def views_notes(context: Context, student: Built) -> list[str]:
    """What the choice of views means for the speed and the batch norm of a frozen student."""
    if context.config.student.train_backbone:
        return []
    if context.plan.kept is None:
        views = context.config.data.views
        return [Naming(f"The frozen student encodes new views each epoch; `views` {views} would encode {views} of each image "
                       "once, and train far faster.")]
    normalised = "; its batch norm runs on its running averages, where `fresh_views` take each batch's statistics"
    return [Naming(f"The frozen student encodes {context.plan.kept} views of each image once"
                   f"{normalised if nnx.state(student.model, nnx.BatchStat) else ''}.")]


def _write(
    context: Context, data: Mapping[str, str], teacher: Teacher, student: Student | None, found: Evaluation,
    history: list[dict[str, Any]], notes: list[str],
) -> None:
    """Everything a run leaves in its directory."""
    config, dataset, out = context.config, context.dataset, context.config.out
    came_from = {"version": __version__, "protocol": found.metrics["protocol"], "data": dict(data),
                 "settings": config.flat(), **({"weights": config.origins} if config.origins else {})}
    teacher.save(out / "teacher", metrics=found.metrics.get("teacher"), notes=list(teacher.remarks), **came_from)
    _flat_copy(out, "teacher")
    if student is not None:
        for name in config.students:
            searches = [search for search in SEARCHES if config.kept[search] == name]
            measured = found.metrics.get("student")
            # of an encoder for both, its own search's with the other beside them
            metrics = measured and {**measured[searches[0]], **{str(search): measured[search] for search in searches[1:]}}
            encoder = student.encoders[searches[0]].with_provenance(search=name, metrics=metrics, **came_from)
            encoder.save(out / f"student_{name}")
            _flat_copy(out, f"student_{name}")
        history = [*history, *student.history]
    write_history(out / HISTORY, history)
    with atomic_path(out / CODES) as temporary:
        shutil.copyfile(found.codes, temporary)
    names = [config.teacher.teacher] if student is None else [config.student.student, "taught by", config.teacher.teacher]
    write_report(out, Report(
        title=f"{' '.join(names)} on {dataset.name}, {config.objective.bits} bits", config=config.flat(), metrics=found.metrics,
        history=history, curves=found.curves, sections=() if student is None else student.sections,
        grid=results.retrieval_grid(dataset, found.codes, SEARCHES[0] if student else "teacher") if dataset.labelled else None,
        lost=results.lost_grids(dataset, found.codes, context.k) if dataset.labelled and student else {},
        agreement=results.bit_agreement(found.codes) if student else {}, notes=(*notes, *teacher.remarks)))
    write_json(out / METRICS, found.metrics)


def _flat_copy(out: pathlib.Path, name: str) -> None:
    """The encoder's weights once more as `name`.safetensors, the file that PyTorch users load; no copy where links are
    possible."""
    with atomic_path(out / f"{name}.safetensors") as temporary:
        temporary.unlink()
        try:
            temporary.hardlink_to(out / name / "model.safetensors")
        except OSError:
            shutil.copyfile(out / name / "model.safetensors", temporary)

