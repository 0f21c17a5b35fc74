"""Losses: pure functions of logits, codes, embeddings and indices; one file a term."""

from jax_brcd.losses.bits import bit_agreement, bits_loss, soft_bits_loss
from jax_brcd.losses.brcd import brcd_distillation_loss
from jax_brcd.losses.contrastive import bernoulli_kl, cibhash_loss, cibhash_terms, nt_xent
from jax_brcd.losses.crcd import crcd_loss
from jax_brcd.losses.crd import crd_loss
from jax_brcd.losses.crovca import code_alignment, coding_rate
from jax_brcd.losses.kl import kl_distillation_loss
from jax_brcd.losses.mse import mse_loss
from jax_brcd.losses.packd import packd_loss
from jax_brcd.losses.pkt import pkt_loss
from jax_brcd.losses.rkd import rkd_loss
from jax_brcd.losses.similarity import similarity_loss
from jax_brcd.losses.sp import sp_loss
from jax_brcd.losses.sskd import sskd_loss

__all__ = [
    "bernoulli_kl", "bit_agreement", "bits_loss", "brcd_distillation_loss", "cibhash_loss", "cibhash_terms", "code_alignment",
    "coding_rate", "crcd_loss", "crd_loss", "kl_distillation_loss", "mse_loss", "nt_xent", "packd_loss", "pkt_loss", "rkd_loss",
    "similarity_loss", "soft_bits_loss", "sp_loss", "sskd_loss",
]
