"""Relational knowledge distillation (Park et al., CVPR 2019)."""

import dataclasses

from jaxtyping import Array, Float

from jax_brcd.losses import rkd_loss
from jax_brcd.methods.base import BaseMethod, DistillationBatch, Metrics, Tree
from jax_brcd.settings.options import option


@dataclasses.dataclass(frozen=True)
class RKD(BaseMethod):
    """Distances and angles among the teacher's codes as targets."""

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)
    distance_weight: float = option(25.0, "weight of the distances of pairs", low=0)
    angle_weight: float = option(50.0, "weight of the angles of triples", low=0)

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The relations of the codes of view i."""
        loss = rkd_loss(batch.student["i"].codes, batch.teacher["i"].codes, self.distance_weight, self.angle_weight,
                        valid=batch.valid)
        return self.distillation_weight * loss, memory, {}
