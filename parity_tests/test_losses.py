"""The losses against the published code's numbers, and what must hold whatever the numbers are.

Golden values are float32 results of PyTorch: agreement to 1e-5 relative, gradients to 1e-5 of the largest entry, is float32
rounding over sums of a few thousand terms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_brcd.clusters.kmeans import bit_masks, k_means, nearest_center
from jax_brcd.losses import bernoulli_kl, brcd_distillation_loss, cibhash_loss, cibhash_terms, nt_xent
from jax_brcd.losses.codes import hash_codes
from jax_brcd.losses.contrastive import normalise, paired_cross_entropy
from jax_brcd.runtime.errors import InputError

TOLERANCE = 1e-5
# The golden keys' letters: n removes false negatives, r is the bit mask, p the robust option
FLAG_SETS = {"plain": "", "n": "n", "r": "r", "p": "p", "rp": "rp", "np": "np", "nrp": "nrp"}


def assert_close(ours, published):
    """Within TOLERANCE of the largest entry."""
    published = np.asarray(published)
    np.testing.assert_allclose(np.asarray(ours), published, rtol=0, atol=TOLERANCE * np.abs(published).max())


def logits(golden):
    return jnp.asarray(golden["student_logits_i"]), jnp.asarray(golden["student_logits_j"])


def test_nt_xent_is_the_published_one(golden):
    value, gradients = jax.value_and_grad(nt_xent, argnums=(0, 1))(
        jnp.asarray(golden["ntxent_zi"]), jnp.asarray(golden["ntxent_zj"]), float(golden["temperature"]))
    assert_close(value, golden["ntxent_loss"])
    assert_close(gradients[0], golden["ntxent_grad_zi"])
    assert_close(gradients[1], golden["ntxent_grad_zj"])


def test_bernoulli_kl_is_the_published_one(golden):
    p_i, p_j = map(jax.nn.sigmoid, logits(golden))
    value, gradients = jax.value_and_grad(bernoulli_kl, argnums=(0, 1))(p_i, p_j)
    assert_close(value, golden["kl_loss"])
    assert_close(gradients[0], golden["kl_grad_pi"])
    assert_close(gradients[1], golden["kl_grad_pj"])


def test_cibhash_is_the_published_one(golden):
    def loss(logits_i, logits_j):
        return cibhash_loss(logits_i, logits_j, temperature=float(golden["temperature"]),
                            kl_weight=float(golden["weight"]))

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(*logits(golden))
    assert_close(value, golden["cibhash_loss"])
    assert_close(gradients[0], golden["cibhash_grad_i"])
    assert_close(gradients[1], golden["cibhash_grad_j"])


@pytest.mark.parametrize("mask", ["released", "kept"])
@pytest.mark.parametrize("flag_set", FLAG_SETS)
def test_brcd_is_the_published_one(golden, flag_set, mask):
    flags, name = FLAG_SETS[flag_set], f"brcd_{flag_set}_{mask}"
    if f"{name}_loss" not in golden:
        assert mask == "kept" and "r" not in flags, f"{name} is missing from the golden numbers"
        name = f"brcd_{flag_set}_released"  # without the bit mask both masks are the same run

    def loss(logits_i, logits_j):
        contrastive, kl = cibhash_terms(logits_i, logits_j, temperature=float(golden["temperature"]))
        distillation = brcd_distillation_loss(
            hash_codes(logits_i), jnp.asarray(golden["teacher_codes_i"]), jnp.asarray(golden["teacher_codes_j"]),
            jnp.asarray(golden["cluster_of_index"][golden["idxs"]], jnp.int32), jnp.asarray(golden["centers"]),
            jnp.asarray(golden[f"mask_{mask}"], jnp.float32),
            alpha=float(golden["alpha"]), temperature=float(golden["temperature"]), robust="p" in flags,
            mask_bits="r" in flags, remove_false_negatives="n" in flags, variant="released")
        return contrastive + float(golden["weight"]) * kl + distillation, (contrastive, kl, distillation)

    (value, terms), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*logits(golden))
    assert_close(value, golden[f"{name}_loss"])
    for term, published in zip(terms, ("contra", "kl", "distill"), strict=True):
        assert_close(term, golden[f"{name}_{published}"])
    assert_close(gradients[0], golden[f"{name}_grad_i"])
    assert_close(gradients[1], golden[f"{name}_grad_j"])


@pytest.mark.parametrize(("variant", "mask"), [("released", "mask_released"), ("corrected", "mask_kept")])
def test_bit_masks_are_the_published_ones(golden, variant, mask):
    ours = bit_masks(golden["database_codes"], golden["cluster_of_index"], int(golden["C"]), float(golden["margin"]), variant)
    np.testing.assert_array_equal(ours, golden[mask])


def random_batch(rows=6, bits=16, clusters=3, seed=0):
    draw = np.random.default_rng(seed)
    codes = [jnp.asarray(draw.choice([-1.0, 1.0], (rows, bits)), jnp.float32) for _ in range(3)]
    centers = jnp.asarray(draw.uniform(-1, 1, (clusters, bits)), jnp.float32)
    mask = jnp.asarray(draw.integers(0, 2, (clusters, bits)), jnp.float32)
    return *codes, jnp.asarray(draw.integers(clusters, size=rows), jnp.int32), centers, mask


@pytest.mark.parametrize("variant", ["released", "corrected"])
def test_padding_changes_no_loss_and_gets_no_gradient(variant):
    student, teacher_i, teacher_j, clusters, centers, mask = random_batch()
    padding = ((0, 3), (0, 0))
    valid = jnp.arange(9) < 6
    padded = [jnp.pad(codes, padding, constant_values=1.0) for codes in (student, teacher_i, teacher_j)]

    def loss(codes):
        total = brcd_distillation_loss(codes, *padded[1:], jnp.pad(clusters, (0, 3)), centers, mask, variant=variant,
                                       valid=valid)
        return total + cibhash_loss(codes, padded[2] * 0.5, valid=valid)

    value, gradient = jax.value_and_grad(loss)(padded[0])
    expected = brcd_distillation_loss(student, teacher_i, teacher_j, clusters, centers, mask, variant=variant)
    expected += cibhash_loss(student, teacher_j * 0.5)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.abs(gradient[:6]).max() > 0
    np.testing.assert_array_equal(gradient[6:], 0)


def test_the_teacher_gets_no_gradient():
    student, teacher_i, teacher_j, clusters, centers, mask = random_batch()
    gradients = jax.grad(brcd_distillation_loss, argnums=(1, 2))(student, teacher_i, teacher_j, clusters, centers, mask)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


def test_variants_agree_where_the_released_code_has_no_slip():
    """Without the robust option and with the same mask nothing of docs/method.md's last table applies."""
    arguments = random_batch()
    values = [brcd_distillation_loss(*arguments, robust=False, remove_false_negatives=True, variant=variant)
              for variant in ("released", "corrected")]
    assert values[0] == values[1]


