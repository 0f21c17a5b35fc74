"""Complementary relation contrastive distillation (Zhu et al., CVPR 2021)."""

import dataclasses

from jax_brcd.losses import crcd_loss
from jax_brcd.methods.crd import CRD
from jax_brcd.settings.options import option


@dataclasses.dataclass(frozen=True)
class CRCD(CRD):
    """CRD on relations between images in place of the images; settings, parameters and memory are CRD's.

    Each image is contrasted at every anchor, the images of the batch, so fewer others make as many relations.
    """

    negatives: int = option(128, "other images that each is contrasted with in a step, at every anchor", low=1)

    contrast = staticmethod(crcd_loss)
