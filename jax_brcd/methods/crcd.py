"""Complementary relation contrastive distillation (Zhu et al., CVPR 2021)."""

import dataclasses

from jax_brcd.losses import crcd_loss
from jax_brcd.methods.crd import CRD


@dataclasses.dataclass(frozen=True)
class CRCD(CRD):
    """CRD on relations between images in place of the images; settings, parameters and memory are CRD's."""

    contrast = staticmethod(crcd_loss)
