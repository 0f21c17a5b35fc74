"""Bi-half Net (Li and van Gemert, AAAI 2021), unsupervised: codes whose every bit is +1 for half of a batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_brcd.losses.similarity import similarity_loss
from jax_brcd.settings.options import option
from jax_brcd.teachers.objectives.base import HashingBatch, Sees


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def bihalf_codes(
    logits: Float[Array | np.ndarray, "rows bits"], valid: Bool[Array | np.ndarray, "rows"], gamma: float
) -> Float[Array, "rows bits"]:
    """The bi-half layer (section 3.2): in each bit the upper half of the logits is +1, the lower half -1, padding 0.

    Where the count is odd the greater half is -1, and equal logits go by row. The gradient passes unchanged and gains
    gamma (logits - codes) / (rows x bits) over the rows that are `valid`, which draws the logits to the codes.
    """
    ranks = jnp.argsort(jnp.argsort(jnp.where(valid[:, None], -logits, jnp.inf), axis=0), axis=0)
    return jnp.where(valid[:, None], jnp.where(ranks < jnp.sum(valid) // 2, 1.0, -1.0), 0.0)


def _forward(logits, valid, gamma):
    codes = bihalf_codes(logits, valid, gamma)
    return codes, (logits, codes, valid)


def _backward(gamma, residuals, gradient):
    logits, codes, valid = residuals
    pull = gamma * (logits - codes) / jnp.maximum(jnp.sum(valid) * logits.shape[1], 1)
    return jnp.where(valid[:, None], gradient + pull, 0.0), np.zeros(valid.shape, jax.dtypes.float0)


bihalf_codes.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class BiHalf:
    """Bi-half codes whose similarities are those of the features.

    gamma 6 is the authors' for CIFAR-10, Flickr25k and COCO (liyunqianggyn/Deep-Unsupervised-Image-Hashing). They learn from
    un-augmented images by SGD at 1e-4; here both views of a batch are rows of one bi-half layer, under the stage's Adam.
    """

    sees = Sees.ONE_ROW

    bihalf_gamma: float = option(6.0, "weight of the pull of Bi-half's logits to their codes", low=0)

    def loss(
        self, batch: HashingBatch, *, temperature: float, kl_weight: float
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """See LearntObjective."""
        valid, features, logits = batch.rows
        loss = similarity_loss(bihalf_codes(logits, valid, self.bihalf_gamma), features, valid)
        return loss, {"similarity": loss}
