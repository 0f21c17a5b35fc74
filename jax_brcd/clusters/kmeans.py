"""Clusters of the teacher's codes, and the bits they agree on (docs/method.md, "What the student sees before training")."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, ScalarLike

from jax_brcd.runtime.errors import InputError, UnknownName
from jax_brcd.runtime.registry import unknown_name

VARIANTS = ("corrected", "released")
CANDIDATES = 4  # of which k-means++ takes the best for each center (greedy k-means++; 2 + ln C is usual)
ITERATIONS, TOLERANCE = 300, 1e-4  # scikit-learn's: centers move less than this part of the codes' mean variance


class Clustering(NamedTuple):
    """A partition of images by their codes."""

    clusters: Int[np.ndarray, "images"]  # each image's cluster
    centers: Float[np.ndarray, "clusters bits"]  # real-valued means
    inertia: float  # sum of squared distances to the centers


def k_means(
    codes: Float[np.ndarray, "images bits"], n_clusters: int, *, seed: int, restarts: int = 30, capacity: int | None = None
) -> Clustering:
    """k-means of codes: k-means++ with `restarts` starts, the best of which is kept.

    A cluster may stay empty where fewer than `n_clusters` codes are distinct; its center is then a repeated code.

    Args:
        capacity: room for this many clusters, so that one compiled program serves every number up to it.

    Raises:
        InputError: for fewer images than clusters, and for what are no codes (see `checked_codes`).
    """
    check_count(n_clusters, len(codes))
    codes = checked_codes(codes)
    distinct = np.unique(codes, axis=0)
    if len(distinct) <= n_clusters:
        return _cluster_distinct(codes, distinct, n_clusters)
    found = _restarted_k_means(jnp.asarray(codes, jnp.float32), jnp.int32(n_clusters), jax.random.key(seed),
                               capacity=capacity or n_clusters, restarts=restarts)
    clusters, centers, inertia = map(np.array, found)
    return Clustering(clusters, centers[:n_clusters], float(inertia))


def check_count(n_clusters: int, images: int) -> None:
    """Raises InputError where so many images have no such number of clusters."""
    if n_clusters > images:
        raise InputError(f"more clusters than the {images} training images; give fewer", field="clusters", value=n_clusters)
    if n_clusters < 1:
        raise InputError("too small; give 1 or more", field="clusters", value=n_clusters)


def checked_codes(codes: Float[np.ndarray, "images bits"]) -> Float[np.ndarray, "images bits"]:
    """The codes as they are, where they are codes of -1, 0 and +1.

    Raises:
        InputError: for values that are not finite, and for bits of 0 and 1, whose clusters and means are not those of codes.
    """
    if not np.isfinite(codes).all():
        raise InputError("not finite everywhere; give codes of -1 and +1", field="codes")
    if codes.size and not (codes < 0).any() and (codes == 0).any():
        raise InputError("bits of 0 and 1 where codes of -1 and +1 are meant; give 2 * codes - 1", field="codes")
    return codes


def _cluster_distinct(codes, distinct, n_clusters) -> Clustering:
    """Every distinct code is a cluster of its own; the clusters left over repeat the last one's center."""
    repeats = np.minimum(np.arange(n_clusters), len(distinct) - 1)
    clusters = np.argmax((codes[:, None, :] == distinct[None, :, :]).all(-1), axis=1)
    return Clustering(clusters.astype(np.int32), distinct[repeats].astype(np.float32), 0.0)


def _squared_distances(
    codes: Float[Array, "images bits"], centers: Float[Array, "centers bits"]
) -> Float[Array, "images centers"]:
    """By one matrix product, in full float32 where the device would round its operands."""
    products = jnp.matmul(codes, centers.T, precision="highest")
    return jnp.maximum(jnp.sum(codes**2, axis=-1)[:, None] - 2 * products + jnp.sum(centers**2, axis=-1), 0.0)


