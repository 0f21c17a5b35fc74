"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018)."""

import dataclasses

from jaxtyping import Array, Float

from jax_brcd.losses import pkt_loss
from jax_brcd.methods.base import DistillationBatch, Stateless, Tree
from jax_brcd.settings.options import option


@dataclasses.dataclass(frozen=True)
class PKT(Stateless):
    """The teacher's neighbour probabilities within a batch as targets."""

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)

    def loss(
        self, parameters: Tree, memory: Tree, batch: DistillationBatch, *, temperature: float
    ) -> tuple[Float[Array, ""], Tree]:
        """The neighbour probabilities of the codes of view i."""
        return self.distillation_weight * pkt_loss(batch.student_codes_i, batch.teacher_codes_i, valid=batch.valid), memory
