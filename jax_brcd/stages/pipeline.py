"""A whole run: data -> teacher -> clusters and masks -> student -> both searches -> report. What is on disk is not done twice."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_brcd import report
from jax_brcd.data import ImageDataset, load_dataset
from jax_brcd.export.torchvision import export_safetensors
from jax_brcd.methods import Needs, TeacherView
from jax_brcd.models import HashModel, create_hash_model
from jax_brcd.report import results
from jax_brcd.retrieval import SearchScores, evaluate_search, mean_average_precision, nearest_neighbours
from jax_brcd.runtime import devices
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import read_json, write_json
from jax_brcd.settings.configuration import Config, differences
from jax_brcd.stages.evaluation import KeptParts, Parts, PixelParts, head_codes, measure_cost
from jax_brcd.stages.models import build
from jax_brcd.stages.pretraining import pretraining_stage
from jax_brcd.stages.student import student_stage
from jax_brcd.stages.teacher import check_objective, solve_head, teacher_stage
from jax_brcd.teachers.objectives import ClosedFormObjective
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.loop import Fit, Stage, backbone_scans, fit, start
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.views.features import FeatureCache
from jax_brcd.views.sources import FeatureSource, KeptCodes, KeptFeatures, PixelViews, ViewSource
from jax_brcd.views.streaming import StepImages, Stream

CONFIG = "config.json"
SEARCHES = ("symmetric", "asymmetric")
REPORTED = ("bit_mask", "clusters", "cluster_scores")  # what the report shows of a method's memory, where it has it
# Each stage draws its heads and batches from a seed of its own
PRETRAINING, TEACHER, STUDENT, STAGE_SEEDS = 0, 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Context:
    """What every stage of a run needs to know."""

    config: Config
    dataset: ImageDataset
    size: int  # pixels the encoders see
    out: pathlib.Path

    @property
    def view_key(self) -> jax.Array:
        """The key of the run's views; the same for every run of a seed, so that kept views serve them all."""
        return jax.random.key(self.config.run.seed)

    @property
    def view_config(self) -> ViewConfig:
        """The published views at the encoders' size, mirrored where the data set allows it."""
        return ViewConfig(size=self.size, flip=0.5 if self.dataset.flip else 0.0)

    @property
    def kept_views(self) -> int | None:
        """How many views an image are kept; None where views are new each epoch."""
        return None if self.config.data.fresh_views else self.config.data.views

    @property
    def resize(self) -> int | None:
        """Pixels of an evaluated image's shorter side before its middle is cut out; see ImageDataset.evaluation_resize."""
        return self.dataset.evaluation_resize(self.size)

    def seed(self, stage: int) -> int:
        """The seed of a stage."""
        return self.config.run.seed * STAGE_SEEDS + stage

    def pixels(self, images: np.ndarray, *, train: bool, partners: np.ndarray | None = None) -> PixelViews:
        """Views drawn from pixels, with the images on the device or travelling with each step.

        `partners` are the images that each may be mixed with.

        Raises:
            InputError: for partners of images that travel with each step, where only a step's own are at hand.
        """
        held = jnp.asarray(images) if self.stream(images) is None else StepImages()
        if partners is not None and isinstance(held, StepImages):
            raise InputError(f"--method {self.config.run.method}: mixes an image with others, which do not travel with a step; "
                             "give a larger --resident-mib, or --mixtures 0")
        partners = None if partners is None else jnp.asarray(partners)
        return PixelViews(held, self.view_key, self.view_config, train, partners)

    def stream(self, images: np.ndarray) -> Stream | None:
        """What gives each step its images; None where all of them fit on the device."""
        return Stream(images) if images.nbytes > self.config.data.resident_mib * 2**20 else None

    def parts(self) -> dict[str, np.ndarray]:
        """The images of each part that is encoded."""
        names = ("train", "database", "validation", "test")
        return {name: getattr(self.dataset, name).images for name in names}

    def stage_settings(self, stage: int, **settings: Any) -> dict[str, Any]:
        """The Stage fields that every stage fills alike."""
        return {"batch_size": self.config.run.batch_size, "seed": self.seed(stage), "kept_views": self.kept_views,
                "checkpoint_seconds": self.config.run.checkpoint_seconds, **settings}

    def fit(self, stage: Stage, parameters: Any, carry: Any) -> Fit:
        """Trains a stage under its own checkpoints, going on where they end."""
        checkpoints = Checkpoints(self.out / "checkpoints" / stage.name)
        try:
            return fit(stage, start(stage, parameters, carry), checkpoints)
        finally:
            checkpoints.close()


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A hash model with what its frozen backbone gave once."""

    model: HashModel
    parts: Parts
    cache: FeatureCache


def run(config: Config) -> dict[str, Any]:
    """Runs or goes on with the run that `config` describes, prints its table and returns its metrics.

    Raises:
        InputError: for bad input and for a run directory that holds another configuration.
        OSError: for a full disk.
    """
    out = config.out
    metrics_path = out / "metrics.json"
    check_claim(out, config)
    if metrics_path.exists():
        metrics = read_json(metrics_path)
        print(f"{report.results_table(metrics)}\n\nReport (already there): {out / 'report.html'}")
        return metrics
    context = load_context(config, out)
    teacher_model, student_model = build_models(context)
    if devices.is_first():
        write_json(out / CONFIG, config.flat())
    notes = [*context.dataset.notes, *views_notes(context, student_model)]
    if not context.dataset.labelled:
        notes.append(f"{report.SKIPPED} The student is the one of the last epoch.")
    for note in notes:
        print(note)
    teacher, teacher_history = train_teacher(context, teacher_model, notes)
    student, fitted = train_student(context, student_model, teacher)
    metrics = evaluate(context, teacher, student, fitted, [*teacher_history, *fitted.history], notes)
    print(f"{report.results_table(metrics)}\n\nReport: {out / 'report.html'}")
    return metrics


def check_claim(out: pathlib.Path, config: Config) -> None:
    """Raises InputError where `out` is the run directory of another configuration."""
    if not (out / CONFIG).exists():
        return
    changed = differences(config.compared(), {name: value for name, value in read_json(out / CONFIG).items()
                                              if name in config.compared()})
    if changed:
        raise InputError(f"{out}: holds a run with {'; '.join(changed)}; name another --out, or delete it")


def load_context(config: Config, out: pathlib.Path) -> Context:
    """Loads the data and checks it against the configuration before anything long starts."""
    data = config.data
    dataset = load_dataset(data.dataset, data_dir=data.data_dir, cache_dir=data.cache_dir, split=data.split,
                           train_images=data.train_images, seed=config.run.seed, max_bad_images=data.max_bad_images,
                           decode_workers=data.decode_workers, label_format=data.label_format)
    k = data.k or dataset.default_k
    if k > len(dataset.database):
        raise InputError(f"--k {k}: the database of {data.dataset} holds {len(dataset.database)} images; give that or less")
    clusters = getattr(config.method, "clusters", 1)
    if isinstance(clusters, int) and clusters > len(dataset.train):
        raise InputError(f"--clusters {clusters}: more clusters than the {len(dataset.train)} training images; give fewer")
    if config.teacher.teacher_weights == "held-out" and dataset.pretraining is None:
        raise InputError(f"--teacher-weights held-out: {data.dataset} holds no labelled images out; give a weight file")
    size = nnx.eval_shape(lambda: create_hash_model(config.teacher.teacher, 1)).backbone.image_size
    return Context(config, dataset, size, out)


def build_models(context: Context) -> tuple[HashModel, HashModel]:
    """Teacher and student with their backbones' weights, both before either trains, so that a wrong file is known at once."""
    config = context.config
    # What is to be pretrained here starts at random
    teacher_weights = "random" if config.teacher.teacher_weights == "held-out" else config.teacher.teacher_weights
    roles = ((config.teacher.teacher, teacher_weights, "teacher_weights", TEACHER),
             (config.student.student, config.student.student_weights, "student_weights", STUDENT))
    teacher, student = (build(name, config.objective.bits, weights, option=option, seed=context.seed(stage),
                              dtype=config.run.dtype, cache_dir=config.data.cache_dir)
                        for name, weights, option, stage in roles)
    if student.backbone.fixed_size and student.backbone.image_size != context.size:
        raise InputError(f"--student {config.student.student}: takes {student.backbone.image_size} pixels, but "
                         f"{config.teacher.teacher} sees {context.size}; name a student of that size or a convolutional one")
    check_objective(teacher, config.hashing, bits=config.objective.bits, images=len(context.dataset.train),
                    name=config.teacher.teacher_objective)
    return teacher, student


