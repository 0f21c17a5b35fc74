"""The max pool of ResNets: values and gradients are XLA's own and PyTorch's, on a CPU by other means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jax_brcd.models.pooling import max_pool


def plain(images):
    return nnx.max_pool(images, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def gradient(pool, images, weights):
    return jax.jit(lambda images: jax.vjp(pool, images)[1](weights)[0])(images)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 7, 9, 2), (1, 1, 1, 1), (1, 2, 3, 1)])
def test_values_and_gradients_are_xlas_bit_for_bit(shape, dtype):
    draw = np.random.default_rng(0)
    images = jnp.asarray(draw.integers(-3, 3, shape), dtype)  # many are equal
    maxima = plain(images)
    weights = jnp.asarray(draw.normal(size=maxima.shape), dtype)
    np.testing.assert_array_equal(max_pool(images), maxima)
    np.testing.assert_array_equal(gradient(max_pool, images, weights), gradient(plain, images, weights))


def test_the_gradient_of_equal_maxima_goes_where_pytorchs_goes():
    images = np.random.default_rng(1).integers(0, 2, (2, 9, 10, 3)).astype(np.float32)
    ours = jnp.asarray(images)
    weights = np.random.default_rng(2).normal(size=plain(ours).shape).astype(np.float32)
    theirs = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_(True)
    torch.nn.functional.max_pool2d(theirs, 3, 2, 1).backward(torch.from_numpy(weights).permute(0, 3, 1, 2))
    np.testing.assert_allclose(gradient(max_pool, ours, jnp.asarray(weights)), theirs.grad.permute(0, 2, 3, 1), rtol=1e-6)


def test_other_platforms_differentiate_it_as_jax_does():
    images = jnp.zeros((1, 8, 8, 2))
    step = jax.jit(jax.grad(lambda images: max_pool(images).sum()))
    counts = {platform: step.trace(images).lower(lowering_platforms=(platform,)).as_text().count("select_and_scatter")
              for platform in ("cpu", "cuda", "tpu")}
    assert counts["cpu"] == 0 and counts["cuda"] == counts["tpu"] > 0
