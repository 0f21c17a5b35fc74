"""How a student learns: its optimizer, made of the settings, and what of them cannot be together."""

from collections.abc import Iterator

import optax

from jax_brcd.methods.base import Method
from jax_brcd.methods.sums import in_sum, parts_of
from jax_brcd.models import HashModel
from jax_brcd.models.blocks import depth_of
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.stages import CLEAN, LearningConfig
from jax_brcd.stages.configuration import Config
from jax_brcd.teachers.objectives import ClosedFormObjective
from jax_brcd.training.optimizers import OPTIMIZERS
from jax_brcd.training.rates import SCHEDULES, Course, Rate
from jax_brcd.training.updates import averaging, held, scaled


def create_optimizer(
    settings: LearningConfig, model: HashModel, *, rate: float, epochs: int, steps: int
) -> optax.GradientTransformation:
    """The optimizer of {"model": the student's parameters, "method": the method's}; `steps` are those of an epoch."""
    kind = OPTIMIZERS[settings.optimizer]
    decay = (kind.decay or 0.0) if settings.weight_decay is None else settings.weight_decay
    links = [kind.build(_rate(settings, rate, epochs, steps), decay, settings.sgd_momentum)]
    if settings.clip_norm is not None:
        links.insert(0, optax.clip_by_global_norm(settings.clip_norm))
    if settings.accumulate > 1:
        links = [optax.MultiSteps(optax.chain(*links), settings.accumulate).gradient_transformation()]
    links += _of_blocks(settings, model, steps)
    if settings.ema_decay is not None:
        links.append(averaging(settings.ema_decay))
    return optax.chain(*links) if len(links) > 1 else links[0]


def _rate(settings: LearningConfig, rate: float, epochs: int, steps: int) -> Rate:
    """The rate over the updates that there will be."""
    def updates(told: float | int | None) -> int | None:
        return None if told is None else int(told * steps / settings.accumulate)

    course = Course(rate, max(updates(epochs), 1), updates(settings.warmup_epochs), updates(settings.lr_step_epochs))
    return SCHEDULES[settings.lr_schedule].build(course)


def _of_blocks(settings: LearningConfig, model: HashModel, steps: int) -> Iterator[optax.GradientTransformation]:
    """What is done to the updates of each block."""
    depth, blocks = depth_of(model)

    def of(path):
        return depth(path[1:]) if path[0] == "model" else blocks + 1

    if settings.layer_decay is not None:
        yield scaled(lambda path: settings.layer_decay ** (blocks + 1 - of(path)))
    if settings.freeze_epochs:
        last = settings.freeze_blocks
        yield held(lambda path: path[:2] == ("model", "backbone") and (last is None or of(path) <= last),
                   settings.freeze_epochs * steps)


def check_learning(config: Config) -> None:
    """Raises InputError for settings of a student's learning that cannot be together, whatever the images are."""
    settings = config.learning
    _check_moving(settings)
    _check_lengths(settings, config.student.epochs)
    if not config.student.train_backbone:
        _check_frozen(settings, kept=not config.data.fresh_views)
    elif settings.teacher_view == CLEAN:
        _check_views(config)
    if settings.mixup:
        _check_mixup(config.method)
    if settings.teacher_neighbours:
        _check_neighbours(config)
    _check_method(config)
    _check_parts(config)
    _check_features(config)
    _check_objective(config)


def check_new(config: Config) -> None:
    """Raises InputError for settings of a student's learning that are refused of new runs alone, as directories of earlier
    versions may hold them."""
    student, schedule = config.student, config.learning.lr_schedule
    if student.patience is None and "min_epochs" in config.given and student.min_epochs:
        raise InputError(f"nothing stops early under `lr_schedule` {schedule} without `patience`; give that, or leave it out",
                         field="min_epochs", value=student.min_epochs)
    config.method.check_settings()


