"""The hashing teacher: a hash head over a frozen backbone under CIBHash (method.md, "The teacher")."""

from typing import Any

import optax
from flax import nnx

from jax_brcd.losses import cibhash_terms
from jax_brcd.models import HashModel
from jax_brcd.stages.models import partition
from jax_brcd.training import Stage
from jax_brcd.views import ViewSource


def teacher_stage(
    teacher: HashModel, views: ViewSource, *, learning_rate: float, temperature: float, kl_weight: float, **settings: Any
):
    """The head's training. `settings` are further fields of the Stage.

    Returns:
        The stage, its first parameters and its first carry.
    """
    graph, trainable, statistics, frozen = partition(teacher, train_backbone=False)

    def loss(parameters, carry, constants, batch, key):
        model = nnx.merge(graph, parameters, carry, constants["frozen"], copy=True)
        logits_i, logits_j = (constants["views"].logits(model, batch.indices, numbers, batch.valid)
                              for numbers in (batch.views_i, batch.views_j))
        contrastive, kl = cibhash_terms(logits_i, logits_j, temperature=temperature, valid=batch.valid)
        metrics = {"contrastive": contrastive, "kl": kl}
        return contrastive + kl_weight * kl, (nnx.state(model, nnx.BatchStat), metrics)

    constants = {"frozen": frozen, "views": views}
    stage = Stage(name="teacher", loss=loss, optimizer=optax.adam(learning_rate), constants=constants, **settings)
    return stage, trainable, statistics
