"""CIBHash (Qiu et al., IJCAI 2021), the published teacher: contrast of two views' codes (docs/method.md, "The teacher")."""

import dataclasses

from jaxtyping import Array, Float

from jax_brcd.losses import cibhash_terms
from jax_brcd.teachers.objectives.base import HashingBatch, Sees


@dataclasses.dataclass(frozen=True)
class CIBHash:
    """NT-Xent of the codes and the Bernoulli KL. Its temperature and KL weight are those of the teacher's stage."""

    sees = Sees.TWO_VIEWS
    reads_temperature = True

    def loss(
        self, batch: HashingBatch, *, temperature: float, kl_weight: float
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """See LearntObjective."""
        contrastive, kl = cibhash_terms(batch.logits_i, batch.logits_j, temperature=temperature, valid=batch.valid)
        return contrastive + kl_weight * kl, {"contrastive": contrastive, "kl": kl}
