"""python -m torch_ref.distill: the experiment of jax_brcd.distill in PyTorch, with the same options."""

import dataclasses
import pathlib
import sys
from typing import NamedTuple

import numpy as np

try:
    import torch
except ModuleNotFoundError:
    if __name__ != "__main__":
        raise
    print("error: the reference needs PyTorch; pip install -e '.[torch]'", file=sys.stderr)
    raise SystemExit(2) from None
from safetensors.torch import save_file
from torch import Tensor, nn

from jax_brcd.clusters.choice import published_range
from jax_brcd.data import ImageDataset
from jax_brcd.encoder import STUDENT, TEACHER
from jax_brcd.hub.names import is_hub_name
from jax_brcd.models.variants import Preprocessing, tags_of
from jax_brcd.report import SKIPPED
from jax_brcd.retrieval import candidates
from jax_brcd.retrieval.searches import Search
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import atomic_path, read_json, write_json
from jax_brcd.settings.command_line import run_command
from jax_brcd.settings.stages import CLEAN
from jax_brcd.stages.configuration import Config, differences, parse_command_line, spelled
from jax_brcd.stages.context import load_to_train
from jax_brcd.stages.learning import check_images, check_learning, check_new
from jax_brcd.stages.sight import decoded_side, sights, told_sizes
from jax_brcd.teachers.kinds import TEACHERS
from jax_brcd.views.derivations import Derivation
from torch_ref import augment, losses, models, objectives
from torch_ref.methods import Known, create_method, parts_of
from torch_ref.outputs import Outputs, outputs_of
from torch_ref.retrieval import mean_average_precision, search_scores
from torch_ref.training import Schedule, pretrain, train_student, train_teacher

ENCODING_BATCH = 128


class Encoded(NamedTuple):
    """What a model gives of images, in evaluation mode."""

    features: Tensor  # of the backbone
    logits: Tensor

    @property
    def codes(self) -> np.ndarray:
        """In {-1, 0, +1}."""
        return losses.hash_codes(self.logits).numpy()


