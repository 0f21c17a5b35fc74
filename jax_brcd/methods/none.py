"""No distillation: the student alone under CIBHash, the yardstick of every method."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_brcd.methods.base import DistillationBatch, TeacherView, Tree


@dataclasses.dataclass(frozen=True)
class NoDistillation:
    """Adds nothing to the student's own objective."""

    def init(self, teacher: TeacherView, *, seed: int) -> tuple[Tree, Tree]:
        """No parameters and no memory."""
        return {}, {}

    def loss(
        self, parameters: Tree, memory: Tree, batch: DistillationBatch, *, temperature: float
    ) -> tuple[Float[Array, ""], Tree]:
        """Zero."""
        return jnp.zeros(()), memory
