"""bfloat16 arithmetic against float32: how far features and codes move, and which sums stay float32; the compiler's options.

bfloat16 keeps 8 bits of a number, so a rounding moves it by up to 0.4 %; the roundings of many terms are independent and
mostly cancel. Measured: cosines of features above 0.9999 and 99.6 to 99.9 % of code bits equal; the others belong to logits
within 1 % of a standard deviation of zero. The bounds leave room for other weights.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_brcd.models import create_hash_model, load_torchvision_state
from jax_brcd.models.layers import BatchNorm
from jax_brcd.models.weights import read_weights
from jax_brcd.runtime import xla
from jax_brcd.views.augmentation import evaluation_views

FAMILIES = ("vit_lite_7_4", "resnet18")  # one of each; their layers are those of the larger ones
COSINE, EQUAL_BITS, NEAR_ZERO = 0.999, 0.99, 0.05
TRAINED = {"vit_lite_7_4": "vit_lite_7_4.safetensors", "resnet18": "resnet18_32.safetensors"}


@pytest.fixture(scope="module")
def images():
    coarse = np.random.default_rng(0).integers(256, size=(16, 4, 4, 3), dtype=np.uint8)  # smooth once it is resized
    return evaluation_views(jnp.asarray(coarse), 32)


def features_and_logits(name, dtype, images, weights):
    model = create_hash_model(name, 64, rngs=nnx.Rngs(0), dtype=dtype)
    if weights:
        load_torchvision_state(model.backbone, read_weights(weights))
    graph, state = nnx.split(model)
    features = jax.jit(lambda state, images: nnx.merge(graph, state).backbone(images))(state, images)
    logits = model.head(features)
    assert features.dtype == logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return np.asarray(features), np.asarray(logits)


@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_gives_nearly_the_features_and_codes_of_float32(name, trained, images, shared):
    weights = shared("weights", TRAINED[name]) if trained else None
    (single, logits), (half, half_logits) = (features_and_logits(name, dtype, images, weights)
                                             for dtype in (jnp.float32, jnp.bfloat16))
    assert np.abs(single - half).max() > 0  # the half-precision model is another one
    cosines = np.sum(single * half, axis=1) / np.linalg.norm(single, axis=1) / np.linalg.norm(half, axis=1)
    assert cosines.min() > COSINE
    equal = (logits > 0) == (half_logits > 0)
    assert equal.mean() > EQUAL_BITS
    assert equal[np.abs(logits) > NEAR_ZERO * logits.std()].all()


def operations(jaxpr):
    """All operations of a program, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from operations(inner)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("train", [False, True], ids=["evaluation", "training"])
def test_statistics_of_norms_and_softmax_are_float32(name, train):
    """Every sum, exponential and reciprocal root of a half-precision model: what LayerNorm, batch norm and softmax are made
    of."""
    graph, state = nnx.split(nnx.eval_shape(lambda: create_hash_model(name, 8, dtype=jnp.bfloat16)))
    program = jax.make_jaxpr(lambda state, images: nnx.merge(graph, state)(images, train=train))(
        state, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
    statistics = [equation for equation in operations(program.jaxpr)
                  if equation.primitive.name in ("reduce_sum", "reduce_max", "exp", "rsqrt")
                  and not (name.startswith("resnet") and equation.primitive.name == "reduce_max")]
    kinds = {equation.primitive.name for equation in statistics}
    assert "rsqrt" in kinds and ("exp" in kinds) == name.startswith("vit")
    assert {str(operand.aval.dtype) for equation in statistics for operand in equation.invars} == {"float32"}
    products = [equation.invars[0].aval.dtype for equation in operations(program.jaxpr)
                if equation.primitive.name in ("dot_general", "conv_general_dilated")]
    assert products.count(jnp.bfloat16) > len(products) // 2


def test_batch_norm_of_bfloat16_activations_far_from_zero():
    """At 100 +- 1 a bfloat16 is 0.5 apart: a mean or variance summed in it would be useless."""
    random = np.random.default_rng(0)
    activations = jnp.asarray(100 + random.standard_normal((64, 8, 8, 3)), jnp.bfloat16)
    exact = np.asarray(activations, np.float64)
    norm = BatchNorm(3, dtype=jnp.bfloat16)
    normalised = np.asarray(norm(activations, train=True), np.float64)
    np.testing.assert_allclose(norm.mean[...], 0.1 * exact.mean(axis=(0, 1, 2)), rtol=1e-5)
    expected = (exact - exact.mean(axis=(0, 1, 2))) / np.sqrt(exact.var(axis=(0, 1, 2)) + 1e-5)
    assert np.abs(normalised - expected).max() < 2**-8 * np.abs(expected).max()  # one rounding of the result


def test_the_users_compiler_options_are_left_alone(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=true")
    xla.set_flags()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=true"
    monkeypatch.setenv("XLA_FLAGS", "")
    xla.set_flags()
    assert os.environ["XLA_FLAGS"] == ""  # set, to nothing


def test_compiler_options_are_set_where_they_were_tried(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(xla.jaxlib, "__version__", "0.10.9")
    xla.set_flags()
    assert os.environ["XLA_FLAGS"] == xla.CPU_FUSION
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(xla.jaxlib, "__version__", "0.99.0")  # which may not know the option and then refuses to start
    xla.set_flags()
    assert "XLA_FLAGS" not in os.environ
