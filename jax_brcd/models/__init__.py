"""Backbones by name, hash models over them, and the layouts of their weights."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jax_brcd.models import clip, convnext, dinov2, dinov3, efficientnet, mobilenet, resnet, siglip, vit
from jax_brcd.models.adapt import adapted, taken
from jax_brcd.models.heads import HEADS, HashModel
from jax_brcd.models.layers import Backbone
from jax_brcd.models.layouts import LAYOUTS, Loaded
from jax_brcd.models.layouts.base import backbone_of
from jax_brcd.models.layouts.torchvision import load as _load_torchvision
from jax_brcd.models.layouts.torchvision import state as torchvision_state
from jax_brcd.models.layouts.torchvision import torchvision_tensors
from jax_brcd.models.variants import BACKBONES, Preprocessing, Variant, Weights, list_backbones, tags_of
from jax_brcd.runtime.errors import InputError

MOST_BITS = 2**16  # of a code; a head of more would be larger than any backbone

for family in (vit, resnet, efficientnet, mobilenet, convnext, dinov2, dinov3, clip, siglip):
    for name, variant in family.VARIANTS.items():
        BACKBONES.register(name)(variant)

__all__ = ["BACKBONES", "HEADS", "LAYOUTS", "Backbone", "HashModel", "Loaded", "Preprocessing", "Variant", "Weights",
           "create_backbone", "create_hash_model", "list_backbones", "load_state", "load_torchvision_state", "model_state",
           "tags_of",
           "torchvision_state", "torchvision_tensors"]


def create_backbone(name: str, *, size: int | None = None, rngs: nnx.Rngs | None = None, dtype=jnp.float32) -> Backbone:
    """A backbone with random weights.

    It maps normalised float32 images (batch, height, width, 3) to float32 features (batch, `.features`), is meant for
    `.image_size` pixels, and computes in `dtype` with float32 parameters (a user's module that takes no `dtype`, in its own).

    Args:
        size: pixels of the square it is to see; by default its variant's. The weights are the same: a ViT's position embedding
            is kept as it was learnt, and resampled for the images.

    Raises:
        InputError: for an unknown name, a user's module that is no backbone, or a size that it does not take.
    """
    variant = BACKBONES[name]
    module = variant.build(**taken(variant.build, dtype=dtype, rngs=rngs or nnx.Rngs(0)))
    backbone = adapted(module, name=name, image_size=variant.preprocessing.size)
    if size is None:
        size = variant.preprocessing.size
    backbone.check_size(size)
    backbone.image_size = size
    return backbone


def create_hash_model(
    name: str, bits: int, *, size: int | None = None, rngs: nnx.Rngs | None = None, dtype=jnp.float32, form: str | None = None
) -> HashModel:
    """A backbone with a hash head of `bits` bits; it maps images to logits (batch, bits).

    Args:
        form: of the head, a name in HEADS; None for the backbone's own.

    Raises:
        InputError: for an unknown name or form, bits < 1 or more than MOST_BITS, or a size that the backbone does not take.
    """
    if bits < 1:
        raise InputError("a code needs at least one bit; give 1 or more", field="bits", value=bits)
    if bits > MOST_BITS:
        raise InputError(f"too many for a code; give {MOST_BITS} or less", field="bits", value=bits)
    rngs = rngs or nnx.Rngs(0)
    return HashModel(create_backbone(name, size=size, rngs=rngs, dtype=dtype), bits, rngs=rngs, form=form)


def model_state(model: Backbone | HashModel) -> dict[str, Any]:
    """The weights of a backbone or hash model in its family's layout: names to NumPy arrays, copies."""
    return LAYOUTS[_layout(model)].state(model)


def load_state(
    model: Backbone | HashModel, state: Mapping[str, Any], *, layout: str | None = None, any_head: bool = False
) -> Loaded:
    """Puts weights into a backbone or hash model, in place, and says what a reader must know of them.

    Args:
        layout: how they are named and shaped; by default the family's own, or another of its that the names show.
        any_head: a head that is not the model's is left out with a remark; else it is refused.

    Raises:
        InputError: for an unknown layout, and for weights that do not fit or are broken; the model is then as it was.
    """
    return LAYOUTS[layout or _layout_of(state, model)].load(model, state, any_head=any_head)


def load_torchvision_state(model: Backbone | HashModel, state: Mapping[str, Any]) -> Backbone | HashModel:
    """Puts a torchvision state_dict into a model, in place, and returns the model; see `layouts.torchvision.load`."""
    _load_torchvision(model, state)
    return model


def _layout(model: Backbone | HashModel) -> str:
    return backbone_of(model).layout


def _layout_of(state: Mapping[str, Any], model: Backbone | HashModel) -> str:
    """The layout whose names a state has, of those that a model's weights come in."""
    shown = (name for name, sign in backbone_of(model).signs.items() if any(re.search(sign, each) for each in state))
    return next(shown, type(backbone_of(model)).layout)
