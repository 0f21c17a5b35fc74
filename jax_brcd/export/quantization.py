"""Hash models of ONNX in 8-bit integers, by ONNX Runtime's static quantisation (QuantizeLinear and DequantizeLinear nodes).

Ranges of activations are those of training images. The hash head stays in float32: it is a small part of the work, and its sums
decide the bits.
"""

import contextlib
import io
import logging
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import nnx

from jax_brcd.data import ImageDataset
from jax_brcd.encoder import HashEncoder
from jax_brcd.export.base import Material
from jax_brcd.export.graphs import LOGITS, PIXELS
from jax_brcd.export.sessions import open_session
from jax_brcd.export.trial import Inputs, inputs_for
from jax_brcd.retrieval import PackedCodes, evaluate_search
from jax_brcd.runtime.errors import InputError
from jax_brcd.views.fitting import fitted_view

if TYPE_CHECKING:
    from onnx import ModelProto

BATCH = 16  # images that are encoded, or calibrate, at once
TURNS = 15  # single images that each model is timed with, in turns
LAYERS = ("Gemm", "MatMul")


def check(encoder: HashEncoder, material: Material) -> None:
    """Raises InputError where the encoder cannot be quantised, or nothing is there to calibrate it by."""
    if encoder.over_embeddings:
        raise InputError("an encoder over embeddings is a hash head, which stays in float32; leave it out", field="quantize",
                         value=material.quantize)
    if not len(material.calibration):
        raise InputError("needs training images; name a folder of some with `calibrate`, or their data set with `dataset` and "
                         "`data_dir`", field="quantize", value=material.quantize)


def quantised(encoder: HashEncoder, core: "ModelProto", material: Material) -> "ModelProto":
    """The hash model `core` with convolutions and products in 8 bits, calibrated by `material.calibration`."""
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """Normalised planes, a batch at a time."""

        def __init__(self):
            self.batches = planes_of(encoder, material.calibration, material, "calibrate")

        def get_next(self) -> dict[str, np.ndarray] | None:
            """The next batch."""
            planes = next(self.batches, None)
            return None if planes is None else {PIXELS: planes}

    with tempfile.TemporaryDirectory(prefix="jax_brcd.") as temporary, _silent():
        whole, path = (pathlib.Path(temporary) / name for name in ("float32.onnx", "int8.onnx"))
        onnx.save(core, whole)  # given as it is, it would be written to the working directory and changed
        quantization.quantize_static(
            whole, path, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=head_nodes(encoder, core))
        return onnx.load(path)


def head_nodes(encoder: HashEncoder, core: "ModelProto") -> list[str]:
    """The names of the linear layers of the hash head: the last ones of the graph."""
    count = sum(isinstance(part, nnx.Linear) for _, part in nnx.iter_graph(encoder.model.head))
    return [node.name for node in core.graph.node if node.op_type in LAYERS][-count:]


def planes_of(encoder: HashEncoder, images: Inputs, material: Material, what: str) -> Iterator[np.ndarray]:
    """Images as the hash model sees them, (batch, 3, size, size)."""
    for begin in range(0, len(images), BATCH):
        views = [np.asarray(fitted_view(np.asarray(image), **vars(encoder.preprocessing)))
                 for image in images[begin : begin + BATCH]]
        yield np.ascontiguousarray(np.concatenate(views).transpose(0, 3, 1, 2))
        material.progress(what, min(begin + BATCH, len(images)), len(images))


def costs(encoder: HashEncoder, core: "ModelProto", small: "ModelProto", material: Material) -> dict[str, Any]:
    """What quantising changed: the share of bits, the seconds of an image, and, with labels, the mAP."""
    models = {"float32": core, "int8": small}
    sessions = {name: open_session(model.SerializeToString()) for name, model in models.items()}
    found: dict[str, Any] = {"calibration_images": len(material.calibration), "nodes": len(small.graph.node),
                             "bytes": {name: model.ByteSize() for name, model in models.items()}}
    dataset = material.dataset
    if dataset is not None and dataset.labelled:
        found |= _searches(encoder, sessions, dataset, material)
    else:
        images = inputs_for(encoder, material.images)
        codes = _codes(encoder, sessions, images, material)
        found |= {"compared_images": len(images), "changed_share": _changed(codes)}
    sample = next(planes_of(encoder, material.calibration[:1], material, "time"))
    return found | {"seconds_an_image": _seconds(sessions, sample)}


def _searches(encoder: HashEncoder, sessions: dict[str, Any], dataset: ImageDataset, material: Material) -> dict[str, Any]:
    """The test queries' search of the database, both encoded by the one model and by the other."""
    k = dataset.default_k
    test = _codes(encoder, sessions, dataset.test.images, material)
    database = _codes(encoder, sessions, dataset.database.images, material)
    labels = dataset.test.labels, dataset.database.labels
    maps = {name: evaluate_search(*(PackedCodes.of(part[name], encoder.space) for part in (test, database)), *labels, k).map
            for name in sessions}
    return {"compared_images": len(dataset.test), "changed_share": _changed(test), "map": maps,
            "protocol": {"dataset": dataset.name, "split": dataset.split, "queries": len(dataset.test),
                         "database": len(dataset.database), "k": k, "ties": "stable"}}


def _codes(
    encoder: HashEncoder, sessions: dict[str, Any], images: Inputs, material: Material
) -> dict[str, np.ndarray]:
    """Bits of images by each model, (images, bits)."""
    found: dict[str, list[np.ndarray]] = {name: [np.zeros((0, encoder.bits), bool)] for name in sessions}
    for planes in planes_of(encoder, images, material, "compare int8 with float32"):
        for name, session in sessions.items():
            found[name].append(session.run([LOGITS], {PIXELS: planes})[0] > 0)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _changed(codes: dict[str, np.ndarray]) -> float:
    return float((codes["int8"] != codes["float32"]).mean())


def _seconds(sessions: dict[str, Any], planes: np.ndarray) -> dict[str, float]:
    """Median seconds of one image, measured in turns."""
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(TURNS):
        for name, session in sessions.items():
            began = time.perf_counter()
            session.run([LOGITS], {PIXELS: planes})
            taken[name].append(time.perf_counter() - began)
    return {name: float(np.median(seconds)) for name, seconds in taken.items()}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what ONNX Runtime's tools print and log for the length of a block."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
