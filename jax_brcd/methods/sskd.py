"""SSKD: the teacher's answers to which upright image a turned one belongs to (Xu et al., ECCV 2020)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_brcd.losses import sskd_loss
from jax_brcd.methods.base import BaseMethod, DistillationBatch, Metrics, Needs, Tree, stacked_codes
from jax_brcd.settings.options import option
from jax_brcd.views.derivations import Rotation
from jax_brcd.views.outputs import VIEW_I


@dataclasses.dataclass(frozen=True)
class SSKD(BaseMethod):
    """Similarities between view i and its three quarter turns, of all images of a batch, as targets."""

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)
    distillation_temperature: float = option(0.5, "temperature of the distillation term", above=0)

    needs = Needs(views=(VIEW_I, Rotation(1), Rotation(2), Rotation(3)))

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The similarities of the turned views to the upright ones."""
        student, teacher = (
            jnp.swapaxes(stacked, 0, 1).reshape(-1, stacked.shape[-1])
            for stacked in (stacked_codes(batch.student, self.needs), stacked_codes(batch.teacher, self.needs)))
        valid = jnp.repeat(batch.valid, len(self.needs.views))
        loss = sskd_loss(student, teacher, self.distillation_temperature, valid=valid)
        return self.distillation_weight * loss, memory, {}
