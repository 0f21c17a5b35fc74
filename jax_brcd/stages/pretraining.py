"""Supervised pretraining of a teacher's backbone on labelled held-out images, where no pretrained weights are given."""

from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx

from jax_brcd.losses.contrastive import masked_mean
from jax_brcd.models import HashModel, load_state, model_state
from jax_brcd.models.weights import read_weights, write_weights
from jax_brcd.runtime import devices
from jax_brcd.stages.configuration import Config
from jax_brcd.stages.context import PRETRAINING, Context
from jax_brcd.stages.folder import HISTORY, read_history, write_history
from jax_brcd.stages.models import partition
from jax_brcd.training.loop import Stage, Task, backbone_scans
from jax_brcd.training.schedule import Schedule
from jax_brcd.views.source import Source

LEARNING_RATE, WEIGHT_DECAY, WARMUP = 1e-3, 0.05, 0.1
HELD_OUT = "held-out"  # in place of a file of weights
BACKBONE = "backbone.safetensors"
NOTE = ("No pretrained weights ship with the package: the teacher's backbone is pretrained on {images} labelled images that "
        "take no further part (the role ImageNet plays for vit_b_16).")


def needs_pretraining(config: Config) -> bool:
    """Whether the teacher's backbone is pretrained here."""
    return config.teacher.teacher_weights == HELD_OUT


def pretraining_stage(classifier: HashModel, source: Source, labels, schedule: Schedule):
    """Cross-entropy of one view an image under AdamW with a warm-up and a cosine, the whole model learning.

    Args:
        classifier: a hash model whose head has a logit a class. labels: one-hot (images, classes).

    Returns:
        The stage, its first parameters and its first carry.
    """
    graph, trainable, statistics, frozen = partition(classifier, train_backbone=True)

    def loss(parameters, carry, constants, batch, key):
        model = nnx.merge(graph, parameters, carry, constants["frozen"], copy=True)
        logits = constants["views"].outputs(model, batch.indices, batch.views_i, batch.valid, key=key).logits
        errors = optax.softmax_cross_entropy(logits, constants["labels"][batch.indices])
        return masked_mean(errors, batch.valid), (nnx.state(model, nnx.BatchStat), {})

    steps = max(1, schedule.epochs * -(-len(labels) // schedule.batch_size))
    rate = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, int(WARMUP * steps), steps)
    constants = {"frozen": frozen, "views": source.views, "labels": jnp.asarray(labels, jnp.float32)}
    task = Task("pretraining", loss, optax.adamw(rate, weight_decay=WEIGHT_DECAY), constants)
    return Stage(task, source, schedule), trainable, statistics


def pretrain(context: Context, model: HashModel) -> list[dict[str, Any]]:
    """Gives a backbone what ImageNet gives vit_b_16, or takes it from the folder of a run that did; returns the history.

    The schedule ends with the last epoch, so another number of epochs is another training.
    """
    config, held_out = context.config, context.dataset.pretraining
    folder = context.folder("pretraining", {
        "backbone": config.teacher.teacher, "batch_size": config.run.batch_size, "epochs": config.teacher.pretraining_epochs,
        "views": context.plan_of(held_out.images).facts(),
        **context.data_facts("images of pretraining", "labels of pretraining")})
    with folder.held(context.say):
        if folder.finished:
            context.say(f"Pretraining: taken from {folder.path}.")
        else:
            classifier = HashModel(model.backbone, held_out.labels.shape[1], rngs=nnx.Rngs(context.seed(PRETRAINING)))
            plan = context.plan_of(held_out.images)
            stage, parameters, carry = pretraining_stage(
                classifier, plan.pixels(train=True), held_out.labels,
                context.schedule(PRETRAINING, config.teacher.pretraining_epochs, scan=backbone_scans()))
            fitted = context.fit(folder, stage, parameters, carry)
            nnx.update(classifier, fitted.state.parameters, fitted.state.carry)
            if devices.is_first():
                write_weights(folder.path / BACKBONE, model_state(model.backbone))
                write_history(folder.path / HISTORY, fitted.history)
            folder.finish()
    with folder.reading():
        load_state(model.backbone, read_weights(folder.path / BACKBONE), layout=model.backbone.layout)
        return read_history(folder.path / HISTORY)
