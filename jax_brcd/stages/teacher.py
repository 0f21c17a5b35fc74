"""The hashing teacher: a hash head over a frozen backbone, learnt or solved under a hashing objective (method.md, "The teacher")."""

import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float

from jax_brcd.models import HashModel
from jax_brcd.runtime.errors import InputError
from jax_brcd.stages.models import partition
from jax_brcd.teachers.objectives import ClosedFormObjective, HashingBatch, LearntObjective, Objective, create_objective
from jax_brcd.training.loop import Stage
from jax_brcd.views.sources import ViewSource

CIBHASH = create_objective("cibhash")


def teacher_stage(
    teacher: HashModel, views: ViewSource, *, learning_rate: float, temperature: float, kl_weight: float,
    objective: LearntObjective = CIBHASH, **settings: Any,
):
    """The head's training under an objective that is learnt. `settings` are further fields of the Stage.

    Returns:
        The stage, its first parameters and its first carry.
    """
    graph, trainable, statistics, frozen = partition(teacher, train_backbone=False)

    def loss(parameters, carry, constants, batch, key):
        model = nnx.merge(graph, parameters, carry, constants["frozen"], copy=True)
        view_i, view_j = (constants["views"].outputs(model, batch.indices, numbers, batch.valid)
                          for numbers in (batch.views_i, batch.views_j))
        seen = HashingBatch(valid=batch.valid, features_i=view_i.features, features_j=view_j.features,
                            logits_i=view_i.logits, logits_j=view_j.logits)
        value, metrics = objective.loss(seen, temperature=temperature, kl_weight=kl_weight)
        return value, (nnx.state(model, nnx.BatchStat), metrics)

    constants = {"frozen": frozen, "views": views}
    stage = Stage(name="teacher", loss=loss, optimizer=optax.adam(learning_rate), constants=constants, **settings)
    return stage, trainable, statistics


def check_objective(teacher: HashModel, objective: Objective, *, bits: int, images: int, name: str) -> None:
    """Raises InputError where an objective in closed form has no solution for this teacher; `name` is the objective's."""
    if not isinstance(objective, ClosedFormObjective):
        return
    if not isinstance(teacher.head, nnx.Linear):
        raise InputError(f"--teacher-objective {name}: solves a linear hash head, and {teacher.backbone.name}'s has more "
                         "layers; name another --teacher")
    objective.check(images=images, features=teacher.backbone.features, bits=bits)


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