def check_images(config: Config, *, images: int) -> None:
    """Raises InputError for settings of a student's learning that so many training images do not allow."""
    settings, steps = config.learning, config.student.epochs * -(-images // config.run.batch_size)
    if settings.accumulate > max(1, steps):
        raise InputError(f"the run has {steps} steps, so nothing would be learnt; give that or less", field="accumulate",
                         value=settings.accumulate)
    if settings.teacher_neighbours >= images:
        raise InputError(f"each of the {images} training images has {images - 1} others; give that or fewer",
                         field="teacher_neighbours", value=settings.teacher_neighbours)


def _check_moving(settings: LearningConfig) -> None:
    """What the optimizer or the schedule that is named does not look at."""
    optimizer, schedule = OPTIMIZERS[settings.optimizer], SCHEDULES[settings.lr_schedule]
    looked_at = (
        ("weight_decay", optimizer.decay is not None, "optimizer", settings.optimizer,
         [name for name, kind in OPTIMIZERS.items() if kind.decay is not None]),
        ("sgd_momentum", optimizer.momentum, "optimizer", settings.optimizer,
         [name for name, kind in OPTIMIZERS.items() if kind.momentum]),
        ("warmup_epochs", schedule.warms, "lr_schedule", settings.lr_schedule,
         [name for name, kind in SCHEDULES.items() if kind.warms]),
        ("lr_step_epochs", schedule.drops, "lr_schedule", settings.lr_schedule,
         [name for name, kind in SCHEDULES.items() if kind.drops]))
    for field, has, owner, name, able in looked_at:
        value = getattr(settings, field)
        if not has and value != getattr(LearningConfig(), field):
            raise InputError(f"`{owner}` {name} has none; leave it out, or name `{owner}` {' or '.join(able)}", field=field,
                             value=value)


def _check_lengths(settings: LearningConfig, epochs: int) -> None:
    """What would not end within the run."""
    for field in ("warmup_epochs", "lr_step_epochs", "freeze_epochs"):
        told = getattr(settings, field)
        if told and told >= epochs:
            raise InputError(f"as long as the run or longer, whose `epochs` are {epochs}; give less, or more `epochs`",
                             field=field, value=told)
    if settings.freeze_blocks is not None and not settings.freeze_epochs:
        raise InputError("no epochs in which they stay; give `freeze_epochs`, or leave it out", field="freeze_blocks",
                         value=settings.freeze_blocks)


def _check_frozen(settings: LearningConfig, *, kept: bool) -> None:
    """What only a student that learns whole has."""
    for field in ("ema_decay", "layer_decay", "freeze_epochs"):
        told = getattr(settings, field)
        if told:
            raise InputError("of the frozen student the hash head alone learns; give `train_backbone` too, or leave it out",
                             field=field, value=told)
    if settings.mixup and kept:
        raise InputError("views are mixed as pixels, and of the frozen student's kept ones there are features alone; give "
                         "`train_backbone` or `fresh_views`, or leave it out", field="mixup", value=settings.mixup)


def _check_views(config: Config) -> None:
    """What would be kept for no one: a whole student draws its views anew, and its teacher's head is solved without any."""
    solved = isinstance(config.hashing, ClosedFormObjective)
    if solved and "views" in config.given and not config.data.fresh_views:
        raise InputError("nothing of kept views is kept here: a whole student encodes its own anew, and its teacher sees clean "
                         "images alone; leave it out, or give `fresh_views` or `teacher_view` same", field="views",
                         value=config.data.views)


def _check_neighbours(config: Config) -> None:
    """What there is nothing to average of."""
    settings = config.learning
    if settings.teacher_view != CLEAN:
        raise InputError("outputs of un-augmented images are averaged, and the teacher sees the student's views; give 0, or "
                         "`teacher_view` clean", field="teacher_neighbours", value=settings.teacher_neighbours)
    if not config.method.needs.views and "teacher_neighbours" in config.given:
        raise InputError(f"method {config.run.method} learns nothing from the teacher; leave it out, or name another `method`",
                         field="teacher_neighbours", value=settings.teacher_neighbours)


def _check_method(config: Config) -> None:
    """What the method cannot do with what it is shown."""
    settings, method, name = config.learning, config.method, config.run.method
    needs = method.needs
    if not settings.own_objective and not needs.views:
        raise InputError(f"method {name} learns nothing from the teacher, and so nothing would be learnt; name another "
                         "`method`, or give `own_objective`", field="own_objective", value=False)
    if settings.teacher_view == CLEAN and needs.derivations and needs.teacher:
        made = ", ".join(derivation.name for derivation in needs.derivations)
        raise InputError(f"method {name} compares the teacher's outputs of what is made of views ({made}); name another "
                         "`method`, or `teacher_view` same", field="teacher_view", value=CLEAN)


def _check_features(config: Config) -> None:
    """What would not learn from a method that looks at the student's features alone."""
    name = config.run.method
    for part, method in parts_of(name, config.method).items():
        if not config.student.train_backbone and not above_features(method):
            raise InputError(f"method {part} looks at the student's features, which without `train_backbone` stay as they are; "
                             "give that too, or let it look at logits", field="method", value=name)
    if not config.contrasts and not above_features(config.method):
        raise InputError(f"method {name} looks at the student's features alone, so that its hash head would not learn; give "
                         "`own_objective`, or let the method look at logits", field="own_objective", value=False)


def above_features(method: Method) -> bool:
    """Whether a method looks at what the student's hash head gives, or at nothing of it."""
    return not method.needs.views or bool({"codes", "logits"} & set(method.needs.student))


def _check_parts(config: Config) -> None:
    """What a sum is no sum with."""
    name, parts = config.run.method, parts_of(config.run.method, config.method)
    if len(parts) < 2:
        return
    for part, method in parts.items():
        if not method.needs.views:
            raise InputError(f"part {part} learns nothing from the teacher; leave it out", field="method", value=name)
        if getattr(method, "distillation_weight", None) == 0:
            raise InputError(f"a part of no weight is none; leave {part} out, or give more",
                             field=in_sum(part, "distillation_weight"), value=0.0)


def _check_objective(config: Config) -> None:
    """What only an objective of the student's own looks at."""
    if config.contrasts:
        return
    for field in sorted({"temperature", "kl_weight"} & config.given - config.temperatures):
        raise InputError(f"the student has no objective of its own, and method {config.run.method} does not look at it; leave it out",
                         field=field, value=getattr(config.objective, field))
    if getattr(config.method, "distillation_weight", None) == 0:
        raise InputError("the student has no objective of its own, and so nothing would be learnt; give more",
                         field="distillation_weight", value=0.0)


def _check_mixup(method: Method) -> None:
    """What a mixture of two images cannot give a method."""
    needs = method.needs
    if needs.negatives or needs.neighbours or needs.derivations or needs.clusters is not None:
        raise InputError("the method looks up what is known of each image, and a mixture is of two; name another `method`, or "
                         "leave it out", field="mixup")


def check_blocks(settings: LearningConfig, model: HashModel, name: str) -> None:
    """Raises InputError where the student `name` has not the blocks that the settings speak of."""
    _, blocks = depth_of(model)
    for field in ("layer_decay", "freeze_blocks"):
        if getattr(settings, field) is not None and not blocks:
            raise InputError(f"{name} has no list of blocks to tell its layers by; leave it out", field=field,
                             value=getattr(settings, field))
    if settings.freeze_blocks is not None and settings.freeze_blocks > blocks:
        raise InputError(f"{name} has {blocks} blocks; give that or less", field="freeze_blocks", value=settings.freeze_blocks)
