"""CroVCA: its losses by golden numbers, its head in both frameworks, and short trainings of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import shared_path
from encoders import USUAL, noise, same
from flax import nnx
from jobs import job

from jax_brcd.encoder import create_encoder, load, space_of
from jax_brcd.losses import code_alignment, coding_rate
from jax_brcd.methods import DistillationBatch, create_method
from jax_brcd.models import HEADS, create_hash_model, load_torchvision_state, torchvision_state
from jax_brcd.models.kept import head_codes
from jax_brcd.models.placed import DOUBT, Placed
from jax_brcd.retrieval import PackedCodes
from jax_brcd.runtime.errors import InputError
from jax_brcd.stages.models import build
from jax_brcd.stages.teacher import teacher_stage
from jax_brcd.teachers.objectives import create_objective
from jax_brcd.training.loop import start, train_epoch
from jax_brcd.views.batches import epoch_batches
from jax_brcd.views.outputs import Outputs
from jax_brcd.views.sources import KeptFeatures
from torch_ref import models as torch_models
from torch_ref import objectives as torch_objectives
from torch_ref.methods import METHODS as TORCH_METHODS
from torch_ref.outputs import Outputs as TorchOutputs
from torch_ref.training import Schedule, train_teacher

BACKBONE, BITS = "resnet8", 12
FORMS = ("hashcoder_small", "hashcoder_large")


@pytest.fixture(scope="module", params=[0, 1, 2], ids=lambda i: f"golden{i}")
def golden(request):
    with np.load(shared_path("golden", f"crovca_{request.param}.npz"), allow_pickle=False) as arrays:
        return {name: arrays[name] if arrays[name].ndim else float(arrays[name]) for name in arrays.files}


def assert_close(ours, theirs):
    """To 1e-5 of the largest."""
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


# Losses

def test_the_teachers_terms_and_gradients_are_the_golden_ones(golden):
    objective = create_objective("crovca", crovca_weight=golden["rate_weight"], crovca_epsilon=golden["epsilon"])
    epsilon, weight = golden["epsilon"], golden["rate_weight"]

    @jax.jit
    def both(i, j):
        def loss(i, j):
            rate = (coding_rate(i, epsilon) + coding_rate(j, epsilon)) / 2
            return code_alignment(i, j) + weight * rate, (code_alignment(i, j), rate)
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(i, j)

    logits = golden["logits_i"], golden["logits_j"]
    (loss, (alignment, rate)), gradients = both(*logits)
    found = loss, alignment, rate, *gradients
    for ours, name in zip(found, ("loss", "alignment", "coding_rate", "grad_i", "grad_j"), strict=True):
        assert_close(ours, golden[name])
    theirs = [torch.tensor(part, requires_grad=True) for part in logits]
    value = torch_objectives.crovca_loss(torch.cat(theirs), weight=objective.crovca_weight, epsilon=objective.crovca_epsilon)
    value.backward()
    for ours, name in ((value.detach(), "loss"), (theirs[0].grad, "grad_i"), (theirs[1].grad, "grad_j")):
        assert_close(ours, golden[name])


def test_the_students_loss_and_gradient_are_the_golden_ones(golden):
    method = create_method("crovca", rate_weight=golden["rate_weight"], rate_epsilon=golden["epsilon"])
    codes = golden["teacher_codes"]

    @jax.jit
    def ours(logits, valid):
        def loss(logits):
            batch = DistillationBatch(jnp.arange(len(logits)), valid, {"i": Outputs(logits=logits)},
                                      {"i": Outputs(codes=jnp.asarray(codes))}, jax.random.key(0), 0.3)
            value, _, metrics = method.loss({}, {}, batch)
            return value, metrics
        return jax.value_and_grad(loss, has_aux=True)(logits)

    (loss, metrics), gradient = ours(golden["student_logits"], jnp.ones(len(codes), bool))
    for found, name in ((loss, "loss"), (metrics["alignment"], "alignment"), (metrics["coding_rate"], "coding_rate"),
                        (gradient, "grad")):
        assert_close(found, golden[f"student_{name}"])
    logits = torch.tensor(golden["student_logits"], requires_grad=True)
    views = {"i": TorchOutputs(logits=logits)}, {"i": TorchOutputs(codes=torch.tensor(codes))}
    value = TORCH_METHODS["crovca"](method, None)(None, *views)
    value.backward()
    assert_close(value.detach(), golden["student_loss"])
    assert_close(logits.grad, golden["student_grad"])


value_and_gradient = jax.jit(jax.value_and_grad(coding_rate), static_argnums=1)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_the_coding_rate_is_its_formula_whichever_side_is_the_shorter_and_padding_changes_nothing(shape):
    rows, bits = shape
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    unit = logits.astype(float) / np.linalg.norm(logits, axis=1, keepdims=True)
    expected = -(bits + rows) / (bits * rows) * 0.5 * np.linalg.slogdet(np.eye(bits) + bits / (rows * 0.05) * unit.T @ unit)[1]
    value, gradient = value_and_gradient(logits, 0.05)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    padded = np.concatenate([logits, np.full((9, bits), np.nan, np.float32)])
    value, of_padded = value_and_gradient(padded, 0.05, valid=np.arange(rows + 9) < rows)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_close(of_padded[:rows], gradient)
    np.testing.assert_array_equal(of_padded[rows:], 0)


def test_the_coding_rate_of_logits_that_are_all_alike_or_zero_is_a_number():
    """256 equal rows of 512 bits leave one eigenvalue of 10,000 and the others at 1: 512 bits are lost to none of it."""
    for logits in (np.ones((256, 512), np.float32), np.zeros((256, 512), np.float32), np.full((256, 512), 1e-30, np.float32)):
        value, gradient = value_and_gradient(logits, 0.05)
        assert np.isfinite(value) and np.isfinite(gradient).all()
    value, _ = value_and_gradient(np.ones((256, 512), np.float32), 0.05)
    np.testing.assert_allclose(value, -(512 + 256) / (512 * 256) * 0.5 * np.log(1 + 512 / 0.05), rtol=1e-4)


@pytest.mark.parametrize("epsilon", [0.0, -1, float("nan")])
def test_a_distortion_that_is_not_above_zero_is_refused(epsilon):
    with pytest.raises(InputError, match="epsilon .*: no epsilon; give a number above 0"):
        coding_rate(np.ones((2, 3), np.float32), epsilon)


# The head

def torch_model(form, *, moved=True):
    """A hash model of torch_ref; `moved` has statistics of some features behind it."""
    torch.manual_seed(0)
    model = torch_models.create_hash_model(BACKBONE, BITS, form)
    if moved:
        torch_models.get_head(model).train()(torch.randn(40, 64) + 1)
    return model.eval()


def in_jax(form, state):
    """A hash model of ours with these weights."""
    return load_torchvision_state(nnx.eval_shape(lambda: create_hash_model(BACKBONE, BITS, form=form)), state)


@pytest.mark.parametrize("form", FORMS)
def test_a_head_goes_to_plain_pytorch_and_back_and_says_the_same(form):
    theirs = torch_model(form)
    ours = in_jax(form, theirs.state_dict())
    state = torchvision_state(ours)
    assert list(state) == list(theirs.state_dict())
    last = 3 if form == "hashcoder_small" else 5
    assert {"fc.0.weight", f"fc.{last - 1}.bias", f"fc.{last}.running_var", f"fc.{last}.num_batches_tracked"} <= set(state)
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(state[name], tensor.numpy())
    torch_model(form, moved=False).load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    features = np.random.default_rng(1).normal(size=(9, 64)).astype(np.float32)
    with torch.no_grad():
        expected = torch_models.get_head(theirs)(torch.tensor(features))
    assert_close(jax.jit(lambda features: ours.head(features))(features), expected)
    np.testing.assert_array_equal(head_codes(ours, features), np.sign(expected))


@pytest.mark.parametrize("form", FORMS)
def test_a_new_head_is_drawn_as_the_paper_says(form):
    head = HEADS[form](64, 64, rngs=nnx.Rngs(0))
    layers = [layer for layer in head.layers if isinstance(layer, nnx.Linear)]
    widths = [64, 64, 64] if form == "hashcoder_small" else [64, 2048, 2048, 64]
    assert [(layer.in_features, layer.out_features) for layer in layers] == list(zip(widths, widths[1:], strict=False))
    for layer in layers:
        weights = np.asarray(layer.kernel[...])
        assert weights.std() == pytest.approx(0.02, rel=0.05) and np.abs(weights).max() < 0.11
        assert not np.asarray(layer.bias[...]).any()


# Training

VIEWS, IMAGES, BATCH, EPOCHS = 4, 50, 16, 4  # the last batch has two images and fourteen rows of padding


@pytest.fixture(scope="module")
def trained():
    """The same small head after sixteen steps in both frameworks: models, losses, features."""
    draw = np.random.default_rng(0)
    still = draw.normal(size=(5, 64))[draw.integers(5, size=IMAGES)] + 0.5 * draw.normal(size=(IMAGES, 64))
    views = (still + 0.3 * draw.normal(size=(VIEWS, IMAGES, 64))).astype(np.float32)
    reference_model = torch_model("hashcoder_small", moved=False)
    model = in_jax("hashcoder_small", reference_model.state_dict())
    objective = create_objective("crovca")
    schedule = {"n_images": IMAGES, "batch_size": BATCH, "epochs": EPOCHS, "seed": 5, "kept_views": VIEWS}
    stage, parameters, carry = teacher_stage(model, learning_rate=1e-3, temperature=0.3, kl_weight=0.0, objective=objective,
                                             **job(KeptFeatures(jnp.asarray(views)), **schedule))
    state, losses = start(stage, parameters, carry), []
    for epoch in range(EPOCHS):
        batches = epoch_batches(IMAGES, BATCH, epoch=epoch, seed=5, views=VIEWS)
        task = stage.task
        state, metrics = train_epoch(task.loss, task.optimizer, state, task.constants, batches, jax.random.key(0))
        losses.extend(np.asarray(metrics["loss"]).tolist())
    nnx.update(model, state.parameters, state.carry)
    features = torch.tensor(views)
    expected = train_teacher(
        torch_models.get_head(reference_model), lambda indices, numbers: features[numbers, indices], Schedule(**schedule),
        learning_rate=1e-3, loss=lambda _, logits: torch_objectives.crovca_loss(logits),
        optimizer=torch_objectives.OPTIMIZERS["crovca"], hashing=objective)
    return model, reference_model, losses, expected, still.astype(np.float32)


def test_a_training_of_the_head_follows_torch_refs_losses_statistics_and_codes(trained):
    """Losses within 1e-4 and weights within 1e-3 of the largest: float32 rounding that Adam carries along.

    Batch norm takes away the bias before it, whose gradient is rounding alone: Adam makes steps of it, and the mean follows.
    """
    model, theirs, losses, expected, still = trained
    assert len(losses) == 16 and losses[-2] < losses[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    state = torchvision_state(model)
    for name in set(state) - {"fc.2.bias", "fc.3.running_mean"}:
        tensor = theirs.state_dict()[name]
        np.testing.assert_allclose(state[name], tensor, rtol=0, atol=1e-3 * float(tensor.abs().max()), err_msg=name)
    assert state["fc.3.num_batches_tracked"] == 2 * 16  # each view is normalised by itself
    assert not state["bn1.num_batches_tracked"]  # the backbone stayed in evaluation mode
    with torch.no_grad():
        logits = torch_models.get_head(theirs)(torch.tensor(still)).numpy()
    sure = np.abs(logits) > 0.05
    assert sure.mean() > 0.7
    np.testing.assert_array_equal(head_codes(model, still)[sure], np.sign(logits)[sure])


def test_the_rate_falls_from_the_first_to_the_last_by_a_cosine():
    """Read off the weight decay of a weight without a gradient: each step takes rate times decay of it."""
    objective = create_objective("crovca", crovca_weight_decay=1.0)
    optimizer = objective.optimizer(1e-3, 10)
    weight, rates = jnp.ones(()), []
    state, step = optimizer.init(weight), jax.jit(optimizer.update)
    for _ in range(10):
        update, state = step(jnp.zeros(()), state, jnp.ones(()))
        rates.append(-float(update))
    np.testing.assert_allclose(rates, 1e-6 + (1e-3 - 1e-6) * (1 + np.cos(np.pi * np.arange(10) / 10)) / 2, rtol=1e-5)
    low = dataclasses.replace(objective, crovca_final_lr=1.0).optimizer(1e-3, 10)
    update, _ = low.update(jnp.zeros(()), low.init(weight), jnp.ones(()))
    assert -float(update) == pytest.approx(1e-3)  # it never rises


# The encoder

@pytest.fixture(scope="module")
def encoder(trained):
    """Its batch norm takes from each bit what one of the images gives it: there rounding alone decides."""
    model = nnx.clone(trained[0])
    made = create_encoder(model, BACKBONE, USUAL, bits=BITS, role="teacher")
    *before, norm = model.head.layers
    views = jnp.concatenate([made._view(image) for image in noise(10, 32, 32)])
    values = jax.jit(lambda views: model.backbone(views, train=False))(views)
    for layer in before:
        values = layer(values)
    norm.bias.set_value(jnp.zeros(BITS))
    norm.mean.set_value(jnp.stack([values[bit % 10, bit] for bit in range(BITS)]))
    return create_encoder(model, BACKBONE, USUAL, bits=BITS, role="teacher")


def test_the_bits_under_such_a_head_are_the_same_alone_and_in_a_batch(encoder):
    images = noise(10, 32, 32)
    placed = Placed.of(encoder.model)
    logits, terms = (np.asarray(part)[:8] for part in placed.logits([encoder._view(image) for image in images[:8]]))
    assert ((np.abs(logits) <= DOUBT["float32"] * terms).sum(axis=1) >= 1).all()  # else this would test little
    assert (np.abs(logits) <= DOUBT["float32"] * terms).mean() < 0.5
    together = encoder.encode(images)
    same(together, PackedCodes.concatenate([encoder.encode(image) for image in images]))
    same(encoder.encode(images[::-1]), together[::-1])


def test_the_folder_of_an_encoder_keeps_the_head_and_its_statistics(encoder, tmp_path):
    again = load(encoder.save(tmp_path / "teacher"))
    assert again.model.form == "hashcoder_small" and again.space == encoder.space
    for name, value in torchvision_state(encoder.model).items():
        np.testing.assert_array_equal(torchvision_state(again.model)[name], value)
    images = noise(5, 32, 32)
    same(again.encode(images), encoder.encode(images))
    moved = in_jax("hashcoder_small", torchvision_state(encoder.model))
    moved.head.layers[-1].mean.set_value(moved.head.layers[-1].mean[...] + 1)
    assert space_of(moved, BACKBONE, USUAL) != encoder.space


def test_a_folder_of_a_head_that_nobody_knows_is_refused(encoder, tmp_path):
    folder = encoder.save(tmp_path / "teacher")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("hashcoder_small", "hashcoder_smal"))
    with pytest.raises(InputError, match="unknown hash head 'hashcoder_smal': did you mean 'hashcoder_small'"):
        load(folder)


@pytest.mark.parametrize(("form", "any_form", "kept"), [
    (None, True, True), ("hashcoder_large", True, True), ("hashcoder_large", False, False)])
def test_a_head_that_comes_is_kept_whatever_is_asked_for_or_left_out_with_a_remark(encoder, tmp_path, form, any_form, kept):
    folder = encoder.save(tmp_path / "teacher")
    built = build(BACKBONE, BITS, folder, option="teacher_weights", seed=0, dtype="float32", cache_dir=tmp_path, form=form,
                  any_form=any_form)
    assert built.head_came == kept and built.model.form == ("hashcoder_small" if kept else form)
    assert ("its hash head of 12 bits is taken too" if kept else "its head is left out") in built.remarks[-1]
    if kept:
        np.testing.assert_array_equal(built.model.head.layers[-1].mean[...], encoder.model.head.layers[-1].mean[...])


def test_a_linear_head_that_comes_is_kept_unless_crovcas_is_asked_for(tmp_path):
    plain = create_encoder(create_hash_model(BACKBONE, BITS), BACKBONE, USUAL, bits=BITS, role="teacher").save(tmp_path / "plain")
    for any_form in (True, False):
        built = build(BACKBONE, BITS, plain, option="teacher_weights", seed=0, dtype="float32", cache_dir=tmp_path,
                      form="hashcoder_small", any_form=any_form)
        assert built.head_came == any_form and built.model.form == (None if any_form else "hashcoder_small")


def test_torch_refs_file_of_such_a_head_is_recognised(tmp_path):
    from torch_ref import distill

    theirs = torch_model("hashcoder_large")
    distill.save(theirs, tmp_path / "teacher.safetensors")
    assert torch_models.form_of(str(tmp_path / "teacher.safetensors")) == "hashcoder_large"
    built = build(BACKBONE, BITS, tmp_path / "teacher.safetensors", option="teacher_weights", seed=0, dtype="float32",
                  cache_dir=tmp_path, any_form=True)
    assert built.head_came and built.model.form == "hashcoder_large"

