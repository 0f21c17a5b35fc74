"""Similarity-preserving distillation (Tung and Mori, ICCV 2019)."""

import dataclasses

from jaxtyping import Array, Float

from jax_brcd.losses import sp_loss
from jax_brcd.losses.sp import SP_VARIANTS
from jax_brcd.methods.base import DistillationBatch, Metrics, Tree
from jax_brcd.methods.relations import Relations
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.options import option


@dataclasses.dataclass(frozen=True)
class SP(Relations):
    """The similarities among the teacher's outputs as targets."""

    variant: str = option("batch", "the method as meant, or as the published code computes it", choices=SP_VARIANTS)

    def check_settings(self) -> None:
        """See Method."""
        if self.variant == "released" and self.relations_on == "features":
            raise InputError("as released it compares code with code, which features of two backbones are not; give codes or "
                             "logits, or `variant` batch", field="relations_on", value=self.relations_on)

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The similarities of view i."""
        loss = sp_loss(*self.related(batch), variant=self.variant, valid=batch.valid)
        return self.distillation_weight * loss, memory, {}
