"""Encoders as ONNX: one graph from squares of pixels, one from an image of any size, both to logits and packed codes.

The hash model comes from PyTorch's exporter, by way of the reference's model with the same weights; what stands around it is in
`graphs.py`.
"""

import contextlib
import io
import pathlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jax_brcd.encoder import HashEncoder
from jax_brcd.export import graphs, quantization
from jax_brcd.export.base import Material
from jax_brcd.export.graphs import LOGITS, OPSET, PIXELS, ROWS
from jax_brcd.export.reference import reference_model
from jax_brcd.export.sessions import runner
from jax_brcd.export.trial import inputs_for, try_any_size, try_batches

if TYPE_CHECKING:
    from onnx import ModelProto

SQUARES, ANY_SIZE = "encoder.onnx", "encoder_any_size.onnx"


def core_model(encoder: HashEncoder) -> "ModelProto":
    """The hash model alone: normalised planes, or rows, to logits, of any number of images.

    Raises:
        InputError: see `reference_model`.
    """
    import torch

    model, seen = reference_model(encoder), encoder.preprocessing
    shape = (2, seen.width) if encoder.over_embeddings else (2, 3, seen.size, seen.size)
    name = ROWS if encoder.over_embeddings else PIXELS
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # of PyTorch about its own ways
        program = torch.onnx.export(model, (torch.zeros(shape),), dynamo=True, opset_version=OPSET, input_names=[name],
                                    output_names=[LOGITS], dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
    return program.model_proto


def write(encoder: HashEncoder, folder: pathlib.Path, material: Material) -> dict[str, Any]:
    """See TriedExporter. The graphs of float32 are tried in any case; quantised ones then take their places."""
    if material.quantize is not None:
        quantization.check(encoder, material)
    core, images = core_model(encoder), inputs_for(encoder, material.images)
    write_graphs(encoder, core, folder)
    trials: dict[str, Callable] = {SQUARES: try_batches}
    if not encoder.over_embeddings:
        trials[ANY_SIZE] = try_any_size
    verified = {name: trial(encoder, runner(folder / name), images) for name, trial in trials.items()}
    facts = {"opset": OPSET, "nodes": len(core.graph.node), "verified": verified}
    if material.quantize is not None:
        small = quantization.quantised(encoder, core, material)
        write_graphs(encoder, small, folder)
        facts |= {"quantize": material.quantize, "quantized": quantization.costs(encoder, core, small, material)}
    return facts


def write_graphs(encoder: HashEncoder, core: "ModelProto", folder: pathlib.Path) -> None:
    """The files of an encoder around a hash model."""
    import onnx

    before = ({SQUARES: None} if encoder.over_embeddings else
              {SQUARES: graphs.before_images(encoder.preprocessing), ANY_SIZE: graphs.before_any_size(encoder.preprocessing)})
    for name, part in before.items():
        onnx.save(graphs.joined(core, part, encoder), folder / name)
