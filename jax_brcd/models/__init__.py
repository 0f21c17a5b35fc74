"""Backbones by name, hash models over them, and the layouts of their weights."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jax_brcd.models import convnext, efficientnet, mobilenet, resnet, vit
from jax_brcd.models.adapt import adapted, taken
from jax_brcd.models.heads import HashModel
from jax_brcd.models.layers import Backbone
from jax_brcd.models.layouts import LAYOUTS, Loaded
from jax_brcd.models.layouts.torchvision import load as _load_torchvision
from jax_brcd.models.layouts.torchvision import state as torchvision_state
from jax_brcd.models.layouts.torchvision import torchvision_tensors
from jax_brcd.models.variants import BACKBONES, Preprocessing, Variant, Weights, list_backbones, tags_of
from jax_brcd.runtime.errors import InputError

for family in (vit, resnet, efficientnet, mobilenet, convnext):
    for name, variant in family.VARIANTS.items():
        BACKBONES.register(name)(variant)

__all__ = ["BACKBONES", "LAYOUTS", "Backbone", "HashModel", "Loaded", "Preprocessing", "Variant", "Weights", "create_backbone",
           "create_hash_model", "list_backbones", "load_state", "load_torchvision_state", "model_state", "tags_of",
           "torchvision_state", "torchvision_tensors"]


def create_backbone(name: str, *, rngs: nnx.Rngs | None = None, dtype=jnp.float32) -> Backbone:
    """A backbone with random weights.

    It maps normalised float32 images (batch, height, width, 3) to float32 features (batch, `.features`), is meant for
    `.image_size` pixels, and computes in `dtype` with float32 parameters (a user's module that takes no `dtype`, in its own).

    Raises:
        InputError: for an unknown name, or a user's module that is no backbone.
    """
    variant = BACKBONES[name]
    module = variant.build(**taken(variant.build, dtype=dtype, rngs=rngs or nnx.Rngs(0)))
    return adapted(module, name=name, image_size=variant.preprocessing.size)


def create_hash_model(name: str, bits: int, *, rngs: nnx.Rngs | None = None, dtype=jnp.float32) -> HashModel:
    """A backbone with a hash head of `bits` bits; it maps images to logits (batch, bits).

    Raises:
        InputError: for an unknown name or bits < 1.
    """
    if bits < 1:
        raise InputError("a code needs at least one bit; give 1 or more", field="bits", value=bits)
    rngs = rngs or nnx.Rngs(0)
    return HashModel(create_backbone(name, rngs=rngs, dtype=dtype), bits, rngs=rngs)


def model_state(model: Backbone | HashModel) -> dict[str, Any]:
    """The weights of a backbone or hash model in its family's layout: names to NumPy arrays, copies."""
    return LAYOUTS[_layout(model)].state(model)


def load_state(
    model: Backbone | HashModel, state: Mapping[str, Any], *, layout: str | None = None, any_head: bool = False
) -> Loaded:
    """Puts weights into a backbone or hash model, in place, and says what a reader must know of them.

    Args:
        layout: how they are named and shaped; the family's own by default. any_head: a head that is not the model's is left out
            with a remark; else it is refused.

    Raises:
        InputError: for an unknown layout, and for weights that do not fit or are broken; the model is then as it was.
    """
    return LAYOUTS[layout or _layout(model)].load(model, state, any_head=any_head)


def load_torchvision_state(model: Backbone | HashModel, state: Mapping[str, Any]) -> Backbone | HashModel:
    """Puts a torchvision state_dict into a model, in place, and returns the model; see `layouts.torchvision.load`."""
    _load_torchvision(model, state)
    return model


def _layout(model: Backbone | HashModel) -> str:
    return (model.backbone if isinstance(model, HashModel) else model).layout
