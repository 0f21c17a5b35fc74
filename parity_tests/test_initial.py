"""Initial weights are those of JAX's initializers to the last bit, however few programs draw them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_brcd.models import create_backbone, initial

THEIRS = jax.nn.initializers
PAIRS = {
    "normal": (initial.normal(0.02), THEIRS.normal(0.02)),
    "truncated": (initial.truncated_normal(0.02, lower=-5.0, upper=5.0), THEIRS.truncated_normal(0.02, lower=-5.0, upper=5.0)),
    "uniform": (initial.uniform(0.3), THEIRS.uniform(0.3)),
    "he_normal": (initial.he_normal, THEIRS.variance_scaling(2.0, "fan_out", "normal")),
    "torch_uniform": (initial.torch_uniform, THEIRS.variance_scaling(1 / 3, "fan_in", "uniform")),
    "classifier_uniform": (initial.classifier_uniform, THEIRS.variance_scaling(1 / 3, "fan_out", "uniform")),
    "lecun_normal": (initial.lecun_normal, THEIRS.lecun_normal()),
    "xavier_uniform": (initial.xavier_uniform, THEIRS.xavier_uniform()),
    "zeros": (initial.zeros, THEIRS.zeros),
    "ones": (initial.ones, THEIRS.ones),
}


@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (33, 65), (1, 1)])
@pytest.mark.parametrize("name", PAIRS)
def test_weights_are_those_of_jax_to_the_last_bit(name, shape):
    ours, theirs = PAIRS[name]
    key = jax.random.key(3)
    expected = theirs(key, shape, jnp.float32)
    found, traced = ours(key, shape, jnp.float32), jax.jit(lambda key: ours(key, shape))(key)
    assert isinstance(found, jax.Array) and found.dtype == traced.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(traced, expected, rtol=1e-4)  # compiled as one program, which rounds elsewhere


def test_arrays_of_many_shapes_are_drawn_as_rows_of_few_lengths():
    lengths = []

    def draw(key, shape, dtype):
        lengths.append(shape)
        return jnp.zeros(shape, dtype)

    key = jax.random.key(0)
    assert [initial.drawn(draw, key, shape).shape for shape in ((2, 3), (1024,), (1025,), (64, 64), ())] == [
        (2, 3), (1024,), (1025,), (64, 64), ()]
    assert lengths == [(1024,), (1024,), (4096,), (4096,), (1024,)]


def test_numbers_that_depend_on_how_many_are_drawn_are_drawn_as_they_are():
    with jax.threefry_partitionable(False):
        key = jax.random.key(0)
        np.testing.assert_array_equal(initial.normal(1.0)(key, (5, 7)), THEIRS.normal(1.0)(key, (5, 7)))


@pytest.mark.parametrize("make", [
    lambda create: nnx.eval_shape(lambda: create(nnx.Rngs(0))), initial.abstract], ids=["by Flax", "by abstract"])
def test_a_backbone_without_weights_has_the_shapes_of_one_with(make):
    def create(rngs):
        return create_backbone("resnet8", rngs=rngs)

    (graph, abstract), (real_graph, real) = (nnx.split(model) for model in (make(create), create(nnx.Rngs(0))))
    assert graph == real_graph and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), real)