@dataclasses.dataclass
class Experiment:
    """What the stages of one run share."""

    config: Config
    dataset: ImageDataset
    seen: dict[str, Preprocessing]  # by teacher and student
    k: int

    def __post_init__(self) -> None:
        drawn_for, recipe = self.seen[TEACHER].size, self.config.data.view_recipe
        self.view = {role: augment.training_view(seen.size, self.dataset.flip, recipe, mean=seen.mean, std=seen.std,
                                                 blur_unit=seen.size / drawn_for) for role, seen in self.seen.items()}
        self.still = {role: augment.evaluation_view(**vars(seen)) for role, seen in self.seen.items()}
        self.train_images = channels_first(self.dataset.train.images)
        self.kept_views = None if self.config.data.fresh_views else self.config.data.views

    def schedule(self, stage: int, epochs: int, **settings) -> Schedule:
        """Batches of a stage; the seeds are jax_brcd's, so both see the same images."""
        run = self.config.run
        return Schedule(**{"n_images": len(self.train_images), "batch_size": run.batch_size, "epochs": epochs,
                           "seed": run.seed * 3 + stage, "kept_views": self.kept_views, **settings})

    def view_pixels(
        self, role: str, number: int, derivation: Derivation | None = None, partners: Tensor | None = None
    ) -> Tensor:
        """Kept view `number` of every training image as `role` sees it, or what is derived of it: always the same pixels."""
        torch.manual_seed(self.config.run.seed * 1_000_003 + number)
        pixels = augment.random_views(self.train_images, self.view[role])
        if derivation is None:
            return pixels
        return augment.derive(derivation, pixels, torch.arange(len(pixels)), lambda others: pixels[others], partners,
                              (self.config.run.seed, number))

    def fresh_pixels(
        self, role: str, indices: Tensor, numbers: Tensor, derivation: Derivation | None, partners: Tensor | None
    ) -> Tensor:
        """New views of a batch as `role` sees them, or what is derived of them: the same for the same batch and numbers."""
        seed = (self.config.run.seed, int(numbers[0]), int(indices[0]))
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        pixels = augment.random_views(self.train_images[indices], self.view[role])
        if derivation is None:
            return pixels
        return augment.derive(derivation, pixels, indices,
                              lambda others: augment.random_views(self.train_images[others], self.view[role]), partners, seed)

    def kept(self, role: str, encode, derivation: Derivation | None = None, partners: Tensor | None = None) -> Tensor:
        """`encode` of every kept view as `role` sees it, or of what is derived of it: (views, images, ...)."""
        return torch.stack([encode(self.view_pixels(role, number, derivation, partners)) for number in range(self.kept_views)])

    def encoded(self, role: str, model: nn.Module, part: str) -> Encoded:
        """What a model gives of the un-augmented images of a part of the data set as `role` sees them."""
        head, still = models.get_head(model), self.still[role]

        def both(batch: Tensor) -> Tensor:
            features = models.features_of(model, still(batch))
            return torch.cat([features, head(features)], dim=1)

        outputs = in_batches(both, model, channels_first(getattr(self.dataset, part).images))
        return Encoded(outputs[:, : -self.config.objective.bits], outputs[:, -self.config.objective.bits :])

    def codes(self, role: str, model: nn.Module, part: str) -> np.ndarray:
        """Codes of the same images."""
        return self.encoded(role, model, part).codes

    def measure(self, function, queries: np.ndarray, database: np.ndarray, part: str, **settings):
        """A measure of the search of the database by the queries of `part`."""
        return function(queries, database, getattr(self.dataset, part).labels, self.dataset.database.labels, self.k, **settings)

    def scores(self, queries: Encoded, database: Encoded, *, alike: bool) -> dict[str, float | None]:
        """All measures of the search of the database by the test queries; cosines where they are `alike`, of one model."""
        features = (queries.features.numpy(), database.features.numpy()) if alike else None
        return self.measure(search_scores, queries.codes, database.codes, "test", logits=queries.logits.numpy(), features=features)


def channels_first(images: np.ndarray) -> Tensor:
    """uint8 (n, h, w, 3) -> (n, 3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


@torch.inference_mode()
def in_batches(function, model: nn.Module, inputs: Tensor) -> Tensor:
    """`function` of the inputs, batch by batch, with the model in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    outputs = torch.cat([function(batch) for batch in inputs.split(ENCODING_BATCH)])
    for module, training in modes.items():  # which may differ: a frozen student drops nothing
        module.training = training
    return outputs.clone()


def load_experiment(config: Config) -> Experiment:
    """Loads the data, and what teacher and student see."""
    data, seen = config.data, sights(config, student=True)
    dataset = load_to_train(config, square_side=decoded_side(config, seen, student=True))
    return Experiment(config, dataset, {role: sight.of(dataset) for role, sight in seen.items()}, data.k or dataset.default_k)


def build(
    name: str, weights: str, size: int, config: Config, forms: tuple[str | None, ...] = (None,)
) -> tuple[nn.Module, bool]:
    """A hash model for images of `size` pixels with its weights loaded, and whether its head came with them: one of the first
    of `forms` that the weights have, else a new one of the last."""
    for form in dict.fromkeys(forms):
        model = models.create_hash_model(name, config.objective.bits, form, size=size)
        if came := models.load_weights(model, name, weights, config.data.cache_dir):
            break
    return model, came


