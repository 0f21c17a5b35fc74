"""NNX's `model.train()` and `model.eval()`: what they set, what an argument overrides, and that nothing compiles again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_pairs import random_images

from jax_brcd.models import BACKBONES, HashModel, create_backbone, create_hash_model, torchvision_state
from jax_brcd.models.convnext import ConvNeXt
from jax_brcd.models.efficientnet import EfficientNet, EfficientNetClassifier, Stage, mbconv
from jax_brcd.models.layers import BatchNorm, Dropping

KEY = jax.random.key(0)


def efficientnet(kind=EfficientNet):
    return kind([Stage(mbconv, 2, 3, 1, 16, 2)], stem=16, last=32, image_size=32, dropout=0.5, rngs=nnx.Rngs(0))


def convnext():
    model = ConvNeXt((8, 16), (1, 2), 0.5, rngs=nnx.Rngs(0))
    for _, module in nnx.iter_modules(model):
        if hasattr(module, "layer_scale"):  # of 1e-6, with which what is dropped could hardly be seen
            module.layer_scale.set_value(jnp.ones_like(module.layer_scale[...]))
    return model


NORMALISING = {"resnet8": lambda: create_backbone("resnet8"), "efficientnet": efficientnet,
               "classifier": lambda: efficientnet(EfficientNetClassifier)}
DROPPING = {"efficientnet": efficientnet, "classifier": lambda: efficientnet(EfficientNetClassifier), "convnext": convnext}


def statistics(model):
    return jax.device_get(jax.tree.leaves(nnx.state(model, nnx.BatchStat)))


def equal(first, second):
    return all(np.array_equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("name", NORMALISING)
def test_batch_norm_follows_the_mode_and_an_explicit_argument_wins(name):
    images, model = random_images(4, 32), NORMALISING[name]()
    started, evaluated = statistics(model), model(images)
    assert equal(statistics(model), started)
    np.testing.assert_array_equal(model(images, train=False), evaluated)
    expected = nnx.clone(model)(images, train=True)
    model.train()
    np.testing.assert_array_equal(model(images, train=False), evaluated)
    assert equal(statistics(model), started)
    np.testing.assert_array_equal(model(images), expected)
    assert not equal(statistics(model), started)
    moved = statistics(model)
    model.eval()
    evaluated_later = model(images)
    assert equal(statistics(model), moved) and not np.allclose(evaluated_later, expected)
    np.testing.assert_array_equal(model(images, train=True), expected)
    assert not equal(statistics(model), moved)


@pytest.mark.parametrize("name", DROPPING)
def test_dropping_follows_the_mode_and_needs_a_key(name):
    images, model = random_images(6, 32), DROPPING[name]()
    model.train()
    dropped = nnx.clone(model)(images, key=KEY)
    np.testing.assert_array_equal(dropped, nnx.clone(model)(images, train=True, key=KEY))
    assert not np.allclose(dropped, nnx.clone(model)(images))
    model.eval()
    np.testing.assert_array_equal(model(images, key=KEY), model(images))
    np.testing.assert_array_equal(model(images, train=True, key=KEY), dropped)


def test_a_part_of_a_model_can_be_put_into_a_mode_of_its_own():
    images, model = random_images(4, 32), create_hash_model("resnet8", 8)
    before = torchvision_state(model)
    model.train()
    for block in model.backbone.layer1:
        block.eval()
    model(images)
    after = torchvision_state(model)
    for name in (name for name in before if name.endswith("running_mean")):
        assert np.array_equal(before[name], after[name]) == name.startswith("layer1"), name


@pytest.mark.parametrize("name", [*NORMALISING, "convnext"])
def test_models_in_one_mode_have_one_structure_and_compile_once(name):
    make = {**NORMALISING, **DROPPING}[name]
    models = [HashModel(make(), 8, rngs=nnx.Rngs(seed)) for seed in range(3)]
    models[1].train()
    models[1].eval()
    models[2].eval()
    graphs = [nnx.split(model)[0] for model in models]
    assert len(set(graphs)) == 1
    models[0].train()
    assert nnx.split(models[0])[0] != graphs[0]
    call = jax.jit(lambda graph, state, images: nnx.merge(graph, state)(images), static_argnums=0)
    for model in models[1:]:
        call(*nnx.split(model), random_images(2, 32))
    assert call._cache_size() == 1


def test_every_family_begins_in_evaluation_mode():
    for name in ("resnet8", "vit_lite_4_8", "mobilenet_v2", "mobilenet_v3_large"):
        model = nnx.eval_shape(lambda name=name: BACKBONES[name].build(dtype=jnp.float32, rngs=nnx.Rngs(0)))
        for _, module in nnx.iter_modules(model):
            assert getattr(module, "use_running_average", True) and getattr(module, "deterministic", True)
            assert not isinstance(module, BatchNorm) or "use_running_average" in vars(module)
            assert not isinstance(module, Dropping) or "deterministic" in vars(module)
