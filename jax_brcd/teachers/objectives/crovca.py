"""CroVCA (Moummad et al., arXiv 2510.27584): views agree on every bit, under a head with batch norm (docs/method.md, "CroVCA")."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import optax
from jaxtyping import Array, Float

from jax_brcd.losses import code_alignment, coding_rate
from jax_brcd.settings.options import option
from jax_brcd.teachers.objectives.base import HashingBatch, Sees


@dataclasses.dataclass(frozen=True)
class CroVCA:
    """Alignment of two views' bits and the coding rate of each view's logits, with the authors' head, optimizer and settings.

    Each view of a batch is normalised by its own statistics.
    """

    crovca_head: str = option("small", "CroVCA's head over d features: small, one hidden layer of d units, or large, two of "
                              "max(2d, 2048); each ends in batch norm", choices=("small", "large"))
    crovca_weight: float = option(0.1, "weight of CroVCA's coding rate", low=0)
    crovca_epsilon: float = option(0.05, "distortion in CroVCA's coding rate", above=0)
    crovca_weight_decay: float = option(1e-2, "weight decay of CroVCA's AdamW", low=0)
    crovca_final_lr: float = option(1e-6, "rate at which the cosine of CroVCA's AdamW ends; `teacher_lr` if that is lower", low=0)

    sees = Sees.TWO_ROWS
    proposes: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"teacher_lr": 1e-3, "teacher_epochs": 5, "teacher_batch_size": 256, "view_recipe": "crovca"})

    @property
    def head(self) -> str:
        """See head_of."""
        return f"hashcoder_{self.crovca_head}"

    def optimizer(self, learning_rate: float, steps: int) -> optax.GradientTransformation:
        """See optimizer_of: AdamW, its rate a cosine over all steps."""
        final = min(self.crovca_final_lr / learning_rate, 1.0)
        rate = optax.cosine_decay_schedule(learning_rate, max(steps, 1), final)
        return optax.adamw(rate, weight_decay=self.crovca_weight_decay)

    def loss(
        self, batch: HashingBatch, *, temperature: float, kl_weight: float
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """See LearntObjective."""
        alignment = code_alignment(batch.logits_i, batch.logits_j, valid=batch.valid)
        rates = [coding_rate(logits, self.crovca_epsilon, valid=batch.valid) for logits in (batch.logits_i, batch.logits_j)]
        rate = sum(rates) / 2
        return alignment + self.crovca_weight * rate, {"alignment": alignment, "coding_rate": rate}