def views_notes(context: Context, student: HashModel) -> list[str]:
    """What the choice of views means for the speed and the batch norm of a frozen student."""
    if context.config.student.train_backbone:
        return []
    if context.kept_views is None:
        views = context.config.data.views
        return [f"The frozen student encodes new views each epoch; --views {views} would encode {views} of each image once, and "
                "train far faster."]
    normalised = "; its batch norm runs on its running averages, where --fresh-views takes each batch's statistics"
    return [f"The frozen student encodes {context.kept_views} views of each image once"
            f"{normalised if nnx.state(student, nnx.BatchStat) else ''}."]


def train_teacher(
    context: Context, model: HashModel, notes: list[str]
) -> tuple[Encoder, list[dict[str, Any]]]:
    """Stage 1: the teacher's hash head, over a backbone that is loaded or pretrained. Adds what a reader must know to `notes`."""
    config = context.config
    history: list[dict[str, Any]] = []
    if config.teacher.teacher_weights == "held-out":
        history = pretrain(context, model, notes)
    cache = FeatureCache(config.data.cache_dir / "features", config.teacher.teacher, model.backbone, config.run.dtype)
    stream = context.stream(context.dataset.train.images) if context.kept_views is None else None
    encoder = Encoder(model, keep_parts(context, cache), cache)
    if isinstance(config.hashing, ClosedFormObjective):  # solved in moments, so it has no checkpoint
        return encoder, [*history, *solve_head(model, config.hashing, encoder.parts.features["train"],
                                               seed=context.seed(TEACHER))]
    stage, parameters, carry = teacher_stage(
        model, teacher_views(context, cache), objective=config.hashing, learning_rate=config.teacher.teacher_lr,
        temperature=config.objective.temperature, kl_weight=config.objective.kl_weight,
        n_images=len(context.dataset.train), stream=stream,
        **context.stage_settings(TEACHER, epochs=config.teacher.teacher_epochs))
    fitted = context.fit(stage, parameters, carry)
    nnx.update(model, fitted.state.parameters)
    return encoder, [*history, *fitted.history]


