"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018)."""

import dataclasses

from jaxtyping import Array, Float

from jax_brcd.losses import pkt_loss
from jax_brcd.methods.base import BaseMethod, DistillationBatch, Metrics, Tree
from jax_brcd.settings.options import option


@dataclasses.dataclass(frozen=True)
class PKT(BaseMethod):
    """The teacher's neighbour probabilities within a batch as targets."""

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The neighbour probabilities of the codes of view i."""
        loss = pkt_loss(batch.student["i"].codes, batch.teacher["i"].codes, valid=batch.valid)
        return self.distillation_weight * loss, memory, {}