def run_teacher(experiment: Experiment) -> tuple[nn.Module, Tensor | None]:
    """The trained teacher, and its features of the kept views."""
    config = experiment.config
    held_out = config.teacher.teacher_weights == "held-out"
    objective, weights = config.teacher.teacher_objective, "random" if held_out else config.teacher.teacher_weights
    form = objectives.HEADS[objective](config.hashing) if objective in objectives.HEADS else None
    # A head that came is trained further as it is, but for an objective with a head of its own
    any_form = form is None or config.teacher_epochs(head_came=True) == 0
    model, head_came = build(config.teacher.teacher, weights, experiment.seen[TEACHER].size, config,
                             (*([models.form_of(weights)] if any_form else []), form))
    epochs = config.teacher_epochs(head_came=head_came)
    check_teacher(experiment, model, learns=not (head_came and epochs == 0))
    if held_out:
        pretrain_backbone(experiment, model)
    model.eval().requires_grad_(False)
    head = models.get_head(model).requires_grad_(True)
    features = None
    if experiment.kept_views is not None:
        features = experiment.kept(
            TEACHER, lambda pixels: in_batches(lambda batch: models.features_of(model, batch), model, pixels))

    def features_of(indices: Tensor, numbers: Tensor) -> Tensor:
        if features is not None:
            return features[numbers, indices]
        return models.features_of(model, augment.random_views(experiment.train_images[indices], experiment.view[TEACHER]))

    if head_came and epochs == 0:
        pass  # the teacher was brought along
    elif objective == "itq":
        view = experiment.still[TEACHER]
        still = in_batches(lambda batch: models.features_of(model, view(batch)), model, experiment.train_images)
        weight, bias = objectives.itq_head(still, config.objective.bits, seed=config.run.seed * 3 + 1,
                                           iterations=config.hashing.itq_iterations)
        head.load_state_dict({"weight": weight, "bias": bias})
    else:
        loss = objectives.LOSSES[objective]
        train_teacher(head, features_of, experiment.schedule(1, epochs, batch_size=config.teacher_batch_size),
                      learning_rate=config.teacher.teacher_lr, loss=lambda both, logits: loss(both, logits, config),
                      optimizer=objectives.OPTIMIZERS.get(objective, objectives.adam), hashing=config.hashing)
    head.requires_grad_(False)
    return model, features


def pretrain_backbone(experiment: Experiment, model: nn.Module) -> None:
    """Supervised pretraining on the labelled held-out images, under a classifier that is dropped afterwards."""
    held_out = experiment.dataset.pretraining
    images, labels = channels_first(held_out.images), torch.from_numpy(held_out.labels.argmax(axis=1))
    head = models.get_head(model)
    models.set_head(model, models.new_head(experiment.config.teacher.teacher, width(model), held_out.labels.shape[1]))
    epochs = experiment.config.teacher.pretraining_epochs
    seen = experiment.seen[TEACHER]
    view = augment.training_view(seen.size, experiment.dataset.flip, mean=seen.mean, std=seen.std)
    pretrain(model, lambda indices, _: augment.random_views(images[indices], view), labels,
             experiment.schedule(0, epochs, n_images=len(images), kept_views=None))
    models.set_head(model, head)


def known(experiment: Experiment, codes: Tensor, features: tuple[int, int]) -> Known:
    """What a method may learn of before the training; `features` are the widths of student and teacher."""
    config = experiment.config
    between = published_range(experiment.dataset.name)
    return Known(codes, config.run.seed * 3 + 2, config.objective.temperature, between, *features)


def encode(model: nn.Module, pixels: Tensor) -> Outputs:
    """All outputs of a hash model."""
    return outputs_of(models.get_head(model), models.features_of(model, pixels))


