"""Both frameworks train alike: the same weights, batches and views give the same losses and the same search quality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jobs import GivenViews, job
from torchvision.models import VisionTransformer as TorchTransformer

from jax_brcd.losses.codes import hash_codes
from jax_brcd.methods import TeacherKnowledge, create_method
from jax_brcd.models import HashModel, create_hash_model, load_torchvision_state, torchvision_state
from jax_brcd.models.vit import VisionTransformer
from jax_brcd.retrieval import mean_average_precision
from jax_brcd.settings.stages import LearningConfig
from jax_brcd.stages.pretraining import pretraining_stage
from jax_brcd.stages.student import student_stage
from jax_brcd.stages.teacher import teacher_stage
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.loop import fit, start, train_epoch
from jax_brcd.views.batches import epoch_batches
from jax_brcd.views.sources import KeptFeatures, KeptTeacher
from torch_ref import losses, retrieval
from torch_ref.methods import Known
from torch_ref.methods import create_method as create_torch_method
from torch_ref.models import create_hash_model as create_torch_model
from torch_ref.outputs import Outputs, outputs_of
from torch_ref.training import Schedule, pretrain, train_student, train_teacher

VIEWS, IMAGES, CLASSES, BITS, BATCH = 4, 300, 5, 16, 32
TEMPERATURE, KL_WEIGHT = 0.3, 0.001
BACKBONE = "resnet8"  # its head takes 64 features, which are given here


@pytest.fixture(scope="module")
def scene():
    """Features of five noisy classes and of their views, for a teacher and a weaker student."""
    draw = np.random.default_rng(0)
    labels = draw.integers(CLASSES, size=IMAGES)
    scene = {"labels": np.eye(CLASSES)[labels]}
    for role, noise in (("teacher", 0.8), ("student", 1.2)):
        means = draw.normal(size=(CLASSES, 64))
        still = means[labels] + noise * draw.normal(size=(IMAGES, 64))
        scene[role] = still.astype(np.float32)
        scene[f"{role}_views"] = (still + 0.5 * draw.normal(size=(VIEWS, IMAGES, 64))).astype(np.float32)
    scene["projection"] = (draw.normal(size=(64, BITS)) / 8).astype(np.float32)  # features to logits of about 1
    scene["teacher_codes"] = np.sign(scene["teacher"] @ scene["projection"])
    scene["teacher_code_views"] = np.sign(scene["teacher_views"] @ scene["projection"])
    return scene


@pytest.fixture
def heads():
    """The same freshly initialised head in both frameworks."""
    torch.manual_seed(0)
    reference = create_torch_model(BACKBONE, BITS).eval()
    model = load_torchvision_state(create_hash_model(BACKBONE, BITS), reference.state_dict())
    return model, reference


def stage_settings(epochs, **settings):
    return {"n_images": IMAGES, "batch_size": BATCH, "epochs": epochs, "seed": 5, "kept_views": VIEWS, **settings}


def trained(stage, parameters, carry):
    """The loss of every step of a stage, an epoch at a time, and its last state."""
    state, found = start(stage, parameters, carry), []
    for epoch in range(stage.schedule.epochs):
        source, schedule = stage.source, stage.schedule
        batches = epoch_batches(source.n_images, schedule.batch_size, epoch=epoch, seed=schedule.seed, views=source.kept_views)
        state, metrics = train_epoch(stage.task.loss, stage.task.optimizer, state, stage.task.constants, batches,
                                     jax.random.key(0))
        found.extend(np.asarray(metrics["loss"]).tolist())
    return found, state


def step_losses(stage, parameters, carry):
    """The loss of every step alone."""
    return trained(stage, parameters, carry)[0]


def test_twenty_steps_of_pretraining_follow_the_same_losses():
    """The head begins with eight times its usual weights, of which decay shows within few steps; the last batch is a part."""
    draw, count = np.random.default_rng(2), 40
    classes = draw.integers(CLASSES, size=count)
    means = 2 * draw.normal(size=(CLASSES, 1, 1, 3))[classes]
    pixels = (means + draw.normal(size=(2, count, 8, 8, 3))).astype(np.float32)
    schedule = {"n_images": count, "batch_size": 16, "epochs": 7, "seed": 5, "kept_views": 2}
    torch.manual_seed(1)
    reference = TorchTransformer(8, 4, 1, 2, 16, 32, num_classes=CLASSES)
    reference.heads = torch.nn.Linear(16, CLASSES)
    with torch.no_grad():
        reference.heads.weight *= 8
    model = load_torchvision_state(HashModel(VisionTransformer(8, 4, 1, 2, 16, 32, rngs=nnx.Rngs(0)), CLASSES, rngs=nnx.Rngs(0)),
                                   reference.state_dict())
    parts = job(GivenViews(jnp.asarray(pixels)), **schedule)

    def accuracy():
        return float((model(jnp.asarray(pixels[0])).argmax(axis=1) == classes).mean())

    before = accuracy()
    ours, state = trained(*pretraining_stage(model, parts["source"], np.eye(CLASSES)[classes], parts["schedule"]))
    nnx.update(model, state.parameters, state.carry)
    assert accuracy() > before + 0.4
    images = torch.tensor(pixels).permute(0, 1, 4, 2, 3)
    expected = pretrain(reference, lambda indices, views: images[views, indices], torch.tensor(classes), Schedule(**schedule))
    assert len(ours) == 21
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_fifty_steps_of_a_teachers_head_follow_the_same_losses(scene, heads):
    """Within 1e-4: float32 rounding that Adam carries along; a code bit that flips a step early would show as 1e-2."""
    model, reference = heads
    stage, parameters, carry = teacher_stage(
        model, learning_rate=1e-3, temperature=TEMPERATURE, kl_weight=KL_WEIGHT,
        **job(KeptFeatures(jnp.asarray(scene["teacher_views"])), **stage_settings(5)))
    features = torch.tensor(scene["teacher_views"])
    expected = train_teacher(
        reference.fc, lambda indices, views: features[views, indices], Schedule(**stage_settings(5)), learning_rate=1e-3,
        loss=lambda _, logits: losses.cibhash_loss(*logits.chunk(2), temperature=TEMPERATURE, kl_weight=KL_WEIGHT))
    ours = step_losses(stage, parameters, carry)
    assert len(ours) == 50 and ours[-1] < ours[0]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def student_in_both(scene, heads, epochs, validate=None, name="brcd", own_objective=True, **settings):
    """The student stage in JAX, and a function that trains the same student in PyTorch."""
    model, reference = heads
    method = create_method(name, **{"clusters": CLASSES, **settings} if "brcd" in name else settings)
    teacher_head = nnx.Linear(64, BITS, rngs=nnx.Rngs(0))
    teacher_head.kernel[...] = jnp.asarray(scene["projection"])
    teacher = KeptTeacher(jnp.asarray(scene["teacher_code_views"], jnp.int8)).with_features(
        KeptFeatures(jnp.asarray(scene["teacher_views"])), teacher_head)
    stage, parameters, carry = student_stage(
        model, teacher, method, TeacherKnowledge.of(scene["teacher_codes"], method.needs, seed=3),
        train_backbone=False, learning_rate=1e-3, temperature=TEMPERATURE, kl_weight=KL_WEIGHT, method_seed=3,
        learning=LearningConfig(own_objective=own_objective), validate=validate,
        searches=("symmetric", "asymmetric") if validate else (),
        **job(KeptFeatures(jnp.asarray(scene["student_views"])), **stage_settings(epochs, validation_interval=5, patience=100)))
    known = Known(torch.tensor(scene["teacher_codes"]), 3, TEMPERATURE, (2, 30), 64, 64)
    distillation = create_torch_method(name, method, known)
    features, of_teacher = torch.tensor(scene["student_views"]), Outputs(*map(torch.tensor, (
        scene["teacher_views"], scene["teacher_views"] @ scene["projection"], scene["teacher_code_views"])))
    for part, weights in parameters["method"].items():
        for layer in distillation.parts[name.split("+").index(part)].children() if weights else ():
            kernel, bias = weights["map"]["kernel"], weights["map"]["bias"]
            layer.load_state_dict({"weight": torch.tensor(kernel.T), "bias": torch.tensor(bias)})

    def train_reference(validate_reference):
        return train_student(
            reference, [*reference.fc.parameters(), *distillation.parameters()],
            lambda indices, views, shown: (outputs_of(reference.fc, features[views, indices]) if shown else None,
                                           Outputs(*(part[views, indices] for part in of_teacher))),
            distillation, Schedule(**stage_settings(epochs, validation_interval=5, patience=100)), validate_reference,
            learning_rate=1e-3, temperature=TEMPERATURE, kl_weight=KL_WEIGHT,
            views=("i",) if method.replaces_objective else ("i", "j"), unseen=() if own_objective else method.needs.unseen,
            replaces_objective=method.replaces_objective or not own_objective)

    return stage, parameters, carry, train_reference


def test_fifty_steps_of_a_students_head_follow_the_same_losses(scene, heads):
    stage, parameters, carry, train_reference = student_in_both(scene, heads, epochs=5)
    _, expected = train_reference(lambda: {"symmetric": 0.0, "asymmetric": 0.0})
    ours = step_losses(stage, parameters, carry)
    assert len(ours) == 50 and ours[-1] < ours[0]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


@pytest.mark.parametrize(("name", "settings"), [
    ("brcd+mse+bits", {"mse_on": "features", "method_weights": "1,0.5,2"}),
    ("mse+bits", {"replaces_objective": True, "method_weights": "0.5,1"}),
    ("brcd", {"own_objective": False})])
def test_twenty_steps_of_other_methods_follow_the_same_losses(scene, heads, name, settings):
    """The last two learn without CIBHash: one encodes one view, one shows its student one of two."""
    stage, parameters, carry, train_reference = student_in_both(scene, heads, epochs=2, name=name, **settings)
    _, expected = train_reference(lambda: {"symmetric": 0.0, "asymmetric": 0.0})
    ours = step_losses(stage, parameters, carry)
    assert len(ours) == 20 and ours[-1] < ours[0]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_whole_distillation_ends_at_the_same_map(scene, heads, tmp_path):
    """From the same teacher codes, batches and head: mAP@50 of both searches within 0.002."""
    model, reference = heads
    labels, k = scene["labels"], 50

    def jax_codes(student: HashModel):
        return np.asarray(hash_codes(student.head(jnp.asarray(scene["student"]))))

    def torch_codes():
        with torch.no_grad():
            return losses.hash_codes(reference.fc(torch.tensor(scene["student"]))).numpy()

    def searches(codes, measure):
        return {"symmetric": measure(codes, codes, labels, labels, k),
                "asymmetric": measure(codes, scene["teacher_codes"], labels, labels, k)}

    def validate(state):
        nnx.update(model, state.parameters["model"])
        return searches(jax_codes(model), mean_average_precision)

    stage, parameters, carry, train_reference = student_in_both(scene, heads, epochs=20, validate=validate)
    checkpoints = Checkpoints(tmp_path / "student")
    fitted = fit(stage, start(stage, parameters, carry), checkpoints)
    checkpoints.close()
    best, _ = train_reference(lambda: searches(torch_codes(), retrieval.mean_average_precision))
    for search in ("symmetric", "asymmetric"):
        ours = validate(fitted.best[search])[search]
        reference.load_state_dict(best[search])
        theirs = searches(torch_codes(), retrieval.mean_average_precision)[search]
        assert ours == pytest.approx(theirs, abs=0.002)
        assert ours > 0.4  # random codes of five classes score 0.2


def test_an_exported_student_gives_pytorch_the_same_codes(heads):
    model, _ = heads
    reference = create_torch_model(BACKBONE, BITS).eval()
    reference.load_state_dict({name: torch.from_numpy(value) for name, value in torchvision_state(model).items()})
    images = np.random.default_rng(1).normal(size=(6, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = losses.hash_codes(reference(torch.tensor(images).permute(0, 3, 1, 2))).numpy()
    np.testing.assert_array_equal(hash_codes(model(jnp.asarray(images))), theirs)
