"""The hashing teacher: a hash head over a frozen backbone, learnt, solved or brought along (docs/method.md, "The teacher")."""

import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jax_brcd.encoder import TEACHER as ROLE
from jax_brcd.encoder import load, preprocessing_of
from jax_brcd.models import HashModel
from jax_brcd.models.heads import HashCoder
from jax_brcd.models.rows import EMBEDDINGS
from jax_brcd.runtime import devices
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.stages import TeacherConfig
from jax_brcd.stages.configuration import Config, unusual
from jax_brcd.stages.context import TEACHER, Context
from jax_brcd.stages.folder import HISTORY, StageFolder, read_history, write_history
from jax_brcd.stages.footing import Footing, footing_of
from jax_brcd.stages.models import Built, partition
from jax_brcd.stages.pretraining import needs_pretraining, pretrain
from jax_brcd.stages.sight import brought_encoder
from jax_brcd.teachers.base import Teacher
from jax_brcd.teachers.objectives import (
    ClosedFormObjective,
    HashingBatch,
    LearntObjective,
    Objective,
    Sees,
    brings_optimizer,
    create_objective,
    optimizer_of,
    seen_by,
)
from jax_brcd.training.loop import Stage, Task, backbone_scans
from jax_brcd.training.schedule import Schedule
from jax_brcd.views.outputs import Outputs
from jax_brcd.views.source import Source

CIBHASH = create_objective("cibhash")
ENCODER = "encoder"
# Settings that a teacher depends on by what becomes of them
TOLD = ("teacher", "teacher_weights", "teacher_size", "embeddings", "embeddings_dropout", "pretraining_epochs",
        "teacher_epochs", "teacher_batch_size")


def teacher_stage(
    teacher: HashModel, source: Source, schedule: Schedule, *, learning_rate: float, temperature: float, kl_weight: float,
    objective: LearntObjective = CIBHASH, views: int = 2,
):
    """The head's training under an objective that is learnt, by the objective's optimizer at `learning_rate`.

    The objective is shown one view of an image or two. The backbone is in evaluation mode, and a head with batch norm in training
    mode.

    Returns:
        The stage, its first parameters and its first carry.
    """
    graph, trainable, statistics, frozen = partition(teacher, train_backbone=False)

    def loss(parameters, carry, constants, batch, key):
        model = nnx.merge(graph, parameters, carry, constants["frozen"], copy=True)
        of_i, of_j = (constants["views"].outputs(model, batch.indices, numbers, batch.valid) if view < views else Outputs()
                      for view, numbers in enumerate((batch.views_i, batch.views_j)))
        if isinstance(model.head, HashCoder):  # which learns by the statistics of the batch, a view at a time
            of_i, of_j = (of_view if of_view.features is None else
                          of_view._replace(logits=model.head(of_view.features, train=True, valid=batch.valid))
                          for of_view in (of_i, of_j))
        seen = HashingBatch(valid=batch.valid, features_i=of_i.features, features_j=of_j.features,
                            logits_i=of_i.logits, logits_j=of_j.logits)
        value, metrics = objective.loss(seen, temperature=temperature, kl_weight=kl_weight)
        return value, (nnx.state(model, nnx.BatchStat), metrics)

    steps = schedule.epochs * -(-source.n_images // schedule.batch_size)
    optimizer = optimizer_of(objective, learning_rate, steps)
    task = Task("teacher", loss, optimizer, {"frozen": frozen, "views": source.views})
    return Stage(task, source, schedule), trainable, statistics


def check_objective(teacher: HashModel, objective: Objective, *, bits: int, images: int, name: str) -> None:
    """Raises InputError where an objective in closed form has no solution for this teacher; `name` is the objective's."""
    if not isinstance(objective, ClosedFormObjective):
        return
    if not isinstance(teacher.head, nnx.Linear):
        raise InputError(f"it solves a linear hash head, and {teacher.backbone.name}'s has more layers; name another `teacher`",
                         field="teacher_objective", value=name)
    objective.check(images=images, features=teacher.backbone.features, bits=bits)


def check_teacher(config: Config) -> None:
    """Raises InputError for settings of the teacher that were given and that nothing looks at."""
    usual, told, name = TeacherConfig(), config.teacher, config.teacher.teacher_objective
    learns, reads = not isinstance(config.hashing, ClosedFormObjective), "teacher_temperature" in config.temperatures
    drops = told.teacher == EMBEDDINGS and learns and seen_by(config.hashing) is not Sees.ONE_ROW
    for field, looked_at in (("teacher_lr", learns), ("teacher_batch_size", learns), ("teacher_temperature", reads),
                             ("teacher_kl_weight", reads), ("embeddings_dropout", drops)):
        value = getattr(told, field)
        if field in config.given and not looked_at and value != getattr(usual, field):
            raise InputError(f"`teacher_objective` {name} of `teacher` {told.teacher} does not look at it; leave it out",
                             field=field, value=value)


def solve_head(
    teacher: HashModel, objective: ClosedFormObjective, features: Float[np.ndarray, "images features"], *, seed: int
) -> list[dict[str, Any]]:
    """Puts the head that a closed-form objective gives into the teacher; returns a history record an iteration.

    Args:
        features: of the un-augmented training images.
    """
    began = time.perf_counter()
    kernel, bias, records = objective.solve(features, teacher.head.out_features, seed=seed)
    teacher.head.kernel[...], teacher.head.bias[...] = jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)
    seconds = (time.perf_counter() - began) / len(records)
    return [{"stage": "teacher", "epoch": number, **record, "seconds": seconds} for number, record in enumerate(records)]


