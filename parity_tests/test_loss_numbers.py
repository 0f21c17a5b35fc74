"""The losses and clusters whatever type a number has, and with 64-bit types switched on: the same values, in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_brcd import losses
from jax_brcd.clusters.choice import choose_clusters, silhouettes
from jax_brcd.clusters.kmeans import bit_masks, k_means, nearest_center
from jax_brcd.losses import contrastive
from jax_brcd.losses.codes import hash_codes
from jax_brcd.runtime.errors import InputError

BATCH, BITS, IMAGES, CLUSTERS = 8, 12, 20, 3
DRAW = np.random.default_rng(0)
LOGITS = [DRAW.normal(size=(BATCH, BITS)).astype(np.float32) for _ in range(2)]
CODES = [DRAW.choice([-1.0, 1.0], (BATCH, BITS)).astype(np.float32) for _ in range(2)]
ALL_CODES = DRAW.choice([-1.0, 1.0], (IMAGES, BITS)).astype(np.float32)
CENTERS, MASK = ALL_CODES[:CLUSTERS] * 0.5, np.ones((CLUSTERS, BITS), np.float32)
MEMBERS = np.arange(BATCH, dtype=np.int32) % CLUSTERS
VALID = np.arange(BATCH) < BATCH - 2
UNIT = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in LOGITS]
BANK = (ALL_CODES / BITS**0.5).astype(np.float32)
INDICES, NEGATIVES = np.arange(BATCH, dtype=np.int32), DRAW.integers(IMAGES, size=(BATCH, 5)).astype(np.int32)
MEMORY = {"student": BANK, "teacher": -BANK, "normalisers": np.full(2, -1, np.float32)}


def brcd(logits, **options):
    return losses.brcd_distillation_loss(hash_codes(logits), *CODES, MEMBERS, CENTERS, MASK, valid=VALID, **options)


LOSSES = {
    "nt_xent": lambda logits: losses.nt_xent(logits, LOGITS[1], 0.3, VALID),
    "nt_xent by blocks": lambda logits: losses.nt_xent(logits, LOGITS[1], 0.3, VALID, block_rows=3),
    "cibhash": lambda logits: losses.cibhash_loss(logits, LOGITS[1], valid=VALID),
    "brcd": brcd,
    "brcd released": functools.partial(brcd, variant="released"),
    "brcd plain": functools.partial(brcd, robust=False, mask_bits=False),
    "kl": lambda logits: losses.kl_distillation_loss(hash_codes(logits), CODES[0], valid=VALID),
    "rkd": lambda logits: losses.rkd_loss(logits, CODES[0], valid=VALID),
    "pkt": lambda logits: losses.pkt_loss(logits, CODES[0], valid=VALID),
    "sp": lambda logits: losses.sp_loss(logits, CODES[0], valid=VALID),
    "sp released": lambda logits: losses.sp_loss(logits, CODES[0], variant="released", valid=VALID),
    "sskd": lambda logits: losses.sskd_loss(logits, CODES[0], valid=VALID),
    "similarity": lambda logits: losses.similarity_loss(logits, CODES[0], VALID),
    "mse": lambda logits: losses.mse_loss(logits, CODES[0], valid=VALID),
    "bits": lambda logits: losses.bits_loss(logits, CODES[0], valid=VALID),
    "code alignment": lambda logits: losses.code_alignment(logits, LOGITS[1], valid=VALID),
    "coding rate": lambda logits: losses.coding_rate(logits, valid=VALID),
    "crd": lambda logits: losses.crd_loss(logits / 4, UNIT[1], MEMORY, INDICES, NEGATIVES, valid=VALID),
    "crcd": lambda logits: losses.crcd_loss(logits / 4, UNIT[1], MEMORY, INDICES, NEGATIVES, valid=VALID),
    "packd": lambda logits: losses.packd_loss(
        jnp.stack([logits / 4, UNIT[1]]), np.stack(UNIT), {"bank": BANK, "seen": np.arange(IMAGES) % 2 == 0}, INDICES,
        NEGATIVES, valid=VALID),
}


def value_and_gradient(name):
    """Everything that a loss gives, and its gradient."""
    def scalar(logits):
        found = LOSSES[name](logits)
        return found if isinstance(found, tuple) else (found, {})

    return jax.jit(jax.value_and_grad(scalar, has_aux=True))(jnp.asarray(LOGITS[0]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_the_same_with_64_bit_types_on(name):
    """Within 1e-6 of the largest entry: XLA may sum the same float32 numbers in another order."""
    usual = value_and_gradient(name)
    with jax.enable_x64(True):
        wide = value_and_gradient(name)
    for ours, theirs in zip(*map(jax.tree.leaves, (wide, usual)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * max(np.abs(theirs).max(), 1e-6))


def found_clusters():
    clusters, centers, inertia = k_means(ALL_CODES, CLUSTERS, seed=0, restarts=3)
    chosen = choose_clusters(ALL_CODES, "auto", cluster_range=(2, 4), seed=0, restarts=2)
    nearest = nearest_center(jnp.asarray(ALL_CODES), jnp.asarray(centers))
    return (clusters, centers, np.float32(inertia), chosen.counts, np.asarray(chosen.scores), chosen.clustering.clusters,
            np.asarray(bit_masks(ALL_CODES, clusters, CLUSTERS, 0.3)), np.asarray(nearest, np.int32),
            np.asarray(silhouettes(jnp.asarray(ALL_CODES), jnp.asarray(clusters)[None], capacity=CLUSTERS)))


def test_clusters_are_the_same_with_64_bit_types_on():
    usual = found_clusters()
    with jax.enable_x64(True):
        wide = found_clusters()
    for ours, theirs in zip(wide, usual, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


NUMBERS = {"int": 1, "float": 1.0, "np.float32": np.float32(1), "np.float64": np.float64(1), "np.int64": np.int64(1),
           "jnp": jnp.float32(1), "0-d array": np.array(1.0)}


@pytest.mark.parametrize("kind", NUMBERS)
def test_every_known_temperature_takes_the_fast_path(kind):
    """Its product within the halves is of two halves; the other path holds all rows at once."""
    def program(temperature):
        gradient = jax.value_and_grad(lambda rows: contrastive.nt_xent(rows, LOGITS[1], temperature))
        return str(jax.make_jaxpr(gradient)(LOGITS[0]))

    assert program(NUMBERS[kind]) == program(1.0) and f"f32[{2 * BATCH},{2 * BATCH}]" not in program(NUMBERS[kind])
    assert brcd(LOGITS[0], temperature=NUMBERS[kind], alpha=NUMBERS[kind]) == brcd(LOGITS[0], temperature=1.0, alpha=1.0)


def test_a_temperature_that_is_traced_gives_the_same_value():
    traced = jax.jit(lambda temperature: contrastive.nt_xent(*LOGITS, temperature))(0.3)
    np.testing.assert_allclose(traced, contrastive.nt_xent(*LOGITS, 0.3), rtol=1e-6)


def test_whole_numbers_serve_as_alpha_weight_and_margin():
    plain = {"robust": False}
    np.testing.assert_array_equal(brcd(LOGITS[0], alpha=1, **plain), brcd(LOGITS[0], alpha=1.0, **plain))
    np.testing.assert_array_equal(losses.cibhash_loss(*LOGITS, kl_weight=1), losses.cibhash_loss(*LOGITS, kl_weight=1.0))
    members = np.arange(IMAGES) % CLUSTERS
    np.testing.assert_array_equal(bit_masks(ALL_CODES, members, CLUSTERS, 0), bit_masks(ALL_CODES, members, CLUSTERS, 0.0))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_what_is_no_temperature_is_refused_by_every_loss_that_takes_one(temperature):
    calls = [lambda **o: losses.nt_xent(*LOGITS, **o), lambda **o: losses.cibhash_loss(*LOGITS, **o),
             lambda **o: brcd(LOGITS[0], **o), lambda **o: losses.kl_distillation_loss(*CODES, **o),
             lambda **o: losses.sskd_loss(*CODES, **o), lambda **o: losses.crd_loss(*UNIT, MEMORY, INDICES, NEGATIVES, **o),
             lambda **o: losses.crcd_loss(*UNIT, MEMORY, INDICES, NEGATIVES, **o),
             lambda **o: losses.packd_loss(np.stack(UNIT), np.stack(UNIT), {"bank": BANK, "seen": np.zeros(IMAGES, bool)},
                                           INDICES, NEGATIVES, **o)]
    for call in calls:
        with pytest.raises(InputError, match="no temperature; give a number above 0"):
            call(temperature=temperature)


def test_blocks_without_a_row_are_refused():
    with pytest.raises(InputError, match="block_rows 0: too small"):
        losses.nt_xent(*LOGITS, 0.3, block_rows=0)


@pytest.mark.parametrize("function", [
    lambda codes: k_means(codes, 2, seed=0),
    lambda codes: choose_clusters(codes, "auto", cluster_range=(2, 3), seed=0),
    lambda codes: bit_masks(codes, np.zeros(IMAGES, np.int32), 1, 0.5)])
def test_what_are_no_codes_is_refused_by_everything_that_clusters(function):
    """Bits of 0 and 1 have other means, so other masks."""
    with pytest.raises(InputError, match="codes: bits of 0 and 1 where codes of -1 and \\+1 are meant; give 2 \\* codes - 1"):
        function((ALL_CODES > 0).astype(np.float32))
    with pytest.raises(InputError, match="codes: not finite everywhere"):
        function(np.where(np.arange(BITS) == 3, np.nan, ALL_CODES).astype(np.float32))


def test_a_range_that_is_none_is_refused():
    with pytest.raises(InputError, match="no range of numbers of clusters"):
        choose_clusters(ALL_CODES, "auto", cluster_range=(4, 2), seed=0)


def test_codes_of_zero_among_others_are_codes():
    assert len(k_means(np.where(np.arange(BITS) == 3, 0, ALL_CODES).astype(np.float32), 2, seed=0, restarts=1).centers) == 2
