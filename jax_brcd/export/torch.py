"""Encoders as programs of torch.export, with the state_dict beside them."""

import pathlib
from typing import Any

import numpy as np

from jax_brcd.encoder import HashEncoder
from jax_brcd.export.base import Material
from jax_brcd.export.reference import reference_model
from jax_brcd.export.torchvision import export_safetensors
from jax_brcd.export.trial import inputs_for, squares, try_batches

PROGRAM, WEIGHTS = "encoder.pt2", "encoder.safetensors"


def write(encoder: HashEncoder, folder: pathlib.Path, material: Material) -> dict[str, Any]:
    """See TriedExporter."""
    import torch

    from torch_ref.encoders import Coded, CodedPixels

    model, seen = reference_model(encoder), encoder.preprocessing
    tried = inputs_for(encoder, material.images)
    if encoder.over_embeddings:
        module, sample = Coded(model, encoder.bits), np.stack(tried[:2])
    else:
        module, sample = CodedPixels(model, encoder.bits, mean=seen.mean, std=seen.std), squares(encoder, tried[:2])
    with torch.inference_mode(False), torch.no_grad():
        program = torch.export.export(module.eval(), (torch.from_numpy(sample),),
                                      dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, folder / PROGRAM)
    loaded = torch.export.load(folder / PROGRAM).module()

    def run(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            logits, codes = loaded(torch.from_numpy(np.ascontiguousarray(inputs)))
        return logits.numpy(), codes.numpy()

    figures = try_batches(encoder, run, tried)
    export_safetensors(encoder.model, folder / WEIGHTS, name=encoder.backbone, bits=encoder.bits)
    return {"layout": encoder.model.backbone.layout, "verified": {PROGRAM: figures}}
