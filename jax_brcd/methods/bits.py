"""The teacher's bits as labels of the student's logits: binary cross-entropy, the plainest way to the teacher's codes."""

import dataclasses

from jaxtyping import Array, Float

from jax_brcd.losses import bit_agreement, bits_loss, soft_bits_loss
from jax_brcd.methods.base import BaseMethod, DistillationBatch, Metrics, Needs, Tree
from jax_brcd.settings.options import option


@dataclasses.dataclass(frozen=True)
class Bits(BaseMethod):
    """Each logit of view i learns the teacher's bit. It is added to the student's own objective as every method is; it can do
    without, and then one view an image is encoded."""

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)
    replaces_objective: bool = option(False, "learn the teacher's bits alone, without the student's own contrastive objective")
    bits_temperature: float | None = option(None, "temperature of the teacher's logits, whose sigmoid then is the label of a "
                                            "bit in place of 0 or 1", above=0)

    meets_teacher = True

    @property
    def needs(self) -> Needs:
        """The student's logits, and the teacher's codes or also its logits."""
        return Needs(student=("logits",), teacher=("codes",) if self.bits_temperature is None else ("logits", "codes"))

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The weighted cross-entropy; the history also has the share of bits that are the teacher's."""
        logits, teacher = batch.student["i"].logits, batch.teacher["i"]
        codes = teacher.codes
        loss = (bits_loss(logits, codes, valid=batch.valid) if self.bits_temperature is None else
                soft_bits_loss(logits, teacher.logits, self.bits_temperature, valid=batch.valid))
        return self.distillation_weight * loss, memory, {"bit_agreement": bit_agreement(logits, codes, valid=batch.valid)}