def _plus_plus(
    codes: Float[Array, "images bits"], n_clusters: Int[Array, ""], key: Key[Array, ""], capacity: int
) -> Float[Array, "capacity bits"]:
    """Greedy k-means++ (Arthur and Vassilvitskii, SODA 2007): each next center is the best of a few codes drawn in
    proportion to their squared distance to the nearest center so far."""
    first = codes[jax.random.randint(jax.random.fold_in(key, 0), (), 0, len(codes), jnp.int32)]
    centers = jnp.zeros((capacity, codes.shape[1]), codes.dtype).at[0].set(first)

    def add(number, state):
        centers, nearest = state
        drawn = codes[jax.random.categorical(jax.random.fold_in(key, number), jnp.log(nearest), shape=(CANDIDATES,))]
        distances = jnp.minimum(nearest[:, None], _squared_distances(codes, drawn))
        best = jnp.argmin(distances.sum(axis=0))
        return centers.at[number].set(drawn[best]), distances[:, best]

    return jax.lax.fori_loop(1, n_clusters, add, (centers, _squared_distances(codes, first[None])[:, 0]))[0]


@functools.partial(jax.jit, static_argnames=("capacity", "restarts"))
def _restarted_k_means(
    codes: Float[Array, "images bits"], n_clusters: Int[Array, ""], key: Key[Array, ""], *, capacity: int, restarts: int
) -> tuple[Int[Array, "images"], Float[Array, "capacity bits"], Float[Array, ""]]:
    """Clusters, centers and inertia of the best restart. All restarts move together: a step of Lloyd's algorithm is two
    matrix products, of the codes with every center and of every membership with the codes."""
    starts = jax.vmap(lambda key: _plus_plus(codes, n_clusters, key, capacity))(jax.random.split(key, restarts))
    absent = jnp.where(jnp.arange(capacity) < n_clusters, 0.0, jnp.inf).astype(codes.dtype)
    tolerance = TOLERANCE * jnp.mean(jnp.var(codes, axis=0))

    def assign(centers):
        distances = _squared_distances(codes, centers.reshape(-1, codes.shape[1]))
        distances = distances.reshape(len(codes), restarts, capacity) + absent
        return jnp.argmin(distances, axis=-1), jnp.sum(jnp.min(distances, axis=-1), axis=0)

    def means(clusters, centers):
        members = jax.nn.one_hot(clusters, capacity, dtype=codes.dtype).reshape(len(codes), -1)
        sums = jnp.matmul(members.T, codes, precision="highest").reshape(centers.shape)
        sizes = jnp.sum(members, axis=0).reshape(restarts, capacity, 1)
        return jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1), centers)

    def step(state):
        centers, _, number = state
        moved = means(assign(centers)[0], centers)
        return moved, jnp.max(jnp.sum((moved - centers) ** 2, axis=(1, 2))), number + 1

    def moving(state):
        return (state[1] > tolerance) & (state[2] < ITERATIONS)

    centers, _, _ = jax.lax.while_loop(moving, step, (starts, jnp.float32(jnp.inf), 0))
    clusters, inertia = assign(centers)
    best = jnp.argmin(inertia)
    return clusters[:, best].astype(jnp.int32), centers[best], inertia[best]


def check_variant(variant: str) -> None:
    """Raises UnknownName for a variant of BRCD that there is not."""
    if variant not in VARIANTS:
        raise UnknownName(unknown_name("variant", variant, VARIANTS))


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
        InputError: for an unknown variant, and for what are no codes (see `checked_codes`).
    """
    check_variant(variant)
    codes = jnp.asarray(codes if isinstance(codes, jax.core.Tracer) else checked_codes(np.asarray(codes)), jnp.float32)
    if variant == "released":
        return jnp.zeros((n_clusters, codes.shape[1]), jnp.float32)
    sums = jax.ops.segment_sum(codes, jnp.asarray(clusters), n_clusters)
    sizes = jax.ops.segment_sum(jnp.ones(codes.shape[0], jnp.float32), jnp.asarray(clusters), n_clusters)
    agreement = jnp.abs(sums) / jnp.maximum(sizes, 1)[:, None]
    return (agreement > margin).astype(jnp.float32)