def pretrain(context: Context, model: HashModel, notes: list[str]) -> list[dict[str, Any]]:
    """Gives the teacher's backbone what ImageNet gives vit_b_16: supervised pretraining, on images held out for it."""
    config, held_out = context.config, context.dataset.pretraining
    note = (f"No pretrained weights ship with the package: the teacher's backbone is first pretrained on {len(held_out)} "
            "labelled images that take no further part (the role ImageNet plays for vit_b_16).")
    notes.append(note)
    print(note)
    classifier = HashModel(model.backbone, held_out.labels.shape[1], rngs=nnx.Rngs(context.seed(PRETRAINING)))
    settings = context.stage_settings(PRETRAINING, epochs=config.teacher.pretraining_epochs, kept_views=None,
                                      scan=backbone_scans(), stream=context.stream(held_out.images))
    stage, parameters, carry = pretraining_stage(
        classifier, context.pixels(held_out.images, train=True), held_out.labels, name="pretraining", **settings)
    fitted = context.fit(stage, parameters, carry)
    nnx.update(classifier, fitted.state.parameters, fitted.state.carry)
    return fitted.history


def keep_parts(context: Context, cache: FeatureCache) -> KeptParts:
    """The features that a frozen backbone gives for every part."""
    return KeptParts({name: cache.evaluation(images, size=context.size, resize=context.resize)
                      for name, images in context.parts().items()})


def kept_view_features(context: Context, cache: FeatureCache, **made: Any) -> np.ndarray:
    """The features that a frozen backbone gives for every kept view of the training images, or for what is `made` of it."""
    return cache.views(context.dataset.train.images, context.kept_views, key=context.view_key, config=context.view_config,
                       **made)


def teacher_views(context: Context, cache: FeatureCache) -> FeatureSource:
    """What the teacher's head trains on. A frozen teacher always runs in evaluation mode."""
    if context.kept_views is None:
        return context.pixels(context.dataset.train.images, train=False)
    return KeptFeatures(jnp.asarray(kept_view_features(context, cache)))


def train_student(context: Context, model: HashModel, teacher: Encoder) -> tuple[Encoder, Fit]:
    """Stages 2 and 3: what the teacher says of the training images, then the student under the distillation method."""
    config = context.config
    cache = FeatureCache(config.data.cache_dir / "features", config.student.student, model.backbone, config.run.dtype)
    said = TeacherView(teacher.parts.codes(teacher.model, "train"), context.dataset.cluster_range)
    needs = config.method.needs
    partners = nearest_neighbours(said.codes, needs.neighbours) if needs.neighbours else None
    live = config.student.train_backbone or context.kept_views is None
    if live:
        parts: Parts = PixelParts(context.parts(), context.size, context.resize)
        student_views: ViewSource = context.pixels(context.dataset.train.images, train=True, partners=partners)
    else:
        parts = keep_parts(context, cache)
        derived = {derivation.name: jnp.asarray(kept_view_features(context, cache, derivation=derivation, partners=partners))
                   for derivation in needs.views}
        student_views = KeptFeatures(jnp.asarray(kept_view_features(context, cache)), derived)
    encoder = Encoder(model, parts, cache)
    stage, parameters, carry = student_stage(
        model, teacher.model, config.method, said,
        student_views=student_views, teacher_views=teacher_codes_of_views(context, teacher, needs, partners),
        train_backbone=config.student.train_backbone,
        scan=not config.student.train_backbone or backbone_scans(),
        stream=context.stream(context.dataset.train.images) if live else None, learning_rate=config.student.lr,
        temperature=config.objective.temperature, kl_weight=config.objective.kl_weight,
        method_seed=context.seed(STUDENT), n_images=len(context.dataset.train),
        validate=validation(context, teacher, encoder), validation_interval=config.student.validation_interval,
        patience=config.student.patience, min_epochs=config.min_epochs,
        **context.stage_settings(STUDENT, epochs=config.student.epochs))
    return encoder, context.fit(stage, parameters, carry)


