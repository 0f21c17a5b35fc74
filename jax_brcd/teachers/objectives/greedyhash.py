"""GreedyHash (Su et al., NeurIPS 2018), unsupervised: signs whose gradient passes unchanged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_brcd.losses.contrastive import masked_mean
from jax_brcd.losses.similarity import similarity_loss
from jax_brcd.settings.options import option
from jax_brcd.teachers.objectives.base import HashingBatch, Sees


@jax.custom_jvp
def greedy_codes(logits: Float[Array | np.ndarray, "rows bits"]) -> Float[Array, "rows bits"]:
    """sign(logits); the gradient is that of the identity (section 3.2)."""
    return jnp.sign(logits)


@greedy_codes.defjvp
def _greedy_codes_jvp(primals, tangents):
    return jnp.sign(primals[0]), tangents[0]


@dataclasses.dataclass(frozen=True)
class GreedyHash:
    """Signs whose similarities are those of the features, with logits drawn to -1 and +1 (section 3.4).

    The penalty's weight 0.1 and its power 3 are the authors' (ssppp/GreedyHash, unsupervised_vgg.py). They learn from
    un-augmented images by SGD at 1e-4; here both views of a batch are rows of one loss, under the stage's Adam. Nothing
    balances the bits: where all features are alike (raw pixels, say, whose cosines are all near 1), so are all codes.
    """

    sees = Sees.ONE_ROW

    greedyhash_penalty: float = option(0.1, "weight of GreedyHash's penalty mean ||logit| - 1|^3", low=0)

    def loss(
        self, batch: HashingBatch, *, temperature: float, kl_weight: float
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """See LearntObjective."""
        valid, features, logits = batch.rows
        similarity = similarity_loss(greedy_codes(logits), features, valid)
        magnitudes = logits * jnp.sign(logits)  # |logits| whose gradient at 0 is 0, as PyTorch has it, and not 1
        penalty = masked_mean(jnp.mean(jnp.abs(magnitudes - 1.0) ** 3, axis=-1), valid)
        return similarity + self.greedyhash_penalty * penalty, {"similarity": similarity, "penalty": penalty}
