"""CroVCA (Moummad et al., arXiv 2510.27584) for a student: the teacher's bits as labels, and logits that fill their space."""

import dataclasses

from jaxtyping import Array, Float

from jax_brcd.losses import bit_agreement, bits_loss, coding_rate
from jax_brcd.methods.base import BaseMethod, DistillationBatch, Metrics, Needs, Tree
from jax_brcd.settings.options import option


@dataclasses.dataclass(frozen=True)
class CroVCA(BaseMethod):
    """The student's view i is aligned with the teacher's bits of it, where CroVCA aligns two views; the rate is of its own logits."""

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)
    rate_weight: float = option(0.1, "weight of the coding rate of the student's logits within it", low=0)
    rate_epsilon: float = option(0.05, "distortion in that coding rate", above=0)
    replaces_objective: bool = option(False, "learn from the teacher alone, without the student's own contrastive objective")

    needs = Needs(student=("logits",))
    meets_teacher = True

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The weighted sum of both; the history has each before its weight, and the share of bits that are the teacher's."""
        logits, codes = batch.student["i"].logits, batch.teacher["i"].codes
        alignment = bits_loss(logits, codes, valid=batch.valid)
        rate = coding_rate(logits, self.rate_epsilon, valid=batch.valid)
        return self.distillation_weight * (alignment + self.rate_weight * rate), memory, {
            "alignment": alignment, "coding_rate": rate, "bit_agreement": bit_agreement(logits, codes, valid=batch.valid)}
