"""The student: its own CIBHash objective plus what a distillation method adds (docs/method.md, "The student objective")."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int, Key

from jax_brcd.losses import cibhash_terms
from jax_brcd.losses.codes import hash_codes
from jax_brcd.methods import DistillationBatch, Method, TeacherKnowledge
from jax_brcd.methods.base import Needs, view_name
from jax_brcd.models import HashModel
from jax_brcd.models.layers import split_key
from jax_brcd.settings.stages import LearningConfig
from jax_brcd.stages.learning import create_optimizer
from jax_brcd.stages.models import partition
from jax_brcd.training.loop import Stage, Task, TrainState
from jax_brcd.training.schedule import Schedule
from jax_brcd.training.updates import average_in, moved
from jax_brcd.views.batches import Batches
from jax_brcd.views.derivations import ITSELF
from jax_brcd.views.mixing import Mix, draw_mix
from jax_brcd.views.outputs import VIEW_I, VIEW_J, Outputs
from jax_brcd.views.source import Source
from jax_brcd.views.sources import TeacherSource, ViewSource

OWN_METRICS = ("loss", "contrastive", "kl", "distillation")  # of the stage, beside which a method's own stand


def draw_negatives(key: Key[Array, ""], indices: Int[Array, "batch"], n_images: int, count: int) -> Int[Array, "batch count"]:
    """`count` images of the `n_images` for each, with replacement, never the image itself."""
    steps = jax.random.randint(key, (len(indices), count), 1, max(n_images, 2), jnp.int32)
    return (indices[:, None] + steps) % n_images


def student_outputs(
    source: ViewSource, model: HashModel, batch: Batches, needs: Needs, views: tuple[str, ...], key: Key[Array, ""] | None,
    mix: Mix | None = None,
) -> dict[str, Outputs]:
    """The student's outputs of the random `views` and of what `needs` asks for of view i; moves batch-norm statistics.

    `key` is the randomness of dropout; each view has its part of it, whichever others are asked for. `mix` is of the views.
    """
    mixed = {} if mix is None else {"mix": mix}  # which sources from outside need not know
    keys = split_key(key, 2 + len(needs.derivations))
    random = {VIEW_I: (batch.views_i, keys[0]), VIEW_J: (batch.views_j, keys[1])}
    found = {view: source.outputs(model, batch.indices, random[view][0], batch.valid, key=random[view][1], **mixed)
             for view in views}
    return found | {
        derivation.name: source.outputs(model, batch.indices, batch.views_i, batch.valid, derivation, key)
        for derivation, key in zip(needs.derivations, keys[2:], strict=True)}


def teacher_outputs(source: TeacherSource, batch: Batches, needs: Needs, mix: Mix | None = None) -> dict[str, Outputs]:
    """The teacher's outputs of the views of `needs`, mixed as the views are, as far as they are asked for."""
    numbers = {VIEW_J: batch.views_j}
    found = {view_name(view): source.outputs(
        batch.indices, numbers.get(view_name(view), batch.views_i), batch.valid,
        ITSELF if isinstance(view, str) else view) for view in needs.views}
    return {view: (outputs if mix is None else mix.outputs(outputs)).only(needs.teacher) for view, outputs in found.items()}