def view_outputs(experiment: Experiment, model: nn.Module, teacher: nn.Module, teacher_features: Tensor | None, codes: Tensor):
    """The function that gives the student's and the teacher's outputs of a view, or of what is derived of it; None for the
    student's where the view is not `shown` to it.

    Args:
        teacher_features: of the kept views; None for new views. codes: the teacher's, of the training images.
    """
    whole, needs = experiment.config.student.train_backbone, experiment.config.method.needs
    partners = augment.nearest_others(codes, needs.neighbours) if needs.neighbours else None
    clean = clean_outputs(experiment, teacher) if experiment.config.learning.teacher_view == CLEAN else None
    if experiment.kept_views is None:
        def fresh(indices: Tensor, numbers: Tensor, derivation: Derivation | None = None, *, shown: bool = True):
            pixels = experiment.fresh_pixels(TEACHER, indices, numbers, derivation, partners)
            with torch.no_grad():
                of_teacher = encode(teacher, pixels) if clean is None else rows_of(clean, indices)
            if shown and experiment.seen[STUDENT] != experiment.seen[TEACHER]:
                pixels = experiment.fresh_pixels(STUDENT, indices, numbers, derivation, partners)
            return encode(model, pixels) if shown else None, of_teacher

        return fresh

    def features(encoder: nn.Module):
        return lambda pixels: in_batches(lambda batch: models.features_of(encoder, batch), encoder, pixels)

    inputs, targets = {}, {}
    for derivation in (None, *needs.derivations):
        inputs[derivation] = experiment.kept(STUDENT, (lambda pixels: pixels) if whole else features(model), derivation,
                                             partners)
        of_teacher = (teacher_features if derivation is None else experiment.kept(TEACHER, features(teacher), derivation,
                                                                                   partners))
        targets[derivation] = outputs_of(models.get_head(teacher), of_teacher)

    def kept(indices: Tensor, numbers: Tensor, derivation: Derivation | None = None, *, shown: bool = True):
        of_teacher = rows_of(targets[derivation], (numbers, indices)) if clean is None else rows_of(clean, indices)
        if not shown:
            return None, of_teacher
        seen = inputs[derivation][numbers, indices]
        return encode(model, seen) if whole else outputs_of(models.get_head(model), seen), of_teacher

    return kept


def clean_outputs(experiment: Experiment, teacher: nn.Module) -> Outputs:
    """The teacher's outputs of the un-augmented training images, or what they and their neighbours' are in the mean."""
    found, count = experiment.encoded(TEACHER, teacher, "train"), experiment.config.learning.teacher_neighbours
    if not count:
        return Outputs(found.features, found.logits, torch.from_numpy(found.codes))
    among = candidates(len(found.features), experiment.config.run.seed)
    others = augment.cosine_others(found.features, count, among if among is None else torch.from_numpy(among))
    features, logits = ((part + part[others].sum(dim=1)) / (1 + others.shape[1]) for part in (found.features, found.logits))
    return Outputs(features, logits, losses.hash_codes(logits))


def rows_of(outputs: Outputs, place) -> Outputs:
    """Some rows of kept outputs."""
    return Outputs(*(part[place] for part in outputs))


def width(model: nn.Module) -> int:
    """Features that the hash head is applied to."""
    return next(layer.in_features for layer in models.get_head(model).modules() if isinstance(layer, nn.Linear))


def check_student(experiment: Experiment) -> None:
    """Raises InputError for what of the student would fail when its teacher is there: its weights, its method, its last batch."""
    config, images, size = experiment.config, len(experiment.train_images), experiment.seen[STUDENT].size
    check_images(config, images=images)
    config.method.check(images=images, streamed=False)
    with torch.random.fork_rng():
        model, _ = build(config.student.student, config.student.student_weights, size, config)
    if (config.student.train_backbone or experiment.kept_views is None) and images % config.run.batch_size == 1:
        try:
            models.train(model, whole=config.student.train_backbone)
            model(torch.zeros(1, 3, size, size))
        except ValueError:  # batch norm's, of one value a channel
            raise InputError(f"the last of an epoch's batches is one image, of which PyTorch has no statistics at {size} pixels; give "
                             "another", field="batch_size", value=config.run.batch_size) from None


