"""What the methods share that relate the images of a batch to each other, within the teacher and within the student."""

import dataclasses

from jaxtyping import Array, Float

from jax_brcd.methods.base import BaseMethod, DistillationBatch, Needs
from jax_brcd.settings.options import option

RELATED = ("codes", "logits", "features")


@dataclasses.dataclass(frozen=True)
class Relations(BaseMethod):
    """Relations are of any outputs, also of features of different widths."""

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)
    relations_on: str = option("codes", "which outputs of a batch are related to each other", choices=RELATED)

    @property
    def needs(self) -> Needs:
        """The chosen outputs of view i."""
        return Needs(student=(self.relations_on,), teacher=(self.relations_on,))

    def related(self, batch: DistillationBatch) -> tuple[Float[Array, "batch width"], Float[Array, "batch other"]]:
        """The student's and the teacher's."""
        return tuple(getattr(outputs["i"], self.relations_on) for outputs in (batch.student, batch.teacher))
