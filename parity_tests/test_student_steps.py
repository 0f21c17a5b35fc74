"""What a step of a student asks of its sources: who drops, what is mixed, and what of the teacher is needed for it."""

import gc
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jobs import job
from toy_runs import PIXELS_SIDE, Pixels

from jax_brcd.methods import TeacherKnowledge, create_method
from jax_brcd.models import HashModel
from jax_brcd.models.adapt import adapted
from jax_brcd.settings.recipes import RECIPES
from jax_brcd.settings.stages import LearningConfig
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.distillation import needs_of
from jax_brcd.stages.student import student_stage
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.views.batches import Batches
from jax_brcd.views.mixing import draw_mix
from jax_brcd.views.outputs import outputs_of
from jax_brcd.views.sources import PixelViews, StillTeacher

IMAGES, BITS = 6, 8
VALID = np.array([True, True, True, False])
BATCH = Batches(np.array([4, 2, 3, 0], np.int32), VALID, np.zeros(4, np.int32), np.ones(4, np.int32))
LOGITS = np.random.default_rng(0).normal(size=(IMAGES, BITS)).astype(np.float32)


class Spy:
    """A source of views that keeps what it is asked for: the keys, and what it is told of mixing."""

    def __init__(self):
        self.pixels = jnp.asarray(np.random.default_rng(1).normal(size=(IMAGES, PIXELS_SIDE, PIXELS_SIDE, 3)), jnp.float32)
        self.keys, self.told = [], []

    def outputs(self, model, indices, views, valid, derivation=None, key=None, **told):
        self.keys.append(key)
        self.told.append(told)
        return outputs_of(model.head, model.backbone(self.pixels[indices], train=True, valid=valid))


def stepped(monkeypatch, *, train_backbone=True, mixup=0.0):
    """The loss of one batch under mse: the spy, and the batch as the method saw it."""
    spy, seen, method = Spy(), [], create_method("mse")
    loss = type(method).loss

    def watched(self, parameters, memory, batch):
        seen.append(batch)
        return loss(self, parameters, memory, batch)

    monkeypatch.setattr(type(method), "loss", watched)
    student = HashModel(adapted(Pixels(nnx.Rngs(0)), name="pixels", image_size=PIXELS_SIDE), BITS, rngs=nnx.Rngs(1))
    codes = np.sign(LOGITS)
    stage, parameters, carry = student_stage(
        student, StillTeacher(jnp.asarray(codes, jnp.int8), jnp.asarray(LOGITS)), method,
        TeacherKnowledge.of(codes, method.needs, seed=0), train_backbone=train_backbone, learning_rate=1e-3, temperature=0.3,
        kl_weight=0.001, method_seed=0, learning=LearningConfig(mixup=mixup),
        **job(spy, n_images=IMAGES, batch_size=4, epochs=1, seed=0, kept_views=2))
    stage.task.loss(parameters, carry, stage.task.constants, jax.tree.map(jnp.asarray, BATCH), jax.random.key(5))
    assert len(spy.keys) == 2 and len(seen) == 1
    return spy, seen[0]


def test_a_loss_keeps_no_training_alive():
    """Compiled programs hold the losses that they were made of for as long as the process lives."""
    student = HashModel(adapted(Pixels(nnx.Rngs(0)), name="pixels", image_size=PIXELS_SIDE), BITS, rngs=nnx.Rngs(1))
    codes, method, spy = np.sign(LOGITS), create_method("mse"), Spy()
    stage, _, _ = student_stage(
        student, StillTeacher(jnp.asarray(codes, jnp.int8), jnp.asarray(LOGITS)), method,
        TeacherKnowledge.of(codes, method.needs, seed=0), train_backbone=True, learning_rate=1e-3, temperature=0.3, kl_weight=0.001,
        method_seed=0, **job(spy, n_images=IMAGES, batch_size=4, epochs=1, seed=0, kept_views=2))
    loss, held = stage.task.loss, weakref.ref(spy)
    del stage, spy
    gc.collect()
    assert held() is None and callable(loss)


@pytest.mark.parametrize("train_backbone", [True, False], ids=["whole", "frozen"])
def test_a_backbone_drops_where_it_learns_and_each_view_its_own(monkeypatch, train_backbone):
    spy, _ = stepped(monkeypatch, train_backbone=train_backbone)
    if train_backbone:
        first, second = map(jax.random.key_data, spy.keys)
        assert not np.array_equal(first, second)
    else:
        assert spy.keys == [None, None]


def test_the_teacher_is_mixed_as_the_views_are(monkeypatch):
    """Both views alike, each row with the next one that is no padding; codes are those of the mixed logits."""
    spy, seen = stepped(monkeypatch, mixup=0.4)
    first, second = (told["mix"] for told in spy.told)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    weight, partner = map(np.asarray, first)
    np.testing.assert_array_equal(partner, [1, 2, 0, 3])
    assert ((weight > 0) & (weight < 1)).all() and len(set(weight.tolist())) == 4
    rows = LOGITS[BATCH.indices]
    expected = weight[:, None] * rows + (1 - weight[:, None]) * rows[partner]
    np.testing.assert_allclose(seen.teacher["i"].logits, expected, rtol=1e-6)


def test_nothing_is_mixed_where_nothing_is_told(monkeypatch):
    """And sources from outside are not asked about it."""
    spy, seen = stepped(monkeypatch)
    assert spy.told == [{}, {}]
    np.testing.assert_array_equal(seen.teacher["i"].logits, LOGITS[BATCH.indices])


def test_views_are_mixed_as_pixels():
    images = np.random.default_rng(2).integers(256, size=(IMAGES, 8, 8, 3), dtype=np.uint8)
    views = PixelViews(jnp.asarray(images), jax.random.key(0), ViewConfig(size=8, **RECIPES["crop-flip"]), True)
    model = types.SimpleNamespace(backbone=lambda pixels, **_: pixels.reshape(len(pixels), -1), head=lambda features: features)
    mix = draw_mix(jax.random.key(1), jnp.asarray(VALID), 0.4)
    plain, mixed = (views.outputs(model, *map(jnp.asarray, (BATCH.indices, BATCH.views_i, BATCH.valid)), mix=told).features
                    for told in (None, mix))
    weight = np.asarray(mix.weight)[:, None]
    np.testing.assert_allclose(mixed, weight * plain + (1 - weight) * plain[mix.partner], rtol=1e-6, atol=1e-6)
    assert not np.allclose(mixed, plain)


@pytest.mark.parametrize(("told", "expected"), [
    ({"method": "mse", "mse_on": "features"}, ("features", "logits")), ({"method": "mse"}, ("logits",)),
    ({"method": "bits"}, ("codes", "logits"))])
def test_of_mixed_views_the_teachers_logits_are_needed(told, expected):
    """Of them are the codes of a mixture."""
    assert set(needs_of(create_config(**told, mixup=0.4)).teacher) == set(expected)
    without = create_config(**told)
    assert needs_of(without) == without.method.needs
