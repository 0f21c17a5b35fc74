"""Contrastive terms over two views: NT-Xent, the Bernoulli KL and CIBHash, their sum (docs/method.md, "The teacher")."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from jax_brcd.losses.codes import hash_codes
from jax_brcd.losses.numbers import checked_temperature
from jax_brcd.runtime.errors import InputError

AnyArray = Array | np.ndarray
Tree = Any
Halves = Sequence[Array] | None
Blocks = tuple[Bool[Array, "half half"], Bool[Array, "half half"], Bool[Array, "half half"]]
COSINE_EPSILON = 1e-8
LOG_EPSILON = 1e-8
FALSE_NEGATIVE_BIAS = -1000.0
# Below it exp(cosine / temperature) does not fit float32 on the scale of the largest one
SHARED_SCALE_TEMPERATURE = 0.05
# Rows up to which all similarities are held at once, and rows a block beyond
WHOLE_ROWS, BLOCK_ROWS = 2048, 256


def normalise(rows: Float[AnyArray, "*rows bits"]) -> Float[Array, "*rows bits"]:
    """Rows over max(norm, 1e-8); the gradient of an all-zero row is finite, as PyTorch's CosineSimilarity has it."""
    squares = jnp.sum(rows * rows, axis=-1, keepdims=True)
    return rows / jnp.sqrt(jnp.maximum(squares, COSINE_EPSILON**2))


