"""Clusters of the teacher's codes and the bits each cluster agrees on (method.md, "What the student sees before training")."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, ScalarLike
from sklearn.cluster import KMeans

from jax_brcd.errors import InputError
from jax_brcd.registry import unknown_name

VARIANTS = ("corrected", "released")


def cluster_codes(
    codes: Float[np.ndarray, "images bits"], n_clusters: int, *, seed: int, restarts: int = 30
) -> tuple[Int[np.ndarray, "images"], Float[np.ndarray, "clusters bits"]]:
    """k-means of codes: each image's cluster and the real-valued cluster means.

    k-means++ with `restarts` starts, the best of which is kept. A cluster may stay empty where fewer than `n_clusters`
    codes are distinct; its center is then a repeated code.

    Raises:
        InputError: for fewer images than clusters.
    """
    if n_clusters > len(codes):
        raise InputError(f"--clusters {n_clusters}: more clusters than the {len(codes)} training images; give fewer")
    if n_clusters < 1:
        raise InputError(f"--clusters {n_clusters}: too small; give 1 or more")
    distinct = np.unique(codes, axis=0)
    if len(distinct) <= n_clusters:
        return _cluster_distinct(codes, distinct, n_clusters)
    means = KMeans(n_clusters, init="k-means++", n_init=restarts, random_state=seed).fit(codes.astype(np.float64))
    return means.labels_.astype(np.int32), means.cluster_centers_.astype(np.float32)


def _cluster_distinct(codes, distinct, n_clusters):
    """Every distinct code is a cluster of its own; the clusters left over repeat the last one's center."""
    repeats = np.minimum(np.arange(n_clusters), len(distinct) - 1)
    clusters = np.argmax((codes[:, None, :] == distinct[None, :, :]).all(-1), axis=1)
    return clusters.astype(np.int32), distinct[repeats].astype(np.float32)


def nearest_center(
    codes: Float[Array, "batch bits"], centers: Float[Array, "clusters bits"]
) -> Int[Array, "batch"]:
    """Index of the center at the smallest Euclidean distance; the lower index where two are as near."""
    differences = codes[:, None, :] - centers[None, :, :]
    return jnp.argmin(jnp.sum(differences * differences, axis=-1), axis=-1)


def bit_masks(
    codes: Float[Array, "images bits"] | Float[np.ndarray, "images bits"],
    clusters: Int[Array, "images"] | Int[np.ndarray, "images"],
    n_clusters: int,
    margin: ScalarLike,
    variant: str = "corrected",
) -> Float[Array, "clusters bits"]:
    """Bits that steer each cluster: 1 where |mean of the cluster's codes| > margin, else 0.

    `released` is all zeros, as the published lines leave it. An empty cluster has no bit that its images agree on: 0.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(unknown_name("variant", variant, VARIANTS))
    codes = jnp.asarray(codes)
    if variant == "released":
        return jnp.zeros((n_clusters, codes.shape[1]), jnp.float32)
    sums = jax.ops.segment_sum(codes, jnp.asarray(clusters), n_clusters)
    sizes = jax.ops.segment_sum(jnp.ones(codes.shape[0]), jnp.asarray(clusters), n_clusters)
    agreement = jnp.abs(sums) / jnp.maximum(sizes, 1)[:, None]
    return (agreement > margin).astype(jnp.float32)