def test_alpha_one_leaves_the_structural_positive_out():
    """At alpha 1 a positive is its anchor alone, so a teacher's view j matters only through the negatives."""
    student, teacher_i, teacher_j, clusters, centers, mask = random_batch()
    own, other = (student * mask[clusters], teacher_j * mask[clusters])
    anchor = jnp.sum(normalise(student) * normalise(teacher_i), axis=-1) / 0.3
    expected = paired_cross_entropy(jnp.concatenate([own, other]), 0.3, positive_logits=jnp.tile(anchor, 2))
    values = [brcd_distillation_loss(student, teacher_i, teacher_j, clusters, centers, mask, alpha=alpha, robust=False)
              for alpha in (1.0, 0.0)]
    assert float(values[0]) == pytest.approx(float(expected), rel=1e-6)
    assert float(values[1]) == pytest.approx(float(paired_cross_entropy(jnp.concatenate([own, other]), 0.3)), rel=1e-6)
    assert abs(float(values[1] - values[0])) > 0.1


def test_all_zero_codes_have_a_finite_gradient():
    zeros = jnp.zeros((4, 8))
    value, gradient = jax.value_and_grad(nt_xent)(zeros, zeros, 0.3)
    np.testing.assert_allclose(value, np.log(7), rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_saturated_logits_have_a_finite_kl_when_compiled():
    """Compilers fold constants: 1 - p + 1e-8 must not become 1 - p, whose logarithm is infinite at p = 1."""
    p_i, p_j = jnp.array([[1.0, 0.0, 1.0]]), jnp.array([[1.0, 0.0, 0.0]])
    value, gradient = jax.jit(jax.value_and_grad(lambda h_i, h_j: bernoulli_kl(jax.nn.sigmoid(h_i), jax.nn.sigmoid(h_j))))(
        jnp.log(p_i / (1 - p_i)), jnp.log(p_j / (1 - p_j)))
    np.testing.assert_allclose(value, -np.log(1e-8), rtol=1e-5)  # one bit of three disagrees, at log(1) - log(1e-8)
    np.testing.assert_array_equal(gradient, 0)


def test_an_unknown_variant_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean 'corrected'"):
        brcd_distillation_loss(*random_batch(), variant="correct")
    with pytest.raises(ValueError, match="did you mean 'released'"):
        bit_masks(np.ones((2, 4), np.float32), np.zeros(2, np.int32), 1, 0.5, "release")


def test_an_empty_cluster_steers_no_bit():
    masks = bit_masks(np.ones((3, 4), np.float32), np.zeros(3, np.int32), 2, 0.5)
    np.testing.assert_array_equal(masks, [[1, 1, 1, 1], [0, 0, 0, 0]])


def test_clusters_are_found_again():
    draw = np.random.default_rng(0)
    centers = draw.choice([-1.0, 1.0], (4, 32)).astype(np.float32)
    truth = draw.integers(4, size=200)
    flips = np.where(draw.random((200, 32)) < 0.05, -1, 1)
    clusters, found = k_means(centers[truth] * flips.astype(np.float32), 4, seed=0)[:2]
    assert len({(int(a), int(b)) for a, b in zip(truth, clusters, strict=True)}) == 4
    np.testing.assert_array_equal(nearest_center(jnp.asarray(centers[truth]), jnp.asarray(found)), clusters)


def test_fewer_distinct_codes_than_clusters_leave_clusters_empty():
    codes = np.repeat(np.array([[1.0, 1.0], [-1.0, 1.0]], np.float32), 5, axis=0)
    clusters, centers = k_means(codes, 4, seed=0)[:2]
    np.testing.assert_array_equal(centers[clusters], codes)
    assert centers.shape == (4, 2)


@pytest.mark.parametrize(("count", "message"), [(7, "more clusters than the 6"), (0, "too small")])
def test_impossible_numbers_of_clusters_are_refused(count, message):
    with pytest.raises(InputError, match=message):
        k_means(np.ones((6, 4), np.float32), count, seed=0)