def check_teacher(experiment: Experiment, model: nn.Module, *, learns: bool) -> None:
    """Raises InputError for what of a teacher's head would fail when all features are there."""
    config, images = experiment.config, len(experiment.train_images)
    objective, head = config.teacher.teacher_objective, models.get_head(model)
    if not learns:
        return
    if objective == "itq":
        if not isinstance(head, nn.Linear):
            raise InputError("it solves a linear hash head, and the teacher's has more layers; name another `teacher`",
                             field="teacher_objective", value=objective)
        config.hashing.check(images=images, features=head.in_features, bits=config.objective.bits)
    if images % config.teacher_batch_size == 1 and any(isinstance(layer, nn.BatchNorm1d) for layer in head.modules()):
        raise InputError("the last of an epoch's batches is one image, of which PyTorch has no statistics; give another",
                         field="teacher_batch_size", value=config.teacher_batch_size)


def run_student(experiment: Experiment, teacher: nn.Module, teacher_features: Tensor | None):
    """The trained student's model and its state_dict at the best validation of each search."""
    config = experiment.config
    model, _ = build(config.student.student, config.student.student_weights, experiment.seen[STUDENT].size, config)
    whole = config.student.train_backbone
    model.requires_grad_(whole)
    head = models.get_head(model).requires_grad_(True)
    teacher_database = experiment.codes(TEACHER, teacher, "database")
    if whole or experiment.kept_views is None:
        models.train(model, whole=whole)
    else:
        model.eval()

    def validate() -> dict[str, float]:
        queries = experiment.codes(STUDENT, model, "validation")
        databases = {Search.SYMMETRIC: experiment.codes(STUDENT, model, "database"), Search.ASYMMETRIC: teacher_database}
        return {search: experiment.measure(mean_average_precision, queries, codes, "validation")
                for search, codes in databases.items()}

    codes, method = torch.from_numpy(experiment.codes(TEACHER, teacher, "train")), config.method
    distillation = create_method(config.run.method, method, known(experiment, codes, (width(model), width(teacher))))
    own = ("i", "j") if config.contrasts else ()
    best, _ = train_student(
        model, [*(model if whole else head).parameters(), *distillation.parameters()],
        view_outputs(experiment, model, teacher, teacher_features, codes), distillation,
        experiment.schedule(2, config.student.epochs, validation_interval=config.student.validation_interval,
                            patience=config.student.patience, min_epochs=config.min_epochs),
        validate if experiment.dataset.labelled else None, learning_rate=config.student.lr,
        temperature=config.objective.temperature, kl_weight=config.objective.kl_weight,
        views=[view for view in ("i", "j") if view in own or view in method.needs.views],
        unseen=[view for view in method.needs.unseen if view not in own],
        derivations=method.needs.derivations, replaces_objective=not config.contrasts, learning=config.learning)
    return model, best


# The settings of the stages that mean here what they mean in jax_brcd; all of a method and of a teacher objective are honoured
HONOURED = {
    "dataset", "data_dir", "split", "train_images", "k", "views", "fresh_views", "view_recipe", "label_format",
    "max_bad_images", "decode_workers", "cache_dir", "bits", "temperature", "kl_weight",
    "teacher", "teacher_weights", "teacher_size", "teacher_objective", "pretraining_epochs", "teacher_epochs", "teacher_lr",
    "teacher_temperature", "teacher_batch_size", "teacher_kl_weight",
    "student", "student_weights", "student_size", "train_backbone", "epochs", "lr", "validation_interval", "patience",
    "min_epochs", "optimizer", "lr_schedule", "warmup_epochs", "lr_step_epochs", "weight_decay", "sgd_momentum", "clip_norm",
    "ema_decay", "own_objective", "teacher_view", "teacher_neighbours",
    "method", "method_weights", "batch_size", "seed", "out",
}


