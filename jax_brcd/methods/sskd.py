"""SSKD: the teacher's answers to which upright image a turned one belongs to (Xu et al., ECCV 2020)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_brcd.losses import sskd_loss
from jax_brcd.methods.base import DistillationBatch, Needs, Stateless, Tree
from jax_brcd.settings.options import option
from jax_brcd.views.derivations import Rotation


@dataclasses.dataclass(frozen=True)
class SSKD(Stateless):
    """Similarities between view i and its three quarter turns, of all images of a batch, as targets."""

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)
    distillation_temperature: float = option(0.5, "temperature of the distillation term", above=0)

    needs = Needs(views=(Rotation(1), Rotation(2), Rotation(3)))

    def loss(
        self, parameters: Tree, memory: Tree, batch: DistillationBatch, *, temperature: float
    ) -> tuple[Float[Array, ""], Tree]:
        """The similarities of the turned views to the upright ones."""
        student, teacher = (
            jnp.concatenate([upright[:, None], jnp.swapaxes(turned, 0, 1)], axis=1).reshape(-1, upright.shape[-1])
            for upright, turned in ((batch.student_codes_i, batch.student_derived_codes),
                                    (batch.teacher_codes_i, batch.teacher_derived_codes)))
        valid = jnp.repeat(batch.valid, 1 + len(self.needs.views))
        loss = sskd_loss(student, teacher, self.distillation_temperature, valid=valid)
        return self.distillation_weight * loss, memory
