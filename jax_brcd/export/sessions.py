"""ONNX files as programs, by ONNX Runtime on the CPU."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jax_brcd.export.graphs import CODES, LOGITS
from jax_brcd.export.trial import Outputs

ERRORS = 3  # the level of what ONNX Runtime says


def open_session(model: pathlib.Path | bytes, *, threads: int = 0) -> Any:
    """A silent session of a file, or of what would be in one. `threads` 0: as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options,
                                        providers=["CPUExecutionProvider"])


def runner(model: pathlib.Path | bytes, *, threads: int = 0) -> Callable[[np.ndarray], Outputs]:
    """What a whole encoder in ONNX makes of an input: logits and codes."""
    session = open_session(model, threads=threads)
    (name,) = [each.name for each in session.get_inputs()]
    return lambda inputs: tuple(session.run([LOGITS, CODES], {name: np.ascontiguousarray(inputs)}))
