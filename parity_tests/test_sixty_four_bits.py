"""JAX_ENABLE_X64: views, models and encoding give the very same float32 numbers with it as without it."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_pairs import short_backbone

from jax_brcd.models import BACKBONES, create_hash_model, load_torchvision_state, torchvision_state
from jax_brcd.models.layers import dropout, stochastic_depth
from jax_brcd.views.augmentation import ViewConfig, draw_view_parameters, evaluation_views, random_views
from jax_brcd.views.encoding import encode

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 40, 44, 3), dtype=np.uint8)


def both(function):
    """What a function gives without 64-bit numbers and with them."""
    with jax.enable_x64(False):
        narrow = jax.device_get(function())
    with jax.enable_x64(True):
        wide = jax.device_get(function())
    return narrow, wide


def assert_same(function):
    narrow, wide = (jax.tree.leaves(result) for result in both(function))
    assert len(narrow) == len(wide) > 0
    for first, second in zip(narrow, wide, strict=True):
        assert first.dtype == second.dtype and first.dtype.itemsize <= 4
        np.testing.assert_array_equal(first, second)


def keys():
    return jax.random.split(jax.random.key(3), len(IMAGES))


def test_the_input_that_failed():
    with jax.enable_x64(True):
        views = evaluation_views(jnp.zeros((1, 40, 40, 3), jnp.uint8), size=32)
    assert views.dtype == jnp.float32 and views.shape == (1, 32, 32, 3)


@pytest.mark.parametrize("resize", [None, 36])
def test_evaluation_views_are_the_same(resize):
    assert_same(lambda: evaluation_views(jnp.asarray(IMAGES), 32, resize=resize, mean=(0.5, 0.5, 0.5)))


@pytest.mark.parametrize("config", [ViewConfig(size=32), ViewConfig(size=16, scale=(4.0, 4.0), flip=1.0, jitter=1.0, blur=1.0)])
def test_random_views_and_their_parameters_are_the_same(config):
    assert_same(lambda: draw_view_parameters(keys(), 40, 44, config))
    assert_same(lambda: random_views(keys(), jnp.asarray(IMAGES), config))


def test_what_is_dropped_is_the_same():
    for drop in (dropout, stochastic_depth):
        assert_same(lambda drop=drop: drop(jnp.ones((64, 5), jnp.float32), 0.3, jax.random.key(1)))


@pytest.mark.parametrize("name", ["resnet8", "vit_lite_4_8"])
def test_new_models_their_logits_and_codes_are_the_same(name):
    assert_same(lambda: torchvision_state(create_hash_model(name, 8, rngs=nnx.Rngs(1))) if name == "vit_lite_4_8" else [
        np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(create_hash_model(name, 8, rngs=nnx.Rngs(1))))])
    assert_same(lambda: encode(create_hash_model(name, 8, rngs=nnx.Rngs(1)), IMAGES, size=32, resize=34, description=""))


def test_weights_are_loaded_in_single_precision():
    state = torchvision_state(create_hash_model("resnet8", 8))
    with jax.enable_x64(True):
        model = load_torchvision_state(create_hash_model("resnet8", 8, rngs=nnx.Rngs(5)), {
            name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in state.items()})
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {np.dtype(np.float32), np.dtype(np.int32)}
        for name, value in torchvision_state(model).items():
            np.testing.assert_array_equal(value, state[name])


@pytest.mark.parametrize("name", list(BACKBONES))
def test_a_training_step_holds_no_array_of_64_bits(name):
    """All arrays of a step, inner ones too; single numbers of Python's may be of 64 bits until they meet an array."""
    backbone = short_backbone(name)
    graph, state = nnx.split(backbone)
    size = BACKBONES[name].preprocessing.size if backbone.fixed_size else 32

    def step(state, images, valid, key):
        model = nnx.merge(graph, state)
        return model(images, train=True, valid=valid, key=key), nnx.state(model, nnx.BatchStat)

    with jax.enable_x64(True):
        program = jax.make_jaxpr(step)(state, jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32),
                                       jax.ShapeDtypeStruct((2,), jnp.bool_), jax.random.key(0))
    found = {variable.aval for equation in equations(program.jaxpr) for variable in (*equation.invars, *equation.outvars)}
    # a key of two 32-bit numbers has a type that is not NumPy's
    wide = [aval for aval in found
            if getattr(aval, "shape", ()) and isinstance(aval.dtype, np.dtype) and aval.dtype.itemsize == 8]
    assert not wide and {aval.dtype for aval in program.out_avals} <= {np.dtype(np.float32), np.dtype(np.int32)}


def equations(jaxpr):
    """All operations of a program, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)
