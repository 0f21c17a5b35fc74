"""Positive-augmented contrastive distillation (PACKD, 2022): the image and its mixtures against the teacher's memory."""

import dataclasses

import numpy as np
from jaxtyping import Array, Float

from jax_brcd.losses import packd_loss
from jax_brcd.losses.memory import embed, unit_rows
from jax_brcd.methods.base import BaseMethod, DistillationBatch, Metrics, Needs, TeacherKnowledge, Tree, stacked_codes
from jax_brcd.methods.memory import bank, linear
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.options import option
from jax_brcd.views.derivations import Mixture
from jax_brcd.views.outputs import VIEW_I


@dataclasses.dataclass(frozen=True)
class PACKD(BaseMethod):
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
        return Needs(views=(VIEW_I, *map(Mixture, range(self.mixtures))), negatives=self.negatives,
                     neighbours=self.neighbours if self.mixtures else 0)

    def check(self, *, images: int, streamed: bool) -> None:
        """See Method."""
        if self.mixtures and streamed:
            raise InputError("packd mixes an image with others, which do not travel with a step; give a larger `resident_mib`, "
                             "or 0 mixtures", field="mixtures", value=self.mixtures)
        super().check(images=images, streamed=streamed)

    def init(self, knowledge: TeacherKnowledge, *, seed: int) -> tuple[Tree, Tree]:
        """Parameters: the linear embeddings. Memory: the teacher's bank and which images it has seen."""
        draw = np.random.default_rng(seed)
        images, bits = knowledge.codes.shape
        width = min(self.embedding, bits)
        roles = ("student", "teacher") if width < bits else ("student",)
        parameters = {role: linear(draw, bits, width) for role in roles}
        return parameters, {"bank": bank(draw, images, width), "seen": np.zeros(images, bool)}

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The contrast of view i and its mixtures; the memory moves to the teacher's codes of view i."""
        student = embed(stacked_codes(batch.student, self.needs), **parameters["student"])
        teacher = stacked_codes(batch.teacher, self.needs)
        teacher = embed(teacher, **parameters["teacher"]) if "teacher" in parameters else unit_rows(teacher)
        loss, memory = packd_loss(
            student, teacher, memory, batch.indices, batch.negatives, temperature=self.distillation_temperature,
            momentum=self.momentum, regularisation=self.regularisation, valid=batch.valid)
        return self.distillation_weight * loss, memory, {}
