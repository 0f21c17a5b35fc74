"""BRCD as a method: clusters and bit masks of the teacher's codes, then its distillation loss (method.md)."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

from jax_brcd.clusters.choice import CLUSTER_CHOICES, choose_clusters
from jax_brcd.clusters.kmeans import VARIANTS, bit_masks
from jax_brcd.losses import brcd_distillation_loss
from jax_brcd.methods.base import NOTHING, DistillationBatch, TeacherView, Tree
from jax_brcd.settings.options import option


@dataclasses.dataclass(frozen=True)
class BRCD:
    """Bit-mask Robust Contrastive knowledge Distillation (He et al., WWW 2024)."""

    variant: str = option("corrected", "the method as meant, or as the published code computes it", choices=VARIANTS)
    alpha: float = option(0.8, "weight of the individual-space term against the structural one", low=0, high=1)
    margin: float = option(0.5, "agreement of a cluster's codes above which a bit steers the student", low=0, high=1)
    clusters: int | Literal["auto"] = option(10, "clusters of the teacher's codes, or auto to choose their number", low=1)
    cluster_choice: str = option("silhouette", "how --clusters auto chooses over the data set's published range",
                                 choices=tuple(CLUSTER_CHOICES))
    cluster_restarts: int = option(30, "k-means++ starts, the best of which is kept", low=1)
    robust: bool = option(True, "drop offset positives and remove false negatives")
    mask_bits: bool = option(True, "compare codes under the bit mask of the image's cluster")
    remove_false_negatives: bool = option(False, "remove false negatives without the rest of --robust")

    needs = NOTHING

    def init(self, teacher: TeacherView, *, seed: int) -> tuple[Tree, Tree]:
        """No parameters; the memory holds each image's cluster, the centers and the bit masks.

        Under --clusters auto it also holds `cluster_scores` (choices, 2): every C that was tried and its score.
        """
        chosen = choose_clusters(teacher.codes, self.clusters, choice=self.cluster_choice,
                                 cluster_range=teacher.cluster_range, seed=seed, restarts=self.cluster_restarts)
        clusters, centers, _ = chosen.clustering
        masks = bit_masks(teacher.codes, clusters, len(centers), self.margin, self.variant)
        memory = {"clusters": clusters, "centers": centers, "bit_mask": np.asarray(masks)}
        if len(chosen.counts):
            memory["cluster_scores"] = np.stack([chosen.counts, chosen.scores], axis=1).astype(np.float32)
        return {}, memory

    def loss(
        self, parameters: Tree, memory: Tree, batch: DistillationBatch, *, temperature: float
    ) -> tuple[Float[Array, ""], Tree]:
        """BRCD's distillation term of the batch; the memory stays as it is."""
        loss = brcd_distillation_loss(
            batch.student_codes_i, batch.teacher_codes_i, batch.teacher_codes_j,
            memory["clusters"][batch.indices], memory["centers"], memory["bit_mask"],
            alpha=self.alpha, temperature=temperature, robust=self.robust, mask_bits=self.mask_bits,
            remove_false_negatives=self.remove_false_negatives, variant=self.variant, valid=batch.valid,
        )
        return loss, memory
