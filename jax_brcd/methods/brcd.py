"""BRCD as a method: clusters and bit masks of the teacher's codes, then its distillation loss (docs/method.md)."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

from jax_brcd.clusters.choice import CLUSTER_CHOICES, SCORE_NAMES, ClusterNeeds
from jax_brcd.clusters.kmeans import VARIANTS, bit_masks
from jax_brcd.losses import brcd_distillation_loss
from jax_brcd.methods.base import BaseMethod, DistillationBatch, Metrics, Needs, TeacherKnowledge, Tree
from jax_brcd.methods.sections import Curve, Heatmap, Section
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.options import option
from jax_brcd.views.outputs import VIEW_I, VIEW_J


@dataclasses.dataclass(frozen=True)
class BRCD(BaseMethod):
    """Bit-mask Robust Contrastive knowledge Distillation (He et al., WWW 2024)."""

    variant: str = option("corrected", "the method as meant, or as the published code computes it", choices=VARIANTS)
    alpha: float = option(0.8, "weight of the individual-space term against the structural one", low=0, high=1)
    margin: float = option(0.5, "agreement of a cluster's codes above which a bit steers the student", low=0, high=1)
    clusters: int | Literal["auto"] = option(10, "clusters of the teacher's codes, or auto to choose their number", low=1)
    cluster_choice: str = option("silhouette", "how `clusters` auto chooses over the data set's published range",
                                 choices=tuple(CLUSTER_CHOICES))
    cluster_restarts: int = option(30, "k-means++ starts, the best of which is kept", low=1)
    robust: bool = option(True, "drop offset positives and remove false negatives")
    mask_bits: bool = option(True, "compare codes under the bit mask of the image's cluster")
    remove_false_negatives: bool = option(False, "remove false negatives without the rest of `robust`, which is to be off")

    meets_teacher = True
    reads_temperature = True

    @property
    def needs(self) -> Needs:
        """Both views, of which the student sees the first, and clusters of the teacher's codes."""
        return Needs(views=(VIEW_I, VIEW_J), unseen=(VIEW_J,),
                     clusters=ClusterNeeds(self.clusters, self.cluster_choice, self.cluster_restarts))

    def check_settings(self) -> None:
        """See Method."""
        if self.robust and self.remove_false_negatives:
            raise InputError("`robust` does this already; leave it out, or put `robust` off", field="remove_false_negatives",
                             value=True)

    def init(self, knowledge: TeacherKnowledge, *, seed: int) -> tuple[Tree, Tree]:
        """No parameters; the memory holds each image's cluster, the centers and the bit masks.

        Where their number was chosen it also holds `cluster_scores` (choices, 2): every C that was tried, and its score.

        Raises:
            InputError: for a clustering that is missing.
        """
        if knowledge.clustering is None:
            raise InputError("BRCD learns from clusters of the teacher's codes, and none are given; make them by "
                             "TeacherKnowledge.of", field="clustering")
        (clusters, centers, _), counts, scores = knowledge.clustering
        masks = bit_masks(knowledge.codes, clusters, len(centers), self.margin, self.variant)
        memory = {"clusters": clusters, "centers": centers, "bit_mask": np.asarray(masks)}
        if len(counts):
            memory["cluster_scores"] = np.stack([counts, scores], axis=1).astype(np.float32)
        return {}, memory

    def report(self, memory: Tree) -> list[Section]:
        """The bit masks with the sizes of their clusters, and where C was chosen, the scores of all that were tried."""
        mask, clusters = np.asarray(memory["bit_mask"]), np.asarray(memory["clusters"])
        count, bits = mask.shape
        sizes = np.bincount(clusters, minlength=count)
        sections: list[Section] = [Heatmap(
            "bit_masks", f"Bit masks: a dark bit steers its cluster's images ({mask.mean():.0%} of {count} x {bits})", mask,
            tuple(f"cluster {number}: {size:,} images, {int(kept)} bits"
                  for number, (size, kept) in enumerate(zip(sizes, mask.sum(axis=1), strict=True))), "bit")]
        if "cluster_scores" in memory:
            counts, scores = np.asarray(memory["cluster_scores"]).T
            sections.append(Curve(
                "number_of_clusters", f"Number of clusters by {self.cluster_choice}", counts.astype(int), scores, "clusters",
                SCORE_NAMES.get(self.cluster_choice, self.cluster_choice), marked=count, mark=f"chosen: {count}"))
        return sections

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """BRCD's distillation term of the batch; the memory stays as it is."""
        loss = brcd_distillation_loss(
            batch.student["i"].codes, batch.teacher["i"].codes, batch.teacher["j"].codes,
            memory["clusters"][batch.indices], memory["centers"], memory["bit_mask"],
            alpha=self.alpha, temperature=batch.temperature, robust=self.robust, mask_bits=self.mask_bits,
            remove_false_negatives=self.remove_false_negatives, variant=self.variant, valid=batch.valid,
        )
        return loss, memory, {}