def hashed_anew(outputs: Outputs) -> Outputs:
    """The same outputs, with codes that are made here.

    Made after the terms of the student's own objective they have their part of the gradient summed first, as it always was:
    float32 sums in another order are other runs.
    """
    return outputs._replace(codes=hash_codes(outputs.logits))


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Raises ValueError where a method's metric bears the name of one of the stage's."""
    taken = sorted(set(metrics) & {*OWN_METRICS, "stage", "epoch", "seconds"})
    if taken:
        raise ValueError(f"a method's metric is called '{taken[0]}', as one of the stage's own; give it another name")


def student_stage(
    student: HashModel,
    teacher: TeacherSource,
    method: Method,
    knowledge: TeacherKnowledge,
    *,
    source: Source,
    schedule: Schedule,
    train_backbone: bool,
    learning_rate: float,
    temperature: float,
    kl_weight: float,
    method_seed: int,
    learning: LearningConfig = LearningConfig(),
    validate: Callable[[TrainState], Mapping[str, float]] | None = None,
    searches: tuple[str, ...] = (),
):
    """The student's training on `source`; `validate` and `searches` are the Task's.

    Returns:
        The stage, its first parameters {"model", "method"} and its first carry {"statistics", "memory", "step"}, with
        "average", that of the statistics, where the weights are averaged.
    """
    graph, trainable, statistics, frozen = partition(student, train_backbone=train_backbone)
    needs, n_images = method.needs, source.n_images
    steps = -(-n_images // schedule.batch_size)  # and not the stage's, which the loss would keep alive with all its images
    alone = method.replaces_objective or not learning.own_objective
    own = () if alone else (VIEW_I, VIEW_J)  # the views that the student's own objective contrasts
    views = tuple(view for view in (VIEW_I, VIEW_J) if view in own or view in needs.shown)
    method_parameters, memory = method.init(
        knowledge._replace(student_features=student.backbone.features, teacher_features=teacher.width), seed=method_seed)

    def loss(parameters, carry, constants, batch, key):
        model = nnx.merge(graph, parameters["model"], carry["statistics"], constants["frozen"], copy=True)
        mix = draw_mix(key, batch.valid, learning.mixup) if learning.mixup else None
        negatives_key, key, drop_key = jax.random.split(key, 3)
        # of a frozen backbone dropout would only make the features noisy, so it is for those that learn
        of_student = student_outputs(constants["student_views"], model, batch, needs, views,
                                     drop_key if train_backbone else None, mix)
        total, metrics = jnp.float32(0), {}
        if not alone:
            contrastive, kl = cibhash_terms(*(of_student[view].logits for view in own), temperature=temperature,
                                            valid=batch.valid)
            total, metrics = contrastive + kl_weight * kl, {"contrastive": contrastive, "kl": kl}
        seen = DistillationBatch(
            indices=batch.indices, valid=batch.valid, key=key, temperature=temperature,
            negatives=draw_negatives(negatives_key, batch.indices, n_images, needs.negatives) if needs.negatives else None,
            student={view_name(view): hashed_anew(of_student[view_name(view)]).only(needs.student) for view in needs.shown},
            teacher=teacher_outputs(constants["teacher"], batch, needs, mix),
            step=carry["step"], steps=schedule.epochs * steps)
        distillation, memory, own_metrics = method.loss(parameters["method"], carry["memory"], seen)
        check_metrics(own_metrics)
        total, metrics = total + distillation, {**metrics, "distillation": distillation, **own_metrics}
        after = {"statistics": nnx.state(model, nnx.BatchStat), "memory": memory, "step": carry["step"] + 1}
        if "average" in carry:
            after["average"] = moved(carry["average"], after["statistics"], carry["step"], learning.ema_decay)
        return total, (after, metrics)

    constants = {"frozen": frozen, "teacher": teacher, "student_views": source.views}
    optimizer = create_optimizer(learning, student, rate=learning_rate, epochs=schedule.epochs, steps=steps)
    stage = Stage(Task("student", loss, optimizer, constants, validate, searches), source, schedule)
    first = {"statistics": statistics, "memory": memory, "step": jnp.int32(0)}
    if learning.ema_decay is not None:
        first["average"] = statistics
    return stage, {"model": trainable, "method": method_parameters}, first


def put(model: HashModel, state: TrainState) -> HashModel:
    """The model with a training state's parameters and statistics in it: the averages, where the state has them."""
    average = average_in(state.optimizer)
    parameters, statistics = ((state.parameters, state.carry["statistics"]) if average is None
                              else (average, state.carry["average"]))
    nnx.update(model, parameters["model"], statistics)
    return model