def teacher_codes_of_views(
    context: Context, teacher: Encoder, needs: Needs, partners: np.ndarray | None
) -> ViewSource:
    """The trained teacher's codes of the views that the student sees, and of what the method needs made of them."""
    if context.kept_views is None:
        return context.pixels(context.dataset.train.images, train=False, partners=partners)

    def codes(**made: Any) -> jax.Array:
        return jnp.asarray(head_codes(teacher.model, kept_view_features(context, teacher.cache, **made)), jnp.int8)

    return KeptCodes(codes(), {derivation.name: codes(derivation=derivation, partners=partners)
                               for derivation in needs.views})


def put_student(student: Encoder, state) -> HashModel:
    """The student with a training state's parameters and statistics in it."""
    nnx.update(student.model, state.parameters["model"], state.carry["statistics"])
    return student.model


def validation(context: Context, teacher: Encoder, student: Encoder):
    """The function that scores a training state by mAP@k of both searches with the validation queries; None without labels."""
    dataset, k = context.dataset, context.config.data.k or context.dataset.default_k
    if not dataset.labelled:
        return None
    teacher_database = teacher.parts.codes(teacher.model, "database")

    def validate(state) -> dict[str, float]:
        model = put_student(student, state)
        queries = student.parts.codes(model, "validation")
        databases = {"symmetric": student.parts.codes(model, "database"), "asymmetric": teacher_database}
        return {search: mean_average_precision(queries, database, dataset.validation.labels, dataset.database.labels, k)
                for search, database in databases.items()}

    return validate


def evaluate(
    context: Context, teacher: Encoder, student: Encoder, fitted: Fit, history: list[dict[str, Any]], notes: list[str]
) -> dict[str, Any]:
    """Stages 4 and 5: both searches with the test queries, and everything a run leaves on disk. Returns the metrics."""
    config, dataset, out = context.config, context.dataset, context.out
    k = config.data.k or dataset.default_k
    codes = {f"teacher_{part}": teacher.parts.codes(teacher.model, part) for part in ("database", "test")}
    for search in SEARCHES:
        model = put_student(student, fitted.best.get(search, fitted.state))
        codes[f"{search}_test"] = student.parts.codes(model, "test")
        if search == "symmetric":
            codes["symmetric_database"] = student.parts.codes(model, "database")
        if devices.is_first():
            export_safetensors(model, out / f"student_{search}.safetensors", name=config.student.student,
                               bits=config.objective.bits)

    def search(queries: str, database: str) -> SearchScores:
        return evaluate_search(codes[queries], codes[database], dataset.test.labels, dataset.database.labels, k)

    scores = {"teacher": search("teacher_test", "teacher_database"),
              "student symmetric": search("symmetric_test", "symmetric_database"),
              "student asymmetric": search("asymmetric_test", "teacher_database")} if dataset.labelled else {}
    costs = {role: measure_cost(encoder.model, dataset.test.images, size=context.size, resize=context.resize)
             for role, encoder in (("teacher", teacher), ("student", student))}
    metrics = results.metrics(
        dataset, k=k, bits=config.objective.bits, seed=config.run.seed, scores=scores, models=costs,
        names={"teacher": config.teacher.teacher, "student": config.student.student})
    if not devices.is_first():
        return metrics
    export_safetensors(teacher.model, out / "teacher.safetensors", name=config.teacher.teacher, bits=config.objective.bits)
    results.save_codes(out / "codes.npz", codes, dataset)
    results.write_history(out / "history.jsonl", history)
    carried = fitted.state.carry["memory"]
    memory = {name: np.asarray(carried[name]) for name in REPORTED if name in carried}
    report.write_report(out, report.Report(
        title=f"{config.student.student} taught by {config.teacher.teacher} on {dataset.name}, {config.objective.bits} bits",
        config=config.flat(), metrics=metrics, history=history,
        curves={name: score.curve for name, score in scores.items()},
        bit_mask=memory.get("bit_mask"), cluster_sizes=results.sizes(memory.get("clusters"), memory.get("bit_mask")),
        cluster_scores=memory.get("cluster_scores"),
        grid=(results.retrieval_grid(dataset, codes["symmetric_test"], codes["symmetric_database"])
              if dataset.labelled else None), notes=tuple(notes)))
    write_json(out / "metrics.json", metrics)
    return metrics
