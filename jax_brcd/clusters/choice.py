"""How many clusters: k-means over a range of C, and the C that the silhouette or the elbow picks (docs/method.md, "What the
student sees before training")."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_brcd.clusters.kmeans import Clustering, check_count, checked_codes, k_means
from jax_brcd.runtime import interruption
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.progress import Progress, silent
from jax_brcd.runtime.registry import Registry

AUTO = "auto"
ROWS_AT_ONCE = 1024
CAPACITY_STEP = 16  # one compiled k-means serves this many numbers of clusters
# The first and the last C that BRCD tries for each data set (He et al., WWW 2024), and where nothing is published
PUBLISHED_RANGES: Mapping[str, tuple[int, int]] = {"cifar10": (2, 14), "coco": (2, 49), "imagenet100": (10, 59)}
DEFAULT_RANGE = (2, 30)


def published_range(dataset: str) -> tuple[int, int]:
    """The numbers of clusters to try for a data set by its name, both included."""
    return PUBLISHED_RANGES.get(dataset, DEFAULT_RANGE)


class ClusterChoice(NamedTuple):
    """The chosen clustering, and what was compared (nothing where the number was given)."""

    clustering: Clustering
    counts: Int[np.ndarray, "choices"]  # every C that was tried
    scores: Float[np.ndarray, "choices"]  # what the rule looks at, for each

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as named arrays, to be stored; `ClusterChoice.from_arrays` takes them back."""
        return {**{name: np.asarray(value) for name, value in self.clustering._asdict().items()},
                "counts": self.counts, "scores": self.scores}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "ClusterChoice":
        """What `arrays` gave."""
        clustering = Clustering(arrays["clusters"], arrays["centers"], float(arrays["inertia"]))
        return cls(clustering, arrays["counts"], arrays["scores"])


# (codes, clusters under each choice, inertia of each, counts) -> (the score of each choice, the place of the chosen one)
Rule = Callable[..., tuple[Float[np.ndarray, "choices"], int]]
CLUSTER_CHOICES: Registry[Rule] = Registry("cluster choice")
# What the scores of a rule are called; those of another rule bear its name
SCORE_NAMES: Mapping[str, str] = {"silhouette": "mean silhouette", "elbow": "mean squared distance to the center"}


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
    (b - a) / max(a, b); one that is alone in its cluster scores 0, and so does one whose cluster is the only one. The distances
    of an image are made once for all choices.
    """
    members = jax.nn.one_hot(clusters, capacity, dtype=codes.dtype)  # (choices, images, capacity)
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
        scored = (size > 1) & (largest > 0) & jnp.isfinite(b)
        return jnp.where(scored, (b - a) / jnp.where(scored, largest, 1.0), 0.0)

    return jnp.mean(jax.lax.map(of_image, (codes, clusters.T), batch_size=ROWS_AT_ONCE), axis=0)


@dataclasses.dataclass(frozen=True)
class ClusterNeeds:
    """Which clusters of the teacher's codes a method learns from."""

    count: int | Literal["auto"]
    choice: str = "silhouette"  # how "auto" chooses, a name in CLUSTER_CHOICES
    restarts: int = 30  # k-means++ starts

    def check(self, images: int) -> None:
        """Raises InputError where so many images have no such clusters, and for an unknown choice."""
        CLUSTER_CHOICES[self.choice]
        if self.count != AUTO:
            check_count(self.count, images)


def make_clusters(
    codes: Float[np.ndarray, "images bits"], needs: ClusterNeeds, *, cluster_range: tuple[int, int], seed: int,
    progress: Progress = silent,
) -> ClusterChoice:
    """The clusters of the teacher's codes that a method needs: a pure function of its arguments.

    Args:
        cluster_range: the first and the last C that "auto" tries; see `published_range` for that of a data set.

    Raises:
        InputError: as `choose_clusters`.
    """
    return choose_clusters(codes, needs.count, choice=needs.choice, cluster_range=cluster_range, seed=seed,
                           restarts=needs.restarts, progress=progress)


def choose_clusters(
    codes: Float[np.ndarray, "images bits"],
    clusters: int | str,
    *,
    choice: str = "silhouette",
    cluster_range: tuple[int, int],
    seed: int,
    restarts: int = 30,
    progress: Progress = silent,
) -> ClusterChoice:
    """Clusters of codes: `clusters` of them, or for "auto" as many as `choice` picks.

    Args:
        choice: a name in CLUSTER_CHOICES. cluster_range: the first and the last C to try. Both serve "auto" alone. Where the
            codes are too few for the range (a C needs more distinct codes than clusters), it ends early, and where they
            are too few for its first C, every distinct code is a cluster.
        progress: told how many numbers of clusters "auto" has tried.

    Raises:
        InputError: for fewer images than clusters, an unknown choice, a range that is none, and what are no codes.
    """
    if clusters != AUTO:
        return ClusterChoice(k_means(codes, clusters, seed=seed, restarts=restarts), np.zeros(0, np.int32), np.zeros(0))
    rule, (low, high) = CLUSTER_CHOICES[choice], cluster_range
    if not 1 <= low <= high:
        raise InputError("no range of numbers of clusters; give the first and the last to try, from 1 on",
                         field="cluster_range", value=cluster_range)
    codes = checked_codes(codes)
    distinct = len(np.unique(codes, axis=0))
    if distinct <= low:
        return ClusterChoice(k_means(codes, distinct, seed=seed), np.zeros(0, np.int32), np.zeros(0))
    counts = np.arange(low, min(high, distinct - 1) + 1, dtype=np.int32)
    found = []
    for number, count in enumerate(counts.tolist()):
        interruption.check()
        progress("clusters", number, len(counts))
        capacity = min(-(-count // CAPACITY_STEP) * CAPACITY_STEP, int(counts[-1]))
        found.append(k_means(codes, count, seed=seed, restarts=restarts, capacity=capacity))
    progress("clusters", len(counts), len(counts))
    scores, place = rule(codes, np.stack([each.clusters for each in found]), [each.inertia for each in found], counts)
    return ClusterChoice(found[place], counts, scores)
