"""The teacher's bits as labels of the student's logits: binary cross-entropy, the plainest way to the teacher's codes."""

import dataclasses

from jaxtyping import Array, Float

from jax_brcd.losses import bit_agreement, bits_loss
from jax_brcd.methods.base import BaseMethod, DistillationBatch, Metrics, Needs, Tree
from jax_brcd.settings.options import option


@dataclasses.dataclass(frozen=True)
class Bits(BaseMethod):
    """Each logit of view i learns the teacher's bit. It is added to the student's own objective as every method is; it can do
    without, and then one view an image is encoded."""

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)
    replaces_objective: bool = option(False, "learn the teacher's bits alone, without the student's own contrastive objective")

    needs = Needs(student=("logits",))
    meets_teacher = True

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The weighted cross-entropy; the history also has the share of bits that are the teacher's."""
        logits, codes = batch.student["i"].logits, batch.teacher["i"].codes
        loss = bits_loss(logits, codes, valid=batch.valid)
        return self.distillation_weight * loss, memory, {"bit_agreement": bit_agreement(logits, codes, valid=batch.valid)}
