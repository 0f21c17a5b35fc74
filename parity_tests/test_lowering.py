"""Programs traced on this machine and lowered for others: every model, view and loss does the same there as here.

What is done on each platform is chosen when a program is lowered, never while it is traced on whatever machine that may be.
"""

import collections
import inspect
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from model_pairs import SHORT_STAGES, SHORTENED, abstract_backbone

from jax_brcd import losses
from jax_brcd.models import BACKBONES
from jax_brcd.views.augmentation import ViewConfig, evaluation_views, random_views

PLATFORMS = ("cpu", "cuda", "tpu")
BATCH, BITS = 4, 8
OPERATION = re.compile(r"stablehlo\.(\w+)")
# what one platform does with other operations than another, by design
CHOSEN = {"convolution", "while", "case", "custom_call"}


def lowered(function, *arguments):
    """The operations of a function's program for each platform, counted."""
    traced = jax.jit(function).trace(*arguments)
    return {platform: collections.Counter(OPERATION.findall(traced.lower(lowering_platforms=(platform,)).as_text()))
            for platform in PLATFORMS}


def short(name):
    """A backbone of shapes; of the largest not every repetition."""
    backbone = abstract_backbone(name)
    if name in SHORTENED:
        backbone.encoder.layers = nnx.List(backbone.encoder.layers[:1])
    if name in SHORT_STAGES:
        for number in range(1, len(backbone.stages) - 1):
            backbone.stages[number] = nnx.List(backbone.stages[number][:2])
    return backbone


def pixels(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_a_model_has_all_its_convolutions_on_every_accelerator(name):
    """One that is chosen by the machine it is traced on has lost those that a CPU does otherwise."""
    graph, state = nnx.split(short(name))
    size = 64 if not abstract_backbone(name).fixed_size else abstract_backbone(name).image_size
    operations = lowered(lambda state, images: nnx.merge(graph, state)(images, train=False), state, pixels(BATCH, size, size, 3))
    layers = [layer for _, layer in nnx.iter_modules(short(name)) if isinstance(layer, nnx.Conv)]
    of_each_channel = [layer for layer in layers if layer.feature_group_count > 1]
    assert operations["cuda"]["convolution"] == operations["tpu"]["convolution"] == len(layers)
    # a CPU does those of each channel as sums, and those to few pixels as products
    assert operations["cpu"]["convolution"] <= len(layers) - len(of_each_channel)
    for operation in ("dot_general", "rsqrt", "exponential", "logistic", "tanh"):
        assert operations["cuda"][operation] == operations["tpu"][operation], operation
    assert operations["cpu"]["dot_general"] >= operations["cuda"]["dot_general"]
    assert not any(counts["case"] for counts in operations.values())  # the choice is made before the program is written


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet8"])
def test_a_training_step_has_the_gradients_of_all_its_convolutions_on_every_accelerator(name):
    graph, parameters, others = nnx.split(abstract_backbone(name), nnx.Param, ...)

    def step(parameters, others, images):
        def loss(parameters):
            model = nnx.merge(graph, parameters, others, copy=True)
            return jnp.mean(model(images, train=True) ** 2)
        return jax.value_and_grad(loss)(parameters)

    operations = lowered(step, parameters, others, pixels(BATCH, 32, 32, 3))
    layers = sum(isinstance(layer, nnx.Conv) for _, layer in nnx.iter_modules(abstract_backbone(name)))
    # of each layer but the first, to whose images nothing goes back: the value, and a gradient of kernel and of input
    assert operations["cuda"]["convolution"] == operations["tpu"]["convolution"] == 3 * layers - 1


@pytest.mark.parametrize("shape", [(BATCH, 40, 50, 3), (BATCH, 32, 32, 3)])
def test_views_are_the_same_operations_on_every_platform(shape):
    def views(keys, images):
        return random_views(keys, images, ViewConfig(size=24)), evaluation_views(images, 24, resize=28)

    operations = lowered(views, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), BATCH)), pixels(*shape, dtype=jnp.uint8))
    kinds = {platform: set(counts) for platform, counts in operations.items()}
    # a CPU takes images in turn and skips what was not drawn, others take a batch at once and select
    for needed in ("gather", "floor", "sort", "minimum", "maximum", "divide", "sqrt", "while"):
        assert all(needed in kind for kind in kinds.values()), needed
    assert kinds["cuda"] - CHOSEN == kinds["tpu"] - CHOSEN
    assert "case" in kinds["cpu"]


def loss_arguments(function):
    """Shapes for what a loss takes, by the names of its arguments."""
    logits, valid = pixels(BATCH, BITS), jax.ShapeDtypeStruct((BATCH,), jnp.bool_)
    known = {"valid": valid, "temperature": 0.3}
    given = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in known:
            given[parameter.name] = known[parameter.name]
        elif parameter.default is parameter.empty:
            given[parameter.name] = logits
    return given


def simple_losses():
    """The losses of the package over matrices of logits or codes and nothing else."""
    found = {}
    for name in losses.__all__:
        function = getattr(losses, name)
        if not callable(function) or inspect.isclass(function):
            continue
        try:
            jax.eval_shape(lambda function=function: jax.tree.map(
                jnp.sum, function(**{key: jnp.zeros(value.shape, value.dtype) if hasattr(value, "shape") else value
                                     for key, value in loss_arguments(function).items()})))
        except Exception:  # it takes more than matrices
            continue
        found[name] = function
    return found


@pytest.mark.parametrize("name", list(simple_losses()))
def test_a_loss_and_its_gradient_are_the_same_operations_on_every_platform(name):
    arguments = loss_arguments(function := simple_losses()[name])
    arrays = {key: value for key, value in arguments.items() if hasattr(value, "shape")}
    numbers = {key: value for key, value in arguments.items() if key not in arrays}
    first = next(iter(arrays))

    def value(logits, others):
        return sum(jnp.sum(part) for part in jax.tree.leaves(function(**{first: logits, **others, **numbers})))

    others = {key: array for key, array in arrays.items() if key != first}
    operations = lowered(jax.value_and_grad(value), arrays[first], others)
    assert operations["cpu"] == operations["cuda"] == operations["tpu"] and operations["cpu"]
