"""The student: its own CIBHash objective plus what a distillation method adds (method.md, "The student objective")."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int, Key

from jax_brcd.losses import cibhash_terms
from jax_brcd.losses.codes import hash_codes
from jax_brcd.methods import DistillationBatch, Method, TeacherView
from jax_brcd.models import HashModel
from jax_brcd.models.layers import split_key
from jax_brcd.stages.models import partition
from jax_brcd.training.loop import Stage
from jax_brcd.views.sources import ViewSource


def draw_negatives(key: Key[Array, ""], indices: Int[Array, "batch"], n_images: int, count: int) -> Int[Array, "batch count"]:
    """`count` images of the `n_images` for each, with replacement, never the image itself."""
    steps = jax.random.randint(key, (len(indices), count), 1, max(n_images, 2))
    return (indices[:, None] + steps) % n_images


def student_stage(
    student: HashModel,
    teacher: HashModel,
    method: Method,
    teacher_view: TeacherView,
    *,
    student_views: ViewSource,
    teacher_views: ViewSource,
    train_backbone: bool,
    learning_rate: float,
    temperature: float,
    kl_weight: float,
    method_seed: int,
    **settings: Any,
):
    """The student's training. `settings` are further fields of the Stage.

    Returns:
        The stage, its first parameters {"model", "method"} and its first carry {"statistics", "memory"}.
    """
    graph, trainable, statistics, frozen = partition(student, train_backbone=train_backbone)
    teacher_graph, teacher_state = nnx.split(teacher)
    needs, n_images = method.needs, settings["n_images"]
    method_parameters, memory = method.init(teacher_view, seed=method_seed)

    def loss(parameters, carry, constants, batch, key):
        model = nnx.merge(graph, parameters["model"], carry["statistics"], constants["frozen"], copy=True)
        negatives_key, key, drop_key = jax.random.split(key, 3)
        # of a frozen backbone dropout would only make the features noisy, so it is for those that learn
        drop_keys = split_key(drop_key if train_backbone else None, 2 + len(needs.views))
        frozen_teacher = nnx.merge(teacher_graph, constants["teacher"])
        student_i, student_j = (
            constants["student_views"].logits(model, batch.indices, numbers, batch.valid, key=drop_key)
            for numbers, drop_key in zip((batch.views_i, batch.views_j), drop_keys[:2], strict=True))
        teacher_i, teacher_j = (constants["teacher_views"].logits(frozen_teacher, batch.indices, numbers, batch.valid)
                                for numbers in (batch.views_i, batch.views_j))
        contrastive, kl = cibhash_terms(student_i, student_j, temperature=temperature, valid=batch.valid)
        student_derived = [
            hash_codes(constants["student_views"].logits(model, batch.indices, batch.views_i, batch.valid, derivation, drop_key))
            for derivation, drop_key in zip(needs.views, drop_keys[2:], strict=True)]
        teacher_derived = [
            hash_codes(constants["teacher_views"].logits(frozen_teacher, batch.indices, batch.views_i, batch.valid, derivation))
            for derivation in needs.views]
        seen = DistillationBatch(
            indices=batch.indices, valid=batch.valid, key=key,
            negatives=draw_negatives(negatives_key, batch.indices, n_images, needs.negatives) if needs.negatives else None,
            student_derived_codes=jnp.stack(student_derived) if student_derived else None,
            teacher_derived_codes=jnp.stack(teacher_derived) if teacher_derived else None,
            student_logits_i=student_i, student_logits_j=student_j,
            student_codes_i=hash_codes(student_i), student_codes_j=hash_codes(student_j),
            teacher_codes_i=hash_codes(teacher_i), teacher_codes_j=hash_codes(teacher_j),
        )
        distillation, memory = method.loss(parameters["method"], carry["memory"], seen, temperature=temperature)
        metrics = {"contrastive": contrastive, "kl": kl, "distillation": distillation}
        carry = {"statistics": nnx.state(model, nnx.BatchStat), "memory": memory}
        return contrastive + kl_weight * kl + distillation, (carry, metrics)

    constants = {"frozen": frozen, "teacher": teacher_state, "student_views": student_views,
                 "teacher_views": teacher_views}
    stage = Stage(name="student", loss=loss, optimizer=optax.adam(learning_rate), constants=constants, **settings)
    return stage, {"model": trainable, "method": method_parameters}, {"statistics": statistics, "memory": memory}
