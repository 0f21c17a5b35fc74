"""Similarity-preserving distillation (Tung and Mori, ICCV 2019)."""

import dataclasses

from jaxtyping import Array, Float

from jax_brcd.losses import sp_loss
from jax_brcd.losses.sp import SP_VARIANTS
from jax_brcd.methods.base import BaseMethod, DistillationBatch, Metrics, Tree
from jax_brcd.settings.options import option


@dataclasses.dataclass(frozen=True)
class SP(BaseMethod):
    """The similarities among the teacher's codes as targets."""

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)
    variant: str = option("batch", "the method as meant, or as the published code computes it", choices=SP_VARIANTS)

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The similarities of the codes of view i."""
        loss = sp_loss(batch.student["i"].codes, batch.teacher["i"].codes, variant=self.variant, valid=batch.valid)
        return self.distillation_weight * loss, memory, {}
