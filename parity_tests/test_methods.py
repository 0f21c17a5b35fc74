"""The distillation methods' losses against the published code's numbers and against torch_ref, and their one interface.

Golden values are float32 results of PyTorch: agreement to 1e-5 relative, gradients to 1e-5 of the largest entry, is float32
rounding. Between the frameworks on random input 1e-5 of the largest entry plus 1e-6.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_brcd import losses
from jax_brcd.losses.codes import hash_codes
from jax_brcd.losses.memory import embed
from jax_brcd.methods import METHODS, DistillationBatch, Method, TeacherKnowledge, create_method
from jax_brcd.methods.base import view_name
from jax_brcd.runtime.errors import InputError
from jax_brcd.views.outputs import Outputs
from torch_ref import method_losses as reference
from torch_ref.losses import hash_codes as reference_codes

TOLERANCE = 1e-5
PLAIN = {
    "hinton_kl": losses.kl_distillation_loss,
    "rkd": losses.rkd_loss,
    "pkt": losses.pkt_loss,
    "sp_batch": losses.sp_loss,
    "sp_released": lambda student, teacher: losses.sp_loss(student, teacher, variant="released"),
    "sskd": losses.sskd_loss,
    "mse": losses.mse_loss,
    "bits": losses.bits_loss,
}
REFERENCE = {
    "hinton_kl": reference.kl_distillation_loss,
    "rkd": reference.rkd_loss,
    "pkt": reference.pkt_loss,
    "sp_batch": reference.sp_loss,
    "sp_released": lambda student, teacher: reference.sp_loss(student, teacher, variant="released"),
    "sskd": reference.sskd_loss,
    "mse": torch.nn.functional.mse_loss,
    "bits": reference.bits_loss,
}
PUBLISHED = [name for name in PLAIN if name not in ("mse", "bits")]  # golden numbers are of the published code's
MEMORIES = {"crd": (losses.crd_loss, reference.row_scores), "crcd": (losses.crcd_loss, reference.relation_scores)}


def test_brcd_removes_false_negatives_alone_only_without_robust():
    create_method("brcd", robust=False, remove_false_negatives=True).check_settings()
    with pytest.raises(InputError, match="remove_false_negatives True: robust does this already; leave it out, or put robust off"):
        create_method("brcd", remove_false_negatives=True).check_settings()


def assert_close(ours, published, floor=0.0):
    """Within TOLERANCE of the largest entry."""
    published = np.asarray(published)
    np.testing.assert_allclose(np.asarray(ours), published, rtol=0, atol=TOLERANCE * np.abs(published).max() + floor)


def value_and_gradient(loss, golden, **options):
    return jax.jit(jax.value_and_grad(loss, **options))(jnp.asarray(golden["student_logits_i"]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_losses_of_codes_alone_are_the_published_ones(golden, name):
    teacher = golden["teacher_codes_j" if name == "sskd" else "teacher_codes_i"]
    value, gradient = value_and_gradient(lambda logits: PLAIN[name](jnp.tanh(logits), teacher), golden)
    assert_close(value, golden[f"{name}_loss"])
    if name == "sp_released":  # the published float32 gradient is itself up to 4e-3 off that formula's in float64
        golden = {f"{name}_grad": sp_released_gradient_in_double(golden["student_logits_i"], teacher)}
    assert_close(gradient, golden[f"{name}_grad"])


def sp_released_gradient_in_double(logits, teacher):
    logits = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    reference.sp_loss(torch.tanh(logits), torch.tensor(teacher, dtype=torch.float64), variant="released").backward()
    return logits.grad


def embedded(golden, name, logits):
    return (embed(jnp.tanh(logits), golden[f"{name}_ws"].T, golden[f"{name}_bs"]),
            embed(golden["teacher_codes_i"], golden[f"{name}_wt"].T, golden[f"{name}_bt"]))


@pytest.mark.parametrize("name", ["crd", "crcd"])
def test_losses_with_two_memories_are_the_published_ones(golden, name):
    memory = {"student": golden[f"{name}_memory_s"], "teacher": golden[f"{name}_memory_t"],
              "normalisers": np.full(2, -1, np.float32)}

    def loss(logits):
        return MEMORIES[name][0](*embedded(golden, name, logits), memory, golden["idxs"], golden["crd_contrast_idx"][:, 1:])

    (value, after), gradient = value_and_gradient(loss, golden, has_aux=True)
    assert_close(value, golden[f"{name}_loss"])
    assert_close(gradient, golden[f"{name}_grad"])
    assert_close(after["student"], golden[f"{name}_memory_s_after"])
    assert_close(after["teacher"], golden[f"{name}_memory_t_after"])
    np.testing.assert_allclose(after["normalisers"], golden[f"{name}_z"], rtol=TOLERANCE)


def test_packd_is_the_published_one(golden):
    if "packd_loss" not in golden:
        pytest.skip("PACKD embeds codes only where they are longer than the embedding")

    def loss(logits):
        student, teacher = embedded(golden, "packd", logits)
        memory = {"bank": golden["packd_memory"], "seen": np.zeros(len(golden["packd_memory"]), bool)}
        return losses.packd_loss(student[None], teacher[None], memory, golden["idxs"], golden["crd_contrast_idx"][:, 1:])

    (value, after), gradient = value_and_gradient(loss, golden, has_aux=True)
    assert_close(value, golden["packd_loss"])
    assert_close(gradient, golden["packd_grad"])
    assert_close(after["bank"], golden["packd_memory_after"])
    np.testing.assert_array_equal(np.flatnonzero(after["seen"]), np.sort(golden["idxs"]))


def reference_value_and_gradient(loss, golden):
    """Of torch_ref's loss of z = tanh(logits), in float32 as published; what follows the loss is handed on."""
    logits = torch.tensor(golden["student_logits_i"], requires_grad=True)
    value, *after = loss(torch.tanh(logits))
    value.backward()
    return value.item(), logits.grad, *after


