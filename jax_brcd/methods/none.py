"""No distillation: the student alone under CIBHash, the yardstick of every method."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_brcd.methods.base import BaseMethod, DistillationBatch, Metrics, Needs, Tree


@dataclasses.dataclass(frozen=True)
class NoDistillation(BaseMethod):
    """Adds nothing to the student's own objective and asks the teacher nothing."""

    needs = Needs(views=())

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """Zero."""
        return jnp.zeros((), jnp.float32), memory, {}
