"""Backbones by torchvision's names, hash models over them, and the way to and from torchvision's state_dicts."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from jax_brcd.models import convnext, efficientnet, mobilenet, resnet, vit
from jax_brcd.models.heads import HashModel
from jax_brcd.models.layers import Backbone
from jax_brcd.models.torchvision import load_torchvision_state, torchvision_state
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.registry import Registry

BACKBONES: Registry[Callable[..., Backbone]] = Registry("backbone")
for family in (vit, resnet, efficientnet, mobilenet, convnext):
    for name, builder in family.BUILDERS.items():
        BACKBONES.register(name)(builder)

__all__ = ["BACKBONES", "Backbone", "HashModel", "create_backbone", "create_hash_model", "load_torchvision_state",
           "torchvision_state"]


def create_backbone(name: str, *, rngs: nnx.Rngs | None = None, dtype=jnp.float32) -> Backbone:
    """A backbone with random weights.

    It maps normalised float32 images (batch, height, width, 3) to float32 features (batch, `.features`), is meant for
    `.image_size` pixels, and computes in `dtype` with float32 parameters.

    Raises:
        InputError: for an unknown name.
    """
    backbone = BACKBONES[name](dtype=dtype, rngs=rngs or nnx.Rngs(0))
    backbone.name = name
    return backbone


def create_hash_model(name: str, bits: int, *, rngs: nnx.Rngs | None = None, dtype=jnp.float32) -> HashModel:
    """A backbone with a hash head of `bits` bits; it maps images to logits (batch, bits).

    Raises:
        InputError: for an unknown name or bits < 1.
    """
    if bits < 1:
        raise InputError(f"--bits {bits}: a code needs at least one bit; give 1 or more")
    rngs = rngs or nnx.Rngs(0)
    return HashModel(create_backbone(name, rngs=rngs, dtype=dtype), bits, rngs=rngs)
