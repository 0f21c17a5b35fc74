"""Random encoders and images for tests."""

import jax
import numpy as np
from flax import nnx

from jax_brcd.encoder import create_encoder
from jax_brcd.models import create_hash_model
from jax_brcd.models.variants import Preprocessing

BITS = 20
USUAL = Preprocessing(32, 36, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def random_encoder(bits=BITS, preprocessing=USUAL, seed=3, *, dtype="float32", shrink=1.0):
    """Of a random resnet8. `shrink` brings all its logits near 0, where rounding decides their signs."""
    model = create_hash_model("resnet8", bits, rngs=nnx.Rngs(seed), dtype=jax.numpy.dtype(dtype))
    if shrink != 1.0:
        features = model.backbone(jax.random.normal(jax.random.key(0), (64, 32, 32, 3)))
        kernel = np.array(model.head.kernel[...])
        mean = np.asarray(features).mean(axis=0)
        model.head.kernel.set_value(jax.numpy.asarray(kernel - np.outer(mean, mean @ kernel) / (mean @ mean) * (1 - shrink)))
        model.head.bias.set_value(jax.numpy.zeros(bits))
    encoder = create_encoder(model, "resnet8", preprocessing, bits=bits, role="student", space="teacher-1", dtype=dtype)
    return encoder.with_provenance(version="0.1.0", metrics={"map": 0.5}, digests=["a", None])


def same(codes, others):
    assert codes.bits == others.bits and codes.space == others.space
    np.testing.assert_array_equal(codes.packed, others.packed)


class Dropping(nnx.Module):
    """A user's backbone with a random stream, which no weight file holds."""

    def __init__(self, *, rngs):
        self.layer, self.dropout = nnx.Linear(3, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, images):
        return self.dropout(self.layer(images.mean(axis=(1, 2))))
