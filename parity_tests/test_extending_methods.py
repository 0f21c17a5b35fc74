"""A method and a teacher objective of one's own: a dataclass and a line that registers it, outside the package."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jobs import job

from jax_brcd.losses import mse_loss
from jax_brcd.losses.contrastive import masked_mean
from jax_brcd.methods import METHODS, BaseMethod, Needs, TeacherKnowledge, create_method
from jax_brcd.methods.sections import Curve
from jax_brcd.models import create_hash_model
from jax_brcd.settings.options import option
from jax_brcd.stages.configuration import create_config, parse_command_line
from jax_brcd.stages.student import student_stage
from jax_brcd.stages.teacher import teacher_stage
from jax_brcd.teachers.objectives import OBJECTIVES, create_objective
from jax_brcd.training.loop import start, train_epoch
from jax_brcd.views.batches import epoch_batches
from jax_brcd.views.sources import KeptFeatures, LiveTeacher

IMAGES, BITS, BATCH, VIEWS = 12, 8, 4, 2


@dataclasses.dataclass(frozen=True)
class WarmLogits(BaseMethod):
    """The teacher's logits as targets, under a weight that grows over the first part of the training."""

    warm_share: float = option(0.5, "part of the training over which the weight grows to 1", above=0, high=1)

    needs = Needs(views=("i",), student=("logits",), teacher=("logits",))
    meets_teacher = True
    counts_steps = True

    def init(self, knowledge, *, seed):
        """Nothing is learnt; the memory is the weight of the last step."""
        return {}, {"weight": np.float32(0)}

    def loss(self, parameters, memory, batch):
        """The weighted error of view i."""
        weight = jnp.minimum(1.0, (batch.step + 1) / (self.warm_share * batch.steps))
        error = mse_loss(batch.student["i"].logits, batch.teacher["i"].logits, valid=batch.valid)
        return weight * error, {"weight": weight}, {"warm_weight": weight}

    def report(self, memory):
        """How the weight grew."""
        return [Curve("warm_weight", "Weight of the logits", np.array([0.0, self.warm_share, 1.0]), np.array([0.0, 1.0, 1.0]),
                      "part of the training", "weight", marked=self.warm_share, mark="warm")]


@dataclasses.dataclass(frozen=True)
class BalancedBits:
    """A teacher objective: logits near to -1 and +1 whose mean over a batch is 0."""

    balance: float = option(1.0, "weight of the balance of BalancedBits", low=0)

    def loss(self, batch, *, temperature, kl_weight):
        """See LearntObjective."""
        means = jnp.mean(jnp.where(batch.valid[:, None], batch.logits_i, 0.0), axis=0)
        size = masked_mean(jnp.mean((jnp.abs(batch.logits_i) - 1.0) ** 2, axis=-1), batch.valid)
        balance = jnp.mean(means**2)
        return size + self.balance * balance, {"size": size, "imbalance": balance}


@pytest.fixture
def registered():
    """Registers both as a user's module does when it is imported; taken back, so that other tests find what they expect."""
    METHODS.register("warm_logits")(WarmLogits)
    OBJECTIVES.register("balanced")(BalancedBits)
    yield
    del METHODS._entries["warm_logits"], OBJECTIVES._entries["balanced"]


def features():
    return jnp.asarray(np.random.default_rng(0).normal(size=(VIEWS, IMAGES, 64)), jnp.float32)


SETTINGS = {"learning_rate": 1e-2, "temperature": 0.3, "kl_weight": 0.001, "n_images": IMAGES, "batch_size": BATCH, "epochs": 2,
            "seed": 0, "kept_views": VIEWS}


def train(stage, parameters, carry):
    """The metrics of each epoch, and the last state."""
    state, found = start(stage, parameters, carry), []
    for epoch in range(stage.schedule.epochs):
        batches = epoch_batches(IMAGES, BATCH, epoch=epoch, seed=0, views=VIEWS)
        state, metrics = train_epoch(stage.task.loss, stage.task.optimizer, state, stage.task.constants, batches,
                                     jax.random.key(epoch))
        found.append(jax.tree.map(np.asarray, metrics))
    return state, found


def test_a_method_of_ones_own_trains_by_its_name(registered):
    """Six steps, of which the weight grows over the first three."""
    model = create_hash_model("resnet8", BITS, rngs=nnx.Rngs(0))
    teacher = LiveTeacher.of(create_hash_model("resnet8", BITS, rngs=nnx.Rngs(1)), KeptFeatures(features()))
    codes = np.random.default_rng(1).choice([-1.0, 1.0], (IMAGES, BITS)).astype(np.float32)
    stage = student_stage(model, teacher, create_method("warm_logits"), TeacherKnowledge(codes),
                          train_backbone=False, method_seed=0, **job(KeptFeatures(features()), **SETTINGS))
    state, (first, second) = train(*stage)
    np.testing.assert_allclose([*first["warm_weight"], *second["warm_weight"]], [1 / 3, 2 / 3, 1, 1, 1, 1], rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)) and second["distillation"].min() > 0
    assert float(state.carry["memory"]["weight"]) == 1.0


def test_its_settings_are_options_and_it_stands_in_sums(registered):
    config = parse_command_line("test", "", ["--method", "warm_logits", "--warm-share", "0.25"])
    assert config.method == WarmLogits(0.25) and config.flat()["warm_share"] == 0.25
    assert create_config(method="kl+warm_logits", warm_logits_warm_share=1.0).method.parts["warm_logits"] == WarmLogits(1.0)


def test_an_objective_of_ones_own_trains_by_its_name(registered):
    config = create_config(teacher_objective="balanced", balance=2.0)
    assert config.hashing == create_objective("balanced", balance=2.0)
    stage = teacher_stage(create_hash_model("resnet8", BITS, rngs=nnx.Rngs(0)), objective=config.hashing,
                          **job(KeptFeatures(features()), **SETTINGS))
    _, (first, second) = train(*stage)
    assert second["loss"].mean() < first["loss"].mean() and set(first) == {"loss", "size", "imbalance"}
