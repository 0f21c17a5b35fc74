"""Encoders in PyTorch: the reference's model with an encoder's weights, from which PyTorch's own exporters go on."""

from typing import TYPE_CHECKING

import numpy as np

from jax_brcd.encoder import HashEncoder
from jax_brcd.models.layouts.named import named_tensors, tensor_arrays
from jax_brcd.runtime.errors import InputError

if TYPE_CHECKING:
    from torch import nn

FLOAT = "float32"
NAMES = {"torchvision": "renames", "transformers": "transformers_renames", "dinov2_hub": "transformers_renames"}


def reference_model(encoder: HashEncoder) -> "nn.Module":
    """The hash model of an encoder in PyTorch: normalised images (batch, 3, size, size), or rows, to logits.

    Raises:
        InputError: for a backbone that PyTorch's libraries do not have, and for an encoder that computes in half precision.
    """
    import torch

    from torch_ref import encoders, models

    if encoder.dtype != FLOAT:
        raise InputError(f"the encoder computes in {encoder.dtype}, and such an export in {FLOAT}, which gives other bits; "
                         f"give one of {FLOAT}, or export to stablehlo")
    backbone = encoder.model.backbone
    if encoder.over_embeddings:
        model = torch.nn.Sequential()
        head = models.new_head(encoder.backbone, backbone.features, encoder.bits, encoder.model.form)
        model.add_module(backbone.head_key, head)
    elif backbone.layout not in NAMES or not encoders.has_model(encoder.backbone):
        raise InputError(f"PyTorch's libraries have no {encoder.backbone}, by which such an export is made; export it to "
                         "stablehlo")
    else:
        model = encoders.model_at(encoder.backbone, encoder.bits, encoder.model.form, encoder.preprocessing.size)
    return encoders.filled(model, {name: torch.from_numpy(np.array(array)) for name, array in weights(encoder).items()})


def weights(encoder: HashEncoder) -> dict[str, np.ndarray]:
    """The weights of an encoder by PyTorch's names; positions are those of images of its size."""
    backbone = encoder.model.backbone
    tensors = named_tensors(encoder.model, getattr(backbone, NAMES.get(backbone.layout, ""), ()))
    arrays = tensor_arrays(tensors)
    learnt = getattr(backbone, "pos_embedding", None)
    if learnt is not None:
        side = encoder.preprocessing.size // backbone.patch_size
        positions = np.asarray(backbone.positions(side, side), np.float32)
        (name,) = [name for name, tensor in tensors.items() if tensor.variable is learnt]
        arrays[name] = positions.reshape(*learnt.shape[:-2], *positions.shape)
    return arrays
