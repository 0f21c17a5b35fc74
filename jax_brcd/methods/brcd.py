"""BRCD as a method: clusters and bit masks of the teacher's codes, then its distillation loss (method.md)."""

import dataclasses

import numpy as np
from jaxtyping import Array, Float

from jax_brcd.clusters import VARIANTS, bit_masks, cluster_codes
from jax_brcd.losses import brcd_distillation_loss
from jax_brcd.methods.base import NOTHING, DistillationBatch, TeacherView, Tree
from jax_brcd.options import option


@dataclasses.dataclass(frozen=True)
class BRCD:
    """Bit-mask Robust Contrastive knowledge Distillation (He et al., WWW 2024)."""

    variant: str = option("corrected", "the method as meant, or as the published code computes it", choices=VARIANTS)
    alpha: float = option(0.8, "weight of the individual-space term against the structural one", low=0, high=1)
    margin: float = option(0.5, "agreement of a cluster's codes above which a bit steers the student", low=0, high=1)
    clusters: int = option(10, "clusters of the teacher's codes", low=1)
    cluster_restarts: int = option(30, "k-means++ starts, the best of which is kept", low=1)
    robust: bool = option(True, "drop offset positives and remove false negatives")
    mask_bits: bool = option(True, "compare codes under the bit mask of the image's cluster")
    remove_false_negatives: bool = option(False, "remove false negatives without the rest of --robust")

    needs = NOTHING

    def init(self, teacher: TeacherView, *, seed: int) -> tuple[Tree, Tree]:
        """No parameters; the memory holds each image's cluster, the centers and the bit masks."""
        clusters, centers = cluster_codes(teacher.codes, self.clusters, seed=seed, restarts=self.cluster_restarts)
        masks = bit_masks(teacher.codes, clusters, self.clusters, self.margin, self.variant)
        return {}, {"clusters": clusters, "centers": centers, "bit_mask": np.asarray(masks)}

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
