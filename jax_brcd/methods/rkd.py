"""Relational knowledge distillation (Park et al., CVPR 2019)."""

import dataclasses

from jaxtyping import Array, Float

from jax_brcd.losses import rkd_loss
from jax_brcd.methods.base import DistillationBatch, Metrics, Tree
from jax_brcd.methods.relations import Relations
from jax_brcd.settings.options import option


@dataclasses.dataclass(frozen=True)
class RKD(Relations):
    """Distances and angles among the teacher's outputs as targets."""

    distance_weight: float = option(25.0, "weight of the distances of pairs", low=0)
    angle_weight: float = option(50.0, "weight of the angles of triples", low=0)

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The relations of view i."""
        loss = rkd_loss(*self.related(batch), self.distance_weight, self.angle_weight, valid=batch.valid)
        return self.distillation_weight * loss, memory, {}
