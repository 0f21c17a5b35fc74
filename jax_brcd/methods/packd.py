"""Positive-augmented contrastive distillation (PACKD, 2022): the image and its mixtures against the teacher's memory."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_brcd.losses import packd_loss
from jax_brcd.losses.memory import embed, unit_rows
from jax_brcd.methods.base import DistillationBatch, Needs, TeacherView, Tree
from jax_brcd.methods.memory import bank, linear
from jax_brcd.settings.options import option
from jax_brcd.views.derivations import Mixture


@dataclasses.dataclass(frozen=True)
class PACKD:
    """Mixtures of an image with its neighbours by the teacher's codes, which stand for the images of its class that the
    supervised method mixes, are further positives.

    The teacher's codes are embedded only where they are longer than the embedding, as published.
    """

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)
    distillation_temperature: float = option(0.07, "temperature of the distillation term", above=0)
    embedding: int = option(64, "width of the embeddings that codes are compared in", low=1)
    negatives: int = option(500, "other images that each is contrasted with in a step", low=1)
    momentum: float = option(0.5, "share of a memory's old row that stays when its image is seen", low=0, high=1)
    mixtures: int = option(1, "mixed images a view; the published hashing code has 0", low=0)
    neighbours: int = option(10, "nearest images by the teacher's codes that a view is mixed with", low=1)
    regularisation: float = option(0.1, "entropy regularisation of the transport between positives", above=0)

    @property
    def needs(self) -> Needs:
        """Negatives, and mixtures with neighbours."""
        return Needs(views=tuple(map(Mixture, range(self.mixtures))), negatives=self.negatives,
                     neighbours=self.neighbours if self.mixtures else 0)

    def init(self, teacher: TeacherView, *, seed: int) -> tuple[Tree, Tree]:
        """Parameters: the linear embeddings. Memory: the teacher's bank and which images it has seen."""
        draw = np.random.default_rng(seed)
        images, bits = teacher.codes.shape
        width = min(self.embedding, bits)
        roles = ("student", "teacher") if width < bits else ("student",)
        parameters = {role: linear(draw, bits, width) for role in roles}
        return parameters, {"bank": bank(draw, images, width), "seen": np.zeros(images, bool)}

    def loss(
        self, parameters: Tree, memory: Tree, batch: DistillationBatch, *, temperature: float
    ) -> tuple[Float[Array, ""], Tree]:
        """The contrast of view i and its mixtures; the memory moves to the teacher's codes of view i."""
        student, teacher = batch.student_codes_i[None], batch.teacher_codes_i[None]
        if self.mixtures:
            student = jnp.concatenate([student, batch.student_derived_codes])
            teacher = jnp.concatenate([teacher, batch.teacher_derived_codes])
        student = embed(student, **parameters["student"])
        teacher = embed(teacher, **parameters["teacher"]) if "teacher" in parameters else unit_rows(teacher)
        loss, memory = packd_loss(
            student, teacher, memory, batch.indices, batch.negatives, temperature=self.distillation_temperature,
            momentum=self.momentum, regularisation=self.regularisation, valid=batch.valid)
        return self.distillation_weight * loss, memory