def train_teacher(context: Context, built: Built) -> tuple[Teacher, list[dict[str, Any]]]:
    """The teacher, made here or taken from the folder of a run that made it; and its history, pretraining first.

    A head that came with the weights is trained for further epochs only where those are given by name, and stays as it is where
    the objective solves heads and no epochs are given.
    """
    config, model = context.config, built.model
    history: list[dict[str, Any]] = []
    if needs_pretraining(config):
        history = pretrain(context, model)
    epochs = config.teacher_epochs(head_came=built.head_came)
    solved, scheduled = isinstance(config.hashing, ClosedFormObjective), brings_optimizer(config.hashing)
    footing = footing_of(context, model)
    facts = {"model": config.teacher.teacher, "bits": config.objective.bits, "head": "came" if built.head_came else "new",
             **footing.facts}
    space = _space_kept(context, footing) if built.head_came and epochs == 0 else None
    if built.head_came and epochs == 0:
        folder = context.folder("teacher", {**facts, "space": space})
    else:
        facts |= {"settings": {**unusual(config.teacher, TOLD), **unusual(config.hashing)},
                  **footing.learning_facts(None if solved else config.hashing),
                  **({} if solved else {"batch_size": config.teacher_batch_size}),
                  **({"epochs": epochs} if scheduled else {})}
        folder = context.folder("teacher", facts, None if solved or scheduled else epochs)
    with folder.held(context.say):
        if folder.finished:
            context.say(f"Teacher: taken from {folder.path}.")
        else:
            trained = [] if built.head_came and epochs == 0 else _train_head(context, footing, folder, model, epochs)
            if devices.is_first():
                footing.encoder(model, space).save(folder.path / ENCODER)
                write_history(folder.path / HISTORY, trained)
            folder.finish(remarks=_remarks(built, epochs, solved=solved), weights=config.origins.get(ROLE))
    with folder.reading():
        encoder, remarks = load(folder.path / ENCODER), tuple(folder.record["remarks"])
        history = [*history, *read_history(folder.path / HISTORY)]
    return footing.teacher(encoder, remarks), history


def _space_kept(context: Context, footing: Footing) -> str | None:
    """The code space of a teacher that is brought along, where it gives the same codes here."""
    brought = brought_encoder(context.config, "teacher_weights")
    if brought is None or brought["dtype"] != footing.dtype:
        return None
    return brought["space"] if context.table is not None or preprocessing_of(brought) == context.preprocessing else None


def _remarks(built: Built, epochs: int, *, solved: bool) -> list[str]:
    if not built.head_came:
        return []
    further = f"it was trained here for {epochs} further epochs" if epochs else "it was not trained further here"
    done = "its head was solved here anew" if solved and epochs else further
    return [f"The teacher came trained, hash head included; {done}."]


def _train_head(
    context: Context, footing: Footing, folder: StageFolder, model: HashModel, epochs: int
) -> list[dict[str, Any]]:
    """Trains or solves the head in place; returns a record an epoch."""
    config = context.config
    if isinstance(config.hashing, ClosedFormObjective):  # solved in moments, so it has no checkpoint
        return solve_head(model, config.hashing, footing.training_features(), seed=context.seed(TEACHER))
    encodes = context.table is None and context.plan.kept is None
    schedule = context.schedule(TEACHER, epochs, batch_size=config.teacher_batch_size, scan=backbone_scans() or not encodes)
    stage, parameters, carry = teacher_stage(
        model, footing.source(config.hashing), schedule,
        objective=config.hashing, views=footing.views(config.hashing), learning_rate=config.teacher.teacher_lr,
        temperature=config.teacher.teacher_temperature, kl_weight=config.teacher.teacher_kl_weight)
    fitted = context.fit(folder, stage, parameters, carry)
    nnx.update(model, fitted.state.parameters)
    if isinstance(model.head, HashCoder):
        nnx.update(model, fitted.state.carry)
    return fitted.history