def refuse_unhonoured(config: Config) -> None:
    """Raises InputError for a teacher that is none here, and for a setting that is no default and makes no difference here."""
    if config.teacher.teacher in TEACHERS:
        raise InputError("torch_ref has no such teacher; name a backbone", field="teacher", value=config.teacher.teacher)
    for role, name, weights in ((TEACHER, config.teacher.teacher, config.teacher.teacher_weights),
                                (STUDENT, config.student.student, config.student.student_weights)):
        if is_hub_name(weights) or weights in tags_of(name).keys() - {"imagenet"}:
            raise InputError("torch_ref fetches nothing from the Hugging Face hub; name a file or folder", field=f"{role}_weights",
                             value=weights)
    for stage in (config.data, config.objective, config.teacher, config.student, config.learning, config.run):
        for field in dataclasses.fields(stage):
            value = getattr(stage, field.name)
            if field.metadata and field.name not in HONOURED and value != field.default:
                raise InputError("torch_ref does not honour it; leave it out", field=field.name, value=value)


def claim(out: pathlib.Path, config: Config) -> None:
    """Makes `out` the directory of this run.

    Raises:
        InputError: where it holds another run, or one of jax_brcd's.
    """
    path = out / "config.json"
    ours = {"framework": "torch", **config.compared()}
    if path.exists():
        theirs = read_json(path)
        if theirs.get("framework") != "torch":
            raise InputError(f"{out}: holds a run of jax_brcd; name another `out`, or delete it")
        changed = differences(ours, theirs)
        if changed:
            raise InputError(f"{out}: holds a run with {spelled(changed)}; name another `out`, or delete it")
    write_json(path, ours)


def run(config: Config) -> dict:
    """Runs the experiment, prints and returns its metrics.

    Raises:
        InputError: for bad input, settings that are not honoured here, and a directory that holds another run.
    """
    refuse_unhonoured(config)
    parts_of(config.run.method, config.method)
    out = pathlib.Path(config.run.out or pathlib.Path("runs") / f"torch-{config.out.name}").expanduser()
    torch.manual_seed(config.run.seed)
    check_learning(config)
    if not (out / "config.json").exists():
        check_new(config)
    experiment = load_experiment(config)
    check_student(experiment)
    claim(out, config)
    teacher, teacher_features = run_teacher(experiment)
    student, best = run_student(experiment, teacher, teacher_features)
    found, labelled = {}, experiment.dataset.labelled
    of_teacher = {part: experiment.encoded(TEACHER, teacher, part) for part in ("test", "database")} if labelled else {}
    for search, state in best.items():
        student.load_state_dict(state)
        save(student, out / f"student_{search}.safetensors")
        if labelled:
            own = search == Search.SYMMETRIC
            database = experiment.encoded(STUDENT, student, "database") if own else of_teacher["database"]
            found[search] = experiment.scores(experiment.encoded(STUDENT, student, "test"), database, alike=own)
    save(teacher, out / "teacher.safetensors")
    metrics = {"protocol": {"dataset": experiment.dataset.name, "split": experiment.dataset.split, "k": experiment.k,
                            "ties": "stable", "bits": config.objective.bits, "seed": config.run.seed,
                            **told_sizes(experiment.dataset, {role: seen.size for role, seen in experiment.seen.items()})}}
    if labelled:
        metrics["teacher"] = experiment.scores(of_teacher["test"], of_teacher["database"], alike=True)
        metrics["student"] = found
        found = {"teacher": metrics["teacher"], **found}
    else:
        print(SKIPPED)
    write_json(out / "metrics.json", metrics)
    for name, scores in found.items():
        others = "".join(f"  {measure.replace('_map', '')} {scores[measure]:.4f}" for measure in ("soft_map", "cosine_map")
                         if scores[measure] is not None)
        print(f"{name:12s} mAP@{experiment.k} {scores['map']:.4f}{others}  precision@{experiment.k} {scores['precision']:.4f}")
    return metrics


def save(model: nn.Module, path: pathlib.Path) -> None:
    """The model's state_dict as safetensors, which says what form its hash head has where that is not its own."""
    with atomic_path(path) as temporary:
        about = None if model.form is None else {"head": model.form}
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary, metadata=about)


def main(argv: list[str] | None = None) -> None:
    """Runs the experiment that the options describe."""
    run(parse_command_line("python -m torch_ref.distill", __doc__, argv))


if __name__ == "__main__":
    run_command(main)
