"""No distillation: the student alone under CIBHash, the yardstick of every method."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_brcd.methods.base import DistillationBatch, Stateless, Tree


@dataclasses.dataclass(frozen=True)
class NoDistillation(Stateless):
    """Adds nothing to the student's own objective."""

    def loss(
        self, parameters: Tree, memory: Tree, batch: DistillationBatch, *, temperature: float
    ) -> tuple[Float[Array, ""], Tree]:
        """Zero."""
        return jnp.zeros(()), memory
