"""Supervised pretraining of a teacher's backbone on labelled held-out images, where no pretrained weights are given."""

from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx

from jax_brcd.losses.contrastive import masked_mean
from jax_brcd.models import HashModel
from jax_brcd.stages.models import partition
from jax_brcd.training.loop import Stage
from jax_brcd.views.sources import PixelViews

LEARNING_RATE, WEIGHT_DECAY, WARMUP = 1e-3, 0.05, 0.1


def pretraining_stage(classifier: HashModel, views: PixelViews, labels, *, name: str, **settings: Any):
    """Cross-entropy of one view an image under AdamW with a warm-up and a cosine, the whole model learning.

    Args:
        classifier: a hash model whose head has a logit a class. labels: one-hot (images, classes).
        settings: further fields of the Stage.

    Returns:
        The stage, its first parameters and its first carry.
    """
    graph, trainable, statistics, frozen = partition(classifier, train_backbone=True)

    def loss(parameters, carry, constants, batch, key):
        model = nnx.merge(graph, parameters, carry, constants["frozen"], copy=True)
        logits = constants["views"].outputs(model, batch.indices, batch.views_i, batch.valid, key=key).logits
        errors = optax.softmax_cross_entropy(logits, constants["labels"][batch.indices])
        return masked_mean(errors, batch.valid), (nnx.state(model, nnx.BatchStat), {})

    steps = max(1, settings["epochs"] * -(-len(labels) // settings["batch_size"]))
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, int(WARMUP * steps), steps)
    constants = {"frozen": frozen, "views": views, "labels": jnp.asarray(labels, jnp.float32)}
    stage = Stage(name=name, loss=loss, optimizer=optax.adamw(schedule, weight_decay=WEIGHT_DECAY), constants=constants,
                  n_images=len(labels), **settings)
    return stage, trainable, statistics
