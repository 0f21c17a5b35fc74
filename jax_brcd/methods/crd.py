"""Contrastive representation distillation with memory banks (Tian et al., ICLR 2020)."""

import dataclasses

import numpy as np
from jaxtyping import Array, Float

from jax_brcd.losses import crd_loss
from jax_brcd.losses.memory import embed
from jax_brcd.methods.base import BaseMethod, DistillationBatch, Metrics, Needs, TeacherKnowledge, Tree
from jax_brcd.methods.memory import bank, linear
from jax_brcd.settings.options import option


@dataclasses.dataclass(frozen=True)
class CRD(BaseMethod):
    """Each encoder's embedded code is told from those of other images in the other's memory."""

    distillation_weight: float = option(1.0, "weight of the distillation term", low=0)
    distillation_temperature: float = option(0.05, "temperature of the distillation term", above=0)
    embedding: int = option(128, "width of the embeddings that codes are compared in", low=1)
    negatives: int = option(500, "other images that each is contrasted with in a step", low=1)
    momentum: float = option(0.5, "share of a memory's old row that stays when its image is seen", low=0, high=1)

    contrast = staticmethod(crd_loss)

    @property
    def needs(self) -> Needs:
        """Negatives."""
        return Needs(negatives=self.negatives)

    def init(self, knowledge: TeacherKnowledge, *, seed: int) -> tuple[Tree, Tree]:
        """Parameters: a linear embedding for each encoder. Memory: a bank for each and two normalisation constants."""
        draw = np.random.default_rng(seed)
        images, bits = knowledge.codes.shape
        parameters = {role: linear(draw, bits, self.embedding) for role in ("student", "teacher")}
        banks = {role: bank(draw, images, self.embedding) for role in ("student", "teacher")}
        return parameters, {**banks, "normalisers": np.full(2, -1.0, np.float32)}

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """The contrast of the codes of view i; the memory moves to them."""
        loss, memory = self.contrast(
            embed(batch.student["i"].codes, **parameters["student"]), embed(batch.teacher["i"].codes, **parameters["teacher"]),
            memory, batch.indices, batch.negatives, temperature=self.distillation_temperature, momentum=self.momentum,
            valid=batch.valid)
        return self.distillation_weight * loss, memory, {}
