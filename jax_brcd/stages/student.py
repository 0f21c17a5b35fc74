"""The student: its own CIBHash objective plus what a distillation method adds (docs/method.md, "The student objective")."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int, Key

from jax_brcd.losses import cibhash_terms
from jax_brcd.losses.codes import hash_codes
from jax_brcd.methods import DistillationBatch, Method, TeacherKnowledge
from jax_brcd.methods.base import Needs, view_name
from jax_brcd.models import HashModel
from jax_brcd.models.layers import split_key
from jax_brcd.stages.models import partition
from jax_brcd.training.loop import Stage, Task, TrainState
from jax_brcd.training.schedule import Schedule
from jax_brcd.views.batches import Batches
from jax_brcd.views.derivations import ITSELF
from jax_brcd.views.outputs import VIEW_I, VIEW_J, Outputs
from jax_brcd.views.source import Source
from jax_brcd.views.sources import TeacherSource, ViewSource

OWN_METRICS = ("loss", "contrastive", "kl", "distillation")  # of the stage, beside which a method's own stand


def draw_negatives(key: Key[Array, ""], indices: Int[Array, "batch"], n_images: int, count: int) -> Int[Array, "batch count"]:
    """`count` images of the `n_images` for each, with replacement, never the image itself."""
    steps = jax.random.randint(key, (len(indices), count), 1, max(n_images, 2), jnp.int32)
    return (indices[:, None] + steps) % n_images


def student_outputs(
    source: ViewSource, model: HashModel, batch: Batches, needs: Needs, views: tuple[str, ...], key: Key[Array, ""] | None
) -> dict[str, Outputs]:
    """The student's outputs of the random `views` and of what `needs` asks for of view i; moves batch-norm statistics.

    `key` is the randomness of dropout; each view has its part of it, whichever others are asked for.
    """
    keys = split_key(key, 2 + len(needs.derivations))
    random = {VIEW_I: (batch.views_i, keys[0]), VIEW_J: (batch.views_j, keys[1])}
    found = {view: source.outputs(model, batch.indices, random[view][0], batch.valid, key=random[view][1]) for view in views}
    return found | {
        derivation.name: source.outputs(model, batch.indices, batch.views_i, batch.valid, derivation, key)
        for derivation, key in zip(needs.derivations, keys[2:], strict=True)}


def teacher_outputs(source: TeacherSource, batch: Batches, needs: Needs) -> dict[str, Outputs]:
    """The teacher's outputs of the views of `needs`, as far as they are asked for."""
    numbers = {VIEW_J: batch.views_j}
    return {view_name(view): source.outputs(
        batch.indices, numbers.get(view_name(view), batch.views_i), batch.valid,
        ITSELF if isinstance(view, str) else view).only(needs.teacher) for view in needs.views}


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
    validate: Callable[[TrainState], Mapping[str, float]] | None = None,
    searches: tuple[str, ...] = (),
):
    """The student's training on `source`; `validate` and `searches` are the Task's.

    Returns:
        The stage, its first parameters {"model", "method"} and its first carry {"statistics", "memory", "step"}.
    """
    graph, trainable, statistics, frozen = partition(student, train_backbone=train_backbone)
    needs, n_images = method.needs, source.n_images
    own = () if method.replaces_objective else (VIEW_I, VIEW_J)  # the views that the student's own objective contrasts
    views = tuple(view for view in (VIEW_I, VIEW_J) if view in own or view in needs.views)
    method_parameters, memory = method.init(
        knowledge._replace(student_features=student.backbone.features, teacher_features=teacher.width), seed=method_seed)

    def loss(parameters, carry, constants, batch, key):
        model = nnx.merge(graph, parameters["model"], carry["statistics"], constants["frozen"], copy=True)
        negatives_key, key, drop_key = jax.random.split(key, 3)
        # of a frozen backbone dropout would only make the features noisy, so it is for those that learn
        of_student = student_outputs(constants["student_views"], model, batch, needs, views,
                                     drop_key if train_backbone else None)
        total, metrics = jnp.float32(0), {}
        if not method.replaces_objective:
            contrastive, kl = cibhash_terms(*(of_student[view].logits for view in own), temperature=temperature,
                                            valid=batch.valid)
            total, metrics = contrastive + kl_weight * kl, {"contrastive": contrastive, "kl": kl}
        seen = DistillationBatch(
            indices=batch.indices, valid=batch.valid, key=key, temperature=temperature,
            negatives=draw_negatives(negatives_key, batch.indices, n_images, needs.negatives) if needs.negatives else None,
            student={view_name(view): hashed_anew(of_student[view_name(view)]).only(needs.student) for view in needs.views},
            teacher=teacher_outputs(constants["teacher"], batch, needs),
            step=carry["step"], steps=schedule.epochs * stage.steps)
        distillation, memory, own_metrics = method.loss(parameters["method"], carry["memory"], seen)
        check_metrics(own_metrics)
        total, metrics = total + distillation, {**metrics, "distillation": distillation, **own_metrics}
        carry = {"statistics": nnx.state(model, nnx.BatchStat), "memory": memory, "step": carry["step"] + 1}
        return total, (carry, metrics)

    constants = {"frozen": frozen, "teacher": teacher, "student_views": source.views}
    stage = Stage(Task("student", loss, optax.adam(learning_rate), constants, validate, searches), source, schedule)
    first = {"statistics": statistics, "memory": memory, "step": jnp.int32(0)}
    return stage, {"model": trainable, "method": method_parameters}, first