@pytest.mark.parametrize("name", PUBLISHED)
def test_torch_ref_gives_the_published_losses_of_codes_alone(golden, name):
    teacher = torch.tensor(golden["teacher_codes_j" if name == "sskd" else "teacher_codes_i"])
    value, gradient = reference_value_and_gradient(lambda student: (REFERENCE[name](student, teacher),), golden)
    assert_close(value, golden[f"{name}_loss"])
    if name == "sp_released":  # float32 rounding of the published lines, see above
        np.testing.assert_allclose(gradient, golden[f"{name}_grad"], atol=5e-3 * np.abs(golden[f"{name}_grad"]).max())
    else:
        assert_close(gradient, golden[f"{name}_grad"])


@pytest.mark.parametrize("name", [*MEMORIES, "packd"])
def test_torch_ref_gives_the_published_losses_with_a_memory(golden, name):
    if f"{name}_loss" not in golden:
        pytest.skip("PACKD embeds codes only where they are longer than the embedding")
    data = {key.removeprefix(f"{name}_"): torch.tensor(value) for key, value in golden.items() if key.startswith(f"{name}_")}
    indices, negatives = torch.tensor(golden["idxs"]), torch.tensor(golden["crd_contrast_idx"][:, 1:])

    def loss(student):
        student = torch.nn.functional.normalize(student @ data["ws"].T + data["bs"])
        teacher = torch.nn.functional.normalize(torch.tensor(golden["teacher_codes_i"]) @ data["wt"].T + data["bt"])
        if name == "packd":
            memory = {"bank": data["memory"], "seen": torch.zeros(len(data["memory"]), dtype=torch.bool)}
            return reference.packd_loss(student[None], teacher[None], memory, indices, negatives)
        memory = {"student": data["memory_s"], "teacher": data["memory_t"], "normalisers": torch.full((2,), -1.0)}
        return reference.memory_loss(MEMORIES[name][1], student, teacher, memory, indices, negatives)

    value, gradient, after = reference_value_and_gradient(loss, golden)
    assert_close(value, golden[f"{name}_loss"])
    assert_close(gradient, golden[f"{name}_grad"])
    for bank, key in (("student", "memory_s"), ("teacher", "memory_t"), ("bank", "memory")):
        if bank in after:
            assert_close(after[bank], golden[f"{name}_{key}_after"])


SHAPES = st.sampled_from([(4, 8), (12, 20)])


