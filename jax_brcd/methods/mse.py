"""Mean squared error of the logits, or of the features through a learnt linear map (FitNets, Romero et al., ICLR 2015)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_brcd.losses import mse_loss
from jax_brcd.methods.base import BaseMethod, DistillationBatch, Metrics, Needs, TeacherKnowledge, Tree
from jax_brcd.methods.memory import linear
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.options import option

LOGITS, FEATURES = "logits", "features"


@dataclasses.dataclass(frozen=True)
class MSE(BaseMethod):
    """The student says what the teacher says, in numbers: of view i, before the sign is taken.

    FitNets' hint is a middle layer; here it is the last one, what the hash head is applied to, and its regressor is a linear
    map from the student's width to the teacher's, which is learnt with the student and dropped afterwards.
    """

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)
    mse_on: str = option(LOGITS, "what the student regresses: the teacher's logits, or its features through a linear map",
                         choices=(LOGITS, FEATURES))

    @property
    def needs(self) -> Needs:
        """The chosen outputs of both encoders."""
        return Needs(student=(self.mse_on,), teacher=(self.mse_on,))

    @property
    def meets_teacher(self) -> bool:
        """Logits are of the teacher's bits, features of none."""
        return self.mse_on == LOGITS

    def init(self, knowledge: TeacherKnowledge, *, seed: int) -> tuple[Tree, Tree]:
        """Parameters: the linear map of features; none for logits.

        Raises:
            InputError: for features whose widths are unknown.
        """
        if self.mse_on == LOGITS:
            return {}, {}
        if None in (knowledge.student_features, knowledge.teacher_features):
            raise InputError("the features of both encoders are needed and not given; give 'logits'", field="mse_on",
                             value=self.mse_on)
        return {"map": linear(np.random.default_rng(seed), knowledge.student_features, knowledge.teacher_features)}, {}

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The weighted error; `mse` in the history is without the weight."""
        student, teacher = (getattr(outputs["i"], self.mse_on) for outputs in (batch.student, batch.teacher))
        if "map" in parameters:
            student = jnp.asarray(student, jnp.float32) @ parameters["map"]["kernel"] + parameters["map"]["bias"]
        error = mse_loss(student, teacher, valid=batch.valid)
        return self.distillation_weight * error, memory, {"mse": error}
