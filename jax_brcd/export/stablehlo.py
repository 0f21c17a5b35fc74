"""Encoders as StableHLO, by jax.export: one program for CPUs, NVIDIA's GPUs and TPUs, of any number of images."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Shaped

from jax_brcd.encoder import HashEncoder
from jax_brcd.export.base import Material
from jax_brcd.export.trial import inputs_for, try_batches
from jax_brcd.views.augmentation import normalise

FILE = "encoder.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
BATCH = "batch"


def program_of(encoder: HashEncoder) -> jax.export.Exported:
    """Images uint8 (batch, size, size, 3), or rows float32 (batch, width), to logits and codes. It holds the weights."""
    graph, state = nnx.split(encoder.model)
    seen = encoder.preprocessing

    def call(inputs: Shaped[Array, "..."]) -> tuple[Array, Array]:
        with jax.default_matmul_precision("highest"):  # as the encoder computes
            if not encoder.over_embeddings:
                planes = jnp.transpose(inputs, (0, 3, 1, 2)) / jnp.float32(255)
                inputs = jax.vmap(lambda image: normalise(image, seen.mean, seen.std))(planes)
            logits = nnx.merge(graph, state)(inputs, train=False)
        return logits, jnp.packbits(logits > 0, axis=1)

    (batch,) = jax.export.symbolic_shape(BATCH)
    shape, dtype = (((batch, seen.width), jnp.float32) if encoder.over_embeddings else
                    ((batch, seen.size, seen.size, 3), jnp.uint8))
    return jax.export.export(jax.jit(call), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, dtype))


def write(encoder: HashEncoder, folder: pathlib.Path, material: Material) -> dict[str, Any]:
    """See TriedExporter."""
    path = folder / FILE
    path.write_bytes(program_of(encoder).serialize())
    program = jax.export.deserialize(bytearray(path.read_bytes()))

    def run(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, codes = program.call(inputs)
        return np.asarray(logits), np.asarray(codes)

    tried = try_batches(encoder, run, inputs_for(encoder, material.images))
    return {"platforms": list(PLATFORMS), "calling_convention": program.calling_convention_version, "verified": {FILE: tried}}
