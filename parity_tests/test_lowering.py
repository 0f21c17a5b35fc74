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
from model_pairs import few_pixels, short_backbone

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


def pixels(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_a_model_has_all_its_convolutions_on_every_accelerator_for_any_number_of_images(name):
    """One that is chosen by the machine it is traced on has lost those that a CPU does otherwise."""
    backbone = short_backbone(name)
    graph, state = nnx.split(backbone)
    size = few_pixels(backbone, 64)
    operations = lowered(lambda state, images: nnx.merge(graph, state)(images, train=False), state,
                         pixels(*jax.export.symbolic_shape("batch"), size, size, 3))
    layers = [layer for _, layer in nnx.iter_modules(backbone) if isinstance(layer, nnx.Conv)]
    of_each_channel = [layer for layer in layers if layer.feature_group_count > 1]
    assert operations["cuda"]["convolution"] == operations["tpu"]["convolution"] == len(layers)
    # a CPU does those of each channel as sums, and those to few pixels as products
    assert operations["cpu"]["convolution"] <= len(layers) - len(of_each_channel)
    for operation in ("dot_general", "rsqrt", "exponential", "logistic", "tanh"):
        assert operations["cuda"][operation] == operations["tpu"][operation], operation
    assert operations["cpu"]["dot_general"] >= operations["cuda"]["dot_general"]


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet8"])
def test_a_training_step_has_the_gradients_of_all_its_convolutions_on_every_accelerator(name):
    backbone = short_backbone(name)
    graph, parameters, others = nnx.split(backbone, nnx.Param, ...)

    def step(parameters, others, images):
        def loss(parameters):
            model = nnx.merge(graph, parameters, others, copy=True)
            return jnp.mean(model(images, train=True) ** 2)
        return jax.value_and_grad(loss)(parameters)

    operations = lowered(step, parameters, others, pixels(BATCH, 32, 32, 3))
    layers = sum(isinstance(layer, nnx.Conv) for _, layer in nnx.iter_modules(backbone))
    # of each layer but the first, to whose images nothing goes back: the value, and a gradient of kernel and of input
    assert operations["cuda"]["convolution"] == operations["tpu"]["convolution"] == 3 * layers - 1


@pytest.mark.parametrize("shape", [(BATCH, 40, 50, 3), (BATCH, 32, 32, 3)])
def test_views_are_the_same_operations_on_every_platform(shape):
    def views(keys, images):
        return random_views(keys, images, ViewConfig(size=24)), evaluation_views(images, 24, resize=28)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), BATCH))
    operations = lowered(views, keys, pixels(*shape, dtype=jnp.uint8))
    kinds = {platform: set(counts) for platform, counts in operations.items()}
    # a CPU takes images in turn and skips what was not drawn, others take a batch at once and select
    for needed in ("gather", "floor", "sort", "minimum", "maximum", "divide", "sqrt", "while"):
        assert all(needed in kind for kind in kinds.values()), needed
    assert kinds["cuda"] - CHOSEN == kinds["tpu"] - CHOSEN
    assert "case" in kinds["cpu"]


WHOLE, LOGITS = pixels(BATCH, dtype=jnp.int32), pixels(BATCH, BITS)
MEMORY = {"indices": WHOLE, "negatives": pixels(BATCH, 6, dtype=jnp.int32)}
# what a loss takes beside matrices of logits or codes
ARGUMENTS = {
    "brcd_distillation_loss": {"clusters": WHOLE, "centers": pixels(3, BITS), "bit_mask": pixels(3, BITS)},
    "crd_loss": {"memory": {"student": pixels(20, BITS), "teacher": pixels(20, BITS), "normalisers": pixels(2)}, **MEMORY},
    "crcd_loss": {"memory": {"student": pixels(20, BITS), "teacher": pixels(20, BITS), "normalisers": pixels(2)}, **MEMORY},
    "packd_loss": {"memory": {"bank": pixels(20, BITS), "seen": pixels(20, dtype=jnp.bool_)}, **MEMORY,
                   "student_rows": pixels(2, BATCH, BITS), "teacher_rows": pixels(2, BATCH, BITS)},
}
NUMBERS = {"temperature": 0.3}
# Each platform factorises a matrix by a library of its own, which tells of a failure in its own way
FACTORISES = ("coding_rate",)
FACTORISING = {"cholesky", "triangular_solve", "custom_call", "output_operand_alias"}


@pytest.mark.parametrize("name", losses.__all__)
def test_a_loss_and_its_gradient_are_the_same_operations_on_every_platform(name):
    function = getattr(losses, name)
    parameters = inspect.signature(function).parameters.values()
    arguments = {parameter.name: LOGITS for parameter in parameters
                 if parameter.default is parameter.empty and parameter.name not in NUMBERS}
    arguments |= ARGUMENTS.get(name, {})
    if any(parameter.name == "valid" for parameter in parameters):
        arguments["valid"] = pixels(BATCH, dtype=jnp.bool_)
    numbers = {parameter.name: NUMBERS[parameter.name] for parameter in parameters if parameter.name in NUMBERS}
    learnt = next(iter(arguments))

    def value(logits, others):
        return sum(jnp.sum(part) for part in jax.tree.leaves(function(**{**others, learnt: logits}, **numbers)))

    others = {key: array for key, array in arguments.items() if key != learnt}
    operations = lowered(jax.value_and_grad(value), arguments[learnt], others)
    if name in FACTORISES:
        assert all(FACTORISING & set(counts) for counts in operations.values())
        operations = {platform: set(counts) - FACTORISING for platform, counts in operations.items()}
    assert operations["cpu"] == operations["cuda"] == operations["tpu"] and operations["cpu"]
