"""How many clusters: k-means over a range of C, and the C that the silhouette or the elbow picks (method.md, "What the student
sees before training")."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from jax_brcd.clusters.kmeans import Clustering, k_means
from jax_brcd.runtime.registry import Registry

AUTO = "auto"
ROWS_AT_ONCE = 1024
CAPACITY_STEP = 16  # one compiled k-means serves this many numbers of clusters


class ClusterChoice(NamedTuple):
    """The chosen clustering, and what was compared (nothing where the number was given)."""

    clustering: Clustering
    counts: Int[np.ndarray, "choices"]  # every C that was tried
    scores: Float[np.ndarray, "choices"]  # what the rule looks at, for each


# (codes, clusters under each choice, inertia of each, counts) -> (the score of each choice, the place of the chosen one)
Rule = Callable[..., tuple[Float[np.ndarray, "choices"], int]]
CLUSTER_CHOICES: Registry[Rule] = Registry("cluster choice")


@CLUSTER_CHOICES.register("silhouette")
def by_silhouette(codes, clusters, inertias, counts):
    """The C of the highest mean silhouette; the lower C where two are as high."""
    scores = np.asarray(silhouettes(jnp.asarray(codes, jnp.float32), jnp.asarray(clusters), capacity=int(max(counts))))
    return scores, int(np.argmax(scores))


@CLUSTER_CHOICES.register("elbow")
def by_elbow(codes, clusters, inertias, counts):
    """The elbow of the mean squared distance to the center (inertia an image).

    It is the C whose point lies farthest below the chord from the curve's first point to its last, both axes scaled to
    [0, 1] (Satopaa et al., 2011, "Kneedle"); the lower C where two lie as far.
    """
    scores = np.asarray(inertias, np.float64) / len(codes)
    fall = scores[0] - scores[-1]
    if fall <= 0:
        return scores, 0
    chord = 1 - (counts - counts[0]) / max(counts[-1] - counts[0], 1)
    return scores, int(np.argmax(np.round(chord - (scores - scores[-1]) / fall, 12)))


@functools.partial(jax.jit, static_argnames="capacity")
def silhouettes(
    codes: Float[Array, "images bits"], clusters: Int[Array, "choices images"], *, capacity: int
) -> Float[Array, "choices"]:
    """Mean silhouette (Rousseeuw, 1987) of each clustering under the Euclidean distance; `capacity` bounds their clusters.

    An image at mean distance a to the others of its cluster and b to those of the nearest other cluster scores
    (b - a) / max(a, b); one that is alone in its cluster scores 0. The distances of an image are made once for all choices.
    """
    members = jax.nn.one_hot(clusters, capacity)  # (choices, images, capacity)
    sizes = jnp.sum(members, axis=1)
    squares = jnp.sum(codes**2, axis=-1)

    def of_image(row):
        code, own = row
        squared = squares + jnp.sum(code**2) - 2 * jnp.matmul(codes, code, precision="highest")
        distances = jnp.sqrt(jnp.maximum(squared, 0.0))
        sums = jnp.einsum("n,cnk->ck", distances, members, precision="highest")
        is_own = jnp.arange(capacity) == own[:, None]
        inside, size = (jnp.sum(part * is_own, axis=-1) for part in (sums, sizes))
        a = inside / jnp.maximum(size - 1, 1)
        b = jnp.min(jnp.where(is_own | (sizes == 0), jnp.inf, sums / jnp.maximum(sizes, 1)), axis=-1)
        largest = jnp.maximum(a, b)
        return jnp.where((size > 1) & (largest > 0), (b - a) / jnp.where(largest > 0, largest, 1.0), 0.0)

    return jnp.mean(jax.lax.map(of_image, (codes, clusters.T), batch_size=ROWS_AT_ONCE), axis=0)


def choose_clusters(
    codes: Float[np.ndarray, "images bits"],
    clusters: int | str,
    *,
    choice: str = "silhouette",
    cluster_range: tuple[int, int],
    seed: int,
    restarts: int = 30,
) -> ClusterChoice:
    """Clusters of codes: `clusters` of them, or for "auto" as many as `choice` picks.

    Args:
        choice: a name in CLUSTER_CHOICES. cluster_range: the first and the last C to try. Both serve "auto" alone. Where the
            codes are too few for the range (a C needs more distinct codes than clusters), it ends early, and where they
            are too few for its first C, every distinct code is a cluster.

    Raises:
        InputError: for fewer images than clusters and an unknown choice.
    """
    if clusters != AUTO:
        return ClusterChoice(k_means(codes, clusters, seed=seed, restarts=restarts), np.zeros(0, np.int32), np.zeros(0))
    rule, (low, high) = CLUSTER_CHOICES[choice], cluster_range
    distinct = len(np.unique(codes, axis=0))
    if distinct <= low:
        return ClusterChoice(k_means(codes, distinct, seed=seed), np.zeros(0, np.int32), np.zeros(0))
    counts = np.arange(low, min(high, distinct - 1) + 1, dtype=np.int32)
    found = [k_means(codes, int(count), seed=seed, restarts=restarts,
                     capacity=min(-(-int(count) // CAPACITY_STEP) * CAPACITY_STEP, int(counts[-1])))
             for count in tqdm(counts, desc="clusters", unit="C", dynamic_ncols=True)]
    scores, place = rule(codes, np.stack([each.clusters for each in found]), [each.inertia for each in found], counts)
    return ClusterChoice(found[place], counts, scores)