def masked_mean(values: Float[Array, "*shape"], valid: Bool[AnyArray, "*shape"] | None) -> Float[Array, ""]:
    """Mean of the values that are `valid` (all of them for None); 0 where none is."""
    if valid is None:
        return jnp.mean(values)
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def paired_cross_entropy(
    rows: Float[Array, "rows bits"],
    temperature: ScalarLike,
    *,
    positive_logits: Float[AnyArray, "rows"] | None = None,
    row_clusters: Int[AnyArray, "rows"] | None = None,
    column_clusters: Int[AnyArray, "rows"] | None = None,
    valid: Bool[AnyArray, "rows"] | None = None,
    block_rows: int | None = None,
) -> Float[Array, ""]:
    """Mean cross-entropy of each row's positive against all other rows.

    The rows are two stacked halves; the positive of row a is row (a + rows/2) mod rows, all others but a itself are its
    negatives, and logits are cosine similarities over `temperature`.

    Args:
        positive_logits: stand in place of the positives' own similarities.
        row_clusters, column_clusters: given together; a negative (a, b) with row_clusters[a] == column_clusters[b] is a
            false negative and gets -1000.
        valid: rows that count; the padding of a partial batch neither counts nor serves as a negative.
        block_rows: rows whose similarities to all others are held at once, in the gradient too, where they are computed
            again; the values are the same for any number. None: all rows up to WHOLE_ROWS of them, BLOCK_ROWS beyond.

    Raises:
        InputError: for a temperature that is not above 0 and for blocks without a row.
    """
    if block_rows is not None and block_rows < 1:
        raise InputError("too small; give 1 or more rows", field="block_rows", value=block_rows)
    temperature, count = checked_temperature(temperature), rows.shape[0]
    unit = normalise(rows)
    index = jnp.arange(count)
    positive_index = (index + count // 2) % count
    if positive_logits is None:
        positive_logits = jnp.sum(unit * unit[positive_index], axis=-1) / temperature

    def cross_entropies(block):
        own, own_index, own_positive, own_positive_logits, own_clusters = block
        logits = own @ unit.T / temperature
        if own_clusters is not None:
            logits += FALSE_NEGATIVE_BIAS * (own_clusters[:, None] == column_clusters[None, :])
        logits = jnp.where(index[None, :] == own_positive[:, None], own_positive_logits[:, None], logits)
        excluded = index[None, :] == own_index[:, None]
        if valid is not None:
            excluded |= ~valid[None, :] & (index[None, :] != own_positive[:, None])
        return jax.nn.logsumexp(jnp.where(excluded, -jnp.inf, logits), axis=-1) - own_positive_logits

    of_rows = unit, index, positive_index, positive_logits, row_clusters
    size = block_rows or (count if count <= WHOLE_ROWS else BLOCK_ROWS)
    if size < count:
        errors = _by_blocks(cross_entropies, of_rows, size)
    elif isinstance(temperature, float) and temperature >= SHARED_SCALE_TEMPERATURE and row_clusters is column_clusters:
        halves = [None if part is None else jnp.split(part, 2) for part in (unit, row_clusters, valid)]
        errors = log_normalisers(*halves[0], positive_logits, _counted(count // 2, *halves[1:]), temperature) - positive_logits
    else:
        errors = cross_entropies(of_rows)
    return masked_mean(errors, valid)


def _counted(half: int, clusters: Halves, valid: Halves) -> Blocks:
    """Where the negatives stand within the first half, between the first and the second, and within the second."""
    index = jnp.arange(half)

    def block(rows: int, columns: int) -> Bool[Array, "half half"]:
        counted = index[:, None] != index[None, :]  # off it itself within a half, and its positive between them
        if clusters is not None:
            counted &= clusters[rows][:, None] != clusters[columns][None, :]  # exp(-1000) is 0 beside any other term
        if valid is not None:
            counted &= valid[rows][:, None] & valid[columns][None, :]
        return counted

    return block(0, 0), block(0, 1), block(1, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def log_normalisers(
    first: Float[Array, "half bits"], second: Float[Array, "half bits"], positive_logits: Float[Array, "rows"],
    counted: Blocks, temperature: float,
) -> Float[Array, "rows"]:
    """log(exp(positive logit) + the sum of exp(cosine / temperature) over the columns that are `counted`) of each row.

    Rows and columns are the unit vectors `first` and `second`, one half after the other. All rows share one scale, the
    largest logit there can be, so that the exponentials are symmetric: those between the halves are computed once for both,
    and the gradient needs one product with them where a scale of its own for each row would take two. As the halves are
    arguments of their own, none is spent on a half that needs no gradient.
    """
    return _log_normalisers_forward(first, second, positive_logits, counted, temperature)[0]


def _log_normalisers_forward(first, second, positive_logits, counted, temperature):
    negatives = tuple(
        jnp.where(block, jnp.exp((rows @ columns.T - 1.0) / temperature), 0.0)
        for block, rows, columns in zip(counted, (first, first, second), (first, second, second), strict=True))
    within_first, between, within_second = negatives
    positives = jnp.exp(positive_logits - 1.0 / temperature)
    sums = positives + jnp.concatenate([jnp.sum(within_first, axis=1) + jnp.sum(between, axis=1),
                                        jnp.sum(between, axis=0) + jnp.sum(within_second, axis=1)])
    return jnp.log(sums) + 1.0 / temperature, (first, second, negatives, positives, sums)


def _log_normalisers_backward(temperature, residuals, cotangent):
    first, second, (within_first, between, within_second), positives, sums = residuals
    weight = cotangent / sums
    of_first, of_second = jnp.split(weight[:, None], 2)
    both_first = jnp.concatenate([first, of_first * first], axis=1)
    both_second = jnp.concatenate([second, of_second * second], axis=1)

    def gradient(own, products):
        as_row, as_column = jnp.split(products, 2, axis=1)
        return (own * as_row + as_column) / temperature

    return (gradient(of_first, within_first @ both_first + between @ both_second),
            gradient(of_second, between.T @ both_first + within_second @ both_second), weight * positives, None)


log_normalisers.defvjp(_log_normalisers_forward, _log_normalisers_backward)


def _by_blocks(function: Callable[[Tree], Array], of_rows: Tree, size: int) -> Float[Array, "rows"]:
    """`function` of `size` rows at a time; its gradient computes each block again instead of keeping what it held.

    A block takes every n-th row, so that rows that are spread over devices stay where they are. The last row fills up.
    """
    count = len(jax.tree.leaves(of_rows)[0])
    n_blocks = -(-count // size)

    def split(part):
        part = jnp.pad(part, ((0, n_blocks * size - count), *((0, 0),) * (part.ndim - 1)), mode="edge")
        return jnp.swapaxes(part.reshape(size, n_blocks, *part.shape[1:]), 0, 1)

    results = jax.lax.map(jax.checkpoint(function), jax.tree.map(split, of_rows))
    return jnp.swapaxes(results, 0, 1).reshape(-1)[:count]


def nt_xent(
    z_i: Float[AnyArray, "batch bits"],
    z_j: Float[AnyArray, "batch bits"],
    temperature: ScalarLike,
    valid: Bool[AnyArray, "batch"] | None = None,
    block_rows: int | None = None,
) -> Float[Array, ""]:
    """NT-Xent over the 2B rows [z_i; z_j] (Chen et al., ICML 2020; docs/method.md "The teacher").

    Args:
        z_i, z_j: codes or embeddings of two views of the same images.
        valid: images that count; None for all. block_rows: of `paired_cross_entropy`.
    """
    both = None if valid is None else jnp.tile(valid, 2)
    return paired_cross_entropy(jnp.concatenate([z_i, z_j]), temperature, valid=both, block_rows=block_rows)


def _kl_rows(p: Float[Array, "batch bits"], q: Float[Array, "batch bits"]) -> Float[Array, "batch"]:
    def log(a):
        # the maximum keeps the compiler from folding 1 - p + 1e-8 to 1 - p, whose logarithm is infinite at p = 1
        return jnp.log(jnp.maximum(a, 0.0) + LOG_EPSILON)

    def term(a, b):
        return a * (log(a) - log(b))

    return jnp.sum(term(p, q) + term(1.0 - p, 1.0 - q), axis=-1)


def bernoulli_kl(
    p_i: Float[AnyArray, "batch bits"],
    p_j: Float[AnyArray, "batch bits"],
    valid: Bool[AnyArray, "batch"] | None = None,
) -> Float[Array, ""]:
    """Mean of KL(p_i || p_j) and KL(p_j || p_i) between independent bits, in nats an image (docs/method.md "The teacher").

    Each direction holds its second argument fixed (stop-gradient).
    """
    forward = _kl_rows(p_i, jax.lax.stop_gradient(p_j))
    backward = _kl_rows(p_j, jax.lax.stop_gradient(p_i))
    return masked_mean((forward + backward) / 2, valid)


def cibhash_terms(
    logits_i: Float[AnyArray, "batch bits"],
    logits_j: Float[AnyArray, "batch bits"],
    *,
    temperature: ScalarLike = 0.3,
    valid: Bool[AnyArray, "batch"] | None = None,
    block_rows: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The contrastive and the KL term of CIBHash, unweighted. `block_rows` is that of `paired_cross_entropy`."""
    contrastive = nt_xent(hash_codes(logits_i), hash_codes(logits_j), temperature, valid, block_rows)
    return contrastive, bernoulli_kl(jax.nn.sigmoid(logits_i), jax.nn.sigmoid(logits_j), valid)


def cibhash_loss(
    logits_i: Float[AnyArray, "batch bits"],
    logits_j: Float[AnyArray, "batch bits"],
    *,
    temperature: ScalarLike = 0.3,
    kl_weight: ScalarLike = 0.001,
    valid: Bool[AnyArray, "batch"] | None = None,
    block_rows: int | None = None,
) -> Float[Array, ""]:
    """CIBHash (Qiu et al., IJCAI 2021): NT-Xent of the straight-through codes plus `kl_weight` times the Bernoulli KL."""
    contrastive, kl = cibhash_terms(logits_i, logits_j, temperature=temperature, valid=valid, block_rows=block_rows)
    return contrastive + kl_weight * kl
