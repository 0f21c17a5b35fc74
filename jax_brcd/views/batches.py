"""Which images and views each training step sees: drawn on the host from the seed alone, so both frameworks see the same."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int


class Batches(NamedTuple):
    """An epoch's steps, or one step where the leading axis is absent."""

    indices: Int[np.ndarray | Array, "*steps batch"]  # positions in the training set; 0 where not valid
    valid: Bool[np.ndarray | Array, "*steps batch"]  # False for the padding of the last batch
    views_i: Int[np.ndarray | Array, "*steps batch"]  # number of the view each image shows first
    views_j: Int[np.ndarray | Array, "*steps batch"]  # and second; never the same


def epoch_batches(n_images: int, batch_size: int, *, epoch: int, seed: int, views: int | None) -> Batches:
    """A shuffled epoch in batches of one size; the last is padded.

    Args:
        epoch: counted from 0. seed: of the stage.
        views: each image shows two distinct ones of this many kept views; None for new views each epoch, numbered on.
    """
    draw = np.random.default_rng((seed, epoch))
    steps = -(-n_images // batch_size)
    padded = np.zeros(steps * batch_size, np.int32)
    padded[:n_images] = draw.permutation(n_images)
    indices = padded.reshape(steps, batch_size)
    valid = (np.arange(steps * batch_size) < n_images).reshape(steps, batch_size)
    if views is None:
        views_i = np.full(indices.shape, 2 * epoch, np.int32)
        return Batches(indices, valid, views_i, views_i + 1)
    views_i = draw.integers(views, size=indices.shape, dtype=np.int32)
    views_j = (views_i + draw.integers(1, views, size=indices.shape, dtype=np.int32)) % views
    return Batches(indices, valid, views_i, views_j.astype(np.int32))
