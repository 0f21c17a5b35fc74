"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018)."""

import dataclasses

from jaxtyping import Array, Float

from jax_brcd.losses import pkt_loss
from jax_brcd.methods.base import DistillationBatch, Metrics, Tree
from jax_brcd.methods.relations import Relations


@dataclasses.dataclass(frozen=True)
class PKT(Relations):
    """The teacher's neighbour probabilities within a batch as targets."""

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The neighbour probabilities of view i."""
        loss = pkt_loss(*self.related(batch), valid=batch.valid)
        return self.distillation_weight * loss, memory, {}
