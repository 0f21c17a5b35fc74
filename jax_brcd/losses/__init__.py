"""Losses: pure functions of logits, codes and cluster indices; one file a term."""

from jax_brcd.losses.brcd import brcd_distillation_loss
from jax_brcd.losses.contrastive import bernoulli_kl, cibhash_loss, cibhash_terms, nt_xent

__all__ = ["bernoulli_kl", "brcd_distillation_loss", "cibhash_loss", "cibhash_terms", "nt_xent"]
