"""Knowledge distillation by softened distributions over the bits (Hinton et al., 2015)."""

import dataclasses

from jaxtyping import Array, Float

from jax_brcd.losses import kl_distillation_loss
from jax_brcd.methods.base import BaseMethod, DistillationBatch, Metrics, Tree
from jax_brcd.settings.options import option


@dataclasses.dataclass(frozen=True)
class KL(BaseMethod):
    """The teacher's codes as targets of a softmax over the bits."""

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)
    distillation_temperature: float = option(4.0, "temperature of the distillation term", above=0)

    meets_teacher = True

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The divergence of the codes of view i."""
        loss = kl_distillation_loss(batch.student["i"].codes, batch.teacher["i"].codes, self.distillation_temperature,
                                    valid=batch.valid)
        return self.distillation_weight * loss, memory, {}