@st.composite
def code_batches(draw):
    """Student logits of rows x bits, the teacher's codes, and whether student codes are the sign or, as in golden, the tanh."""
    rows, bits = draw(SHAPES)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = (draw(st.sampled_from([0.3, 1.0, 3.0])) * random.normal(size=(rows, bits))).astype(np.float32)
    teacher = random.choice(draw(st.sampled_from([(-1.0, 1.0), (-1.0, 0.0, 1.0), (1.0,)])), (rows, bits)).astype(np.float32)
    signs = draw(st.booleans())
    if signs and draw(st.booleans()):
        logits[: rows // 2] = logits[rows // 2 :]  # equal codes
    return logits, teacher, signs


@jax.jit
def plain_losses_in_jax(logits, teacher, signs):
    """Value and gradient of every loss of codes alone."""
    def codes(logits):
        return jnp.where(signs, hash_codes(logits), jnp.tanh(logits))

    return {name: jax.value_and_grad(lambda logits, loss=loss: loss(codes(logits), teacher))(logits)
            for name, loss in PLAIN.items()}


@settings(max_examples=12, deadline=None)
@given(code_batches())
def test_losses_of_codes_alone_agree_between_the_frameworks(batch):
    """torch_ref computes in float64 here, so the difference is the rounding of JAX's float32 alone.

    PKT takes the logarithm of two codes' similarity plus 1e-7. Of exactly opposite codes that is 0 but for rounding, in float32
    as large as the 1e-7, so batches with such codes say nothing of it.
    """
    logits, teacher, signs = batch
    found = plain_losses_in_jax(logits, teacher, signs)
    opposite = signs and np.min(np.sign(logits) @ np.sign(logits).T) == -logits.shape[1]
    for name, loss in REFERENCE.items():
        if name == "pkt" and opposite:
            continue
        variable = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        value = loss(reference_codes(variable) if signs else torch.tanh(variable), torch.tensor(teacher, dtype=torch.float64))
        value.backward()
        assert_close(found[name][0], value.item(), floor=1e-6)
        assert_close(found[name][1], variable.grad, floor=1e-6)


@pytest.mark.parametrize("bits", [4, 16, 64])
def test_padding_that_is_opposite_to_every_image_leaves_pkt_its_gradient(bits):
    """Its cosines, scaled to [0, 1], sum to 0; where images count, the value and the gradient are those without it."""
    draw = np.random.default_rng(bits)
    code = draw.choice([-1.0, 1.0], bits).astype(np.float32)
    student, teacher = np.stack([code, code, -code]), draw.choice([-1.0, 1.0], (3, bits)).astype(np.float32)
    teacher[2] = -teacher[0]
    value, gradient = jax.value_and_grad(losses.pkt_loss)(student[:2], teacher[:2])
    padded_value, padded = jax.value_and_grad(losses.pkt_loss)(student, teacher, valid=np.array([True, True, False]))
    np.testing.assert_allclose(padded_value, value, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(padded[:2], gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(padded[2], 0.0)


@st.composite
def memory_batches(draw):
    """Unit rows of two encoders for an image and a mixture, and a memory on its way or at its start."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, width, images = 6, 10, 15

    def unit(*shape):
        rows = random.normal(size=shape)
        return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)

    started = draw(st.booleans())
    return {
        "rows": (unit(2, batch, width), unit(2, batch, width)),
        "memory": {"student": unit(images, width), "teacher": unit(images, width),
                   "normalisers": np.array([40.0, 90.0] if started else [-1.0, -1.0], np.float32)},
        "bank": {"bank": unit(images, width), "seen": random.random(images) < (0.5 if started else 0.0)},
        "indices": random.permutation(images)[:batch].astype(np.int32),
        "negatives": random.integers(images, size=(batch, 7)).astype(np.int32),  # the image itself and anchors among them
    }


@jax.jit
def memory_losses_in_jax(batch):
    """(value, memory afterwards) and the gradients of both encoders' rows, of every loss with a memory."""
    def loss(rows, name):
        if name == "packd":
            return losses.packd_loss(*rows, batch["bank"], batch["indices"], batch["negatives"])
        return MEMORIES[name][0](rows[0][0], rows[1][0], batch["memory"], batch["indices"], batch["negatives"])

    return {name: jax.value_and_grad(lambda rows, name=name: loss(rows, name), has_aux=True)(batch["rows"])
            for name in (*MEMORIES, "packd")}


@settings(max_examples=12, deadline=None)
@given(memory_batches())
def test_losses_with_a_memory_agree_between_the_frameworks(batch):
    """Values to 2e-5 and gradients to 1e-4 of the largest entry: at temperature 0.05 the exponential makes twenty times the
    rounding of a float32 cosine; torch_ref computes in float64."""
    def double(array, **options):
        return torch.tensor(array, dtype=torch.float64, **options)

    found = memory_losses_in_jax(batch)
    indices, negatives = torch.tensor(batch["indices"]).long(), torch.tensor(batch["negatives"]).long()
    for name, ((value, after), gradients) in found.items():
        student, teacher = (double(rows, requires_grad=True) for rows in batch["rows"])
        if name == "packd":
            memory = {"bank": double(batch["bank"]["bank"]), "seen": torch.tensor(batch["bank"]["seen"])}
            expected, memory = reference.packd_loss(student, teacher, memory, indices, negatives)
        else:
            memory = {part: double(rows) for part, rows in batch["memory"].items()}
            expected, memory = reference.memory_loss(MEMORIES[name][1], student[0], teacher[0], memory, indices, negatives)
        expected.backward()
        np.testing.assert_allclose(value, expected.item(), rtol=2e-5)
        for ours, theirs in zip(gradients, (student, teacher), strict=True):
            np.testing.assert_allclose(ours, theirs.grad, atol=1e-4 * float(theirs.grad.abs().max()))
        assert after.keys() == memory.keys()
        for part, rows in memory.items():
            np.testing.assert_allclose(after[part], rows, rtol=2e-5, atol=1e-6)


def test_the_variant_of_sp_and_four_rows_a_sample_are_checked():
    codes = np.ones((6, 4), np.float32)
    with pytest.raises(ValueError, match="did you mean 'released'"):
        losses.sp_loss(codes, codes, variant="release")
    with pytest.raises(ValueError, match="6 rows: not four a sample"):
        losses.sskd_loss(codes, codes)


def test_every_published_method_is_known_by_name():
    assert set(METHODS) >= {"brcd", "none", "kl", "rkd", "pkt", "sp", "crd", "sskd", "crcd", "packd", "mse", "bits", "crovca"}


@pytest.mark.parametrize("name", METHODS)
def test_a_setting_of_another_method_is_refused_with_the_methods_own(name):
    own = METHODS[name].__dataclass_fields__
    foreign = "alpha" if "alpha" not in own else "angle_weight"
    with pytest.raises(InputError, match=f"not a setting of method '{name}'") as refusal:
        create_method(name, **{foreign: 0.5})
    assert all(field in str(refusal.value).replace("-", "_") for field in own)


IMAGES, ROWS, PADDING, BITS = 12, 6, 3, 16
WIDTHS = 10, 7  # features of student and teacher


def small_method(name):
    small = {"clusters": 3, "cluster_restarts": 2, "negatives": 5, "embedding": 8}
    return create_method(name, **{setting: value for setting, value in small.items()
                                  if setting in METHODS[name].__dataclass_fields__})


def distillation_batch(method, padding):
    """Random outputs of six images, as the method needs them; the padding looks like image 0, which is not in the batch."""
    draw = np.random.default_rng(0)

    def filled(values):
        return jnp.pad(jnp.asarray(values, jnp.float32), ((0, padding), (0, 0)), constant_values=1.0)

    def outputs(entries, width):
        every = Outputs(filled(draw.normal(size=(ROWS, width))), filled(draw.normal(size=(ROWS, BITS))),
                        filled(draw.choice([-1.0, 1.0], (ROWS, BITS))))
        return every.only(entries)

    needs = method.needs
    views = [view_name(view) for view in needs.views]
    return DistillationBatch(
        indices=jnp.pad(jnp.arange(1, ROWS + 1), (0, padding)), valid=jnp.arange(ROWS + padding) < ROWS,
        student={view: outputs(needs.student, WIDTHS[0]) for view in views},
        teacher={view: outputs(needs.teacher, WIDTHS[1]) for view in views}, key=jax.random.key(0), temperature=0.3,
        negatives=jnp.pad(jnp.asarray(draw.integers(IMAGES, size=(ROWS, needs.negatives))), ((0, padding), (0, 0))))


@pytest.mark.parametrize("name", METHODS)
def test_padding_changes_neither_a_methods_loss_nor_its_memory(name):
    method = small_method(name)
    assert isinstance(method, Method)
    codes = np.random.default_rng(1).choice([-1.0, 1.0], (IMAGES, BITS)).astype(np.float32)
    knowledge = TeacherKnowledge.of(codes, method.needs, seed=0)._replace(
        student_features=WIDTHS[0], teacher_features=WIDTHS[1])
    parameters, memory = jax.tree.map(jnp.asarray, method.init(knowledge, seed=0))

    def step(of_student, padding):
        batch = distillation_batch(method, padding)
        loss, memory, metrics = method.loss(parameters, memory_before, batch._replace(student={**batch.student, **of_student}))
        return loss, (memory, metrics)

    memory_before = memory
    results = []
    for padding in (0, PADDING):
        of_student = {view: part for view, part in distillation_batch(method, padding).student.items() if view == "i"}
        results.append(jax.jit(jax.value_and_grad(step, has_aux=True), static_argnums=1)(of_student, padding))
    ((value, after), gradients), ((padded_value, padded_after), padded_gradients) = results
    np.testing.assert_allclose(padded_value, value, rtol=1e-5)
    for gradient, padded in zip(*map(jax.tree.leaves, (gradients, padded_gradients)), strict=True):
        np.testing.assert_allclose(padded[:ROWS], gradient, atol=1e-5 * max(np.abs(gradient).max(), 1e-6))
        np.testing.assert_array_equal(padded[ROWS:], 0)
        assert np.abs(gradient).max() > 0
    for ours, theirs in zip(*map(jax.tree.leaves, (padded_after, after)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert bool(jax.tree.leaves(gradients)) == (name != "none")
