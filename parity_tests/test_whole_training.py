"""A student trained whole as people train today: in both frameworks alike, and to the last bit where it was cut."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jobs import GivenViews, job
from toy_runs import PIXELS_SIDE, Pixels, history, stages, tiny

import jax_brcd
from jax_brcd.data import load_dataset
from jax_brcd.encoder import read_config
from jax_brcd.hub.card import model_card
from jax_brcd.methods import TeacherKnowledge, create_method
from jax_brcd.models import HashModel, create_hash_model, load_torchvision_state
from jax_brcd.models.adapt import adapted
from jax_brcd.retrieval import candidates, cosine_neighbours
from jax_brcd.retrieval import neighbours as looking
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.recipes import RECIPES
from jax_brcd.settings.stages import LearningConfig
from jax_brcd.stages import distillation, neighbours
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.student import put, student_stage
from jax_brcd.teachers.base import average
from jax_brcd.training import loop
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.loop import fit, start, stepped_epoch
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.views.batches import Batches, epoch_batches
from jax_brcd.views.sources import PixelViews, StillTeacher
from torch_ref import distill
from torch_ref.methods import Known
from torch_ref.methods import create_method as create_torch_method
from torch_ref.models import create_hash_model as create_torch_model
from torch_ref.models import features_of, get_head
from torch_ref.models import train as training_mode
from torch_ref.outputs import Outputs
from torch_ref.outputs import outputs_of as torch_outputs_of
from torch_ref.training import Schedule, train_student

pytestmark = pytest.mark.long

IMAGES, BATCH, EPOCHS, BITS, VIEWS = 72, 16, 10, 8, 2  # five steps an epoch, the last of half a batch
RATE = 1e-3
# Its rate is high to the last steps but two epochs, so that the average lags behind
WHOLE = LearningConfig(optimizer="adamw", lr_schedule="one-cycle", warmup_epochs=8.0, weight_decay=0.05, clip_norm=0.5,
                       ema_decay=0.9, own_objective=False)


@pytest.fixture(scope="module")
def scene():
    """Noisy images of two kinds with what a teacher says of them."""
    draw = np.random.default_rng(0)
    kinds = draw.normal(size=(2, 32, 32, 3))[draw.integers(2, size=IMAGES)]
    pixels = (kinds + 0.5 * draw.normal(size=(VIEWS, IMAGES, 32, 32, 3))).astype(np.float32)
    logits = (kinds.reshape(IMAGES, -1) @ draw.normal(size=(32 * 32 * 3, BITS)) / 30).astype(np.float32)
    return pixels, logits


def whole_stage(model, scene, views=None, rate=RATE, **settings):
    """The stage of a whole student under its teacher's logits of the clean images."""
    pixels, logits = scene
    method = create_method("mse")
    teacher = StillTeacher(jnp.asarray(np.sign(logits), jnp.int8), jnp.asarray(logits))
    told = {"n_images": IMAGES, "batch_size": BATCH, "epochs": EPOCHS, "seed": 5, "kept_views": VIEWS, "learning": WHOLE,
            **settings}
    return student_stage(
        model, teacher, method, TeacherKnowledge.of(np.sign(logits), method.needs, seed=0), train_backbone=True,
        learning_rate=rate, temperature=0.3, kl_weight=0.001, method_seed=0,
        **job(views or GivenViews(jnp.asarray(pixels)), **told))


def last_state(stage, parameters, carry):
    """The state after all epochs, and the losses of all steps."""
    state, losses = start(stage, parameters, carry), []
    for epoch in range(stage.schedule.epochs):
        batches = epoch_batches(IMAGES, BATCH, epoch=epoch, seed=stage.schedule.seed, views=VIEWS)
        state, metrics = stepped_epoch(stage.task.loss, stage.task.optimizer, state, stage.task.constants, batches,
                                       jax.random.key(0))
        losses.extend(metrics["loss"].tolist())
    return state, losses


def in_both(scene, name, rate=RATE):
    """A whole student trained in both frameworks: the model and its last state, the reference and what it kept, and both's losses."""
    torch.manual_seed(0)
    reference = create_torch_model(name, BITS)
    model = load_torchvision_state(create_hash_model(name, BITS), reference.eval().state_dict())
    state, ours = last_state(*whole_stage(model, scene, rate=rate))
    training_mode(reference, whole=True)
    pixels, logits = (torch.from_numpy(part) for part in scene)
    pixels = pixels.permute(0, 1, 4, 2, 3)

    def outputs(indices, numbers, shown):
        student = torch_outputs_of(get_head(reference), features_of(reference, pixels[numbers, indices]))
        return student, Outputs(logits=logits[indices])

    method = create_method("mse")
    best, theirs = train_student(
        reference, list(reference.parameters()), outputs, create_torch_method("mse", method, Known(torch.sign(logits), 0)),
        Schedule(IMAGES, BATCH, EPOCHS, 5, VIEWS), None, learning_rate=rate, temperature=0.3, kl_weight=0.001, views=("i",),
        replaces_objective=True, learning=WHOLE)
    return model, state, reference, best, ours, theirs


@pytest.mark.parametrize("name", ["resnet8", "vit_lite_4_8"])
def test_fifty_steps_of_a_whole_student_follow_the_same_losses(scene, name):
    """Batch statistics, AdamW under one cycle, clipping, the average: each loss within 1e-3, and the average's logits."""
    model, state, reference, best, ours, theirs = in_both(scene, name)
    assert len(ours) == 50 and ours[-1] < 0.5 * ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    reference.load_state_dict(best["symmetric"])
    with torch.no_grad():
        expected = reference.eval()(torch.from_numpy(scene[0][0]).permute(0, 3, 1, 2)).numpy()
    found = np.asarray(put(model, state)(jnp.asarray(scene[0][0]), train=False))
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    last = np.asarray(put(model, dataclasses.replace(state, optimizer=()))(jnp.asarray(scene[0][0]), train=False))
    assert np.abs(last - expected).max() > 5e-3 * np.abs(expected).max()  # the last weights are not their average


def test_fifty_steps_of_a_whole_resnet18_follow_the_same_losses(scene):
    """At a low rate: of 32 pixels its last batch norms see one value an image, and at 1e-4 float32's last digits grow there to a
    hundredth within thirty steps."""
    *_, ours, theirs = in_both(scene, "resnet18", rate=1e-5)
    assert len(ours) == 50 and ours[-1] < 0.8 * ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def small_student():
    """A student of two blocks."""
    return HashModel(adapted(Pixels(nnx.Rngs(0)), name="pixels", image_size=PIXELS_SIDE), BITS, rngs=nnx.Rngs(1))


def test_a_training_cut_inside_an_epoch_ends_to_the_last_bit(monkeypatch, tmp_path):
    """With all that a step carries along: moments, schedule, accumulated gradients, thawing, averages, mixtures."""
    everything = dataclasses.replace(WHOLE, accumulate=2, layer_decay=0.7, freeze_epochs=1, freeze_blocks=1, mixup=0.4,
                                     warmup_epochs=1.0)
    draw = np.random.default_rng(0)
    images = draw.integers(256, size=(IMAGES, PIXELS_SIDE, PIXELS_SIDE, 3), dtype=np.uint8)
    scene = images, draw.normal(size=(IMAGES, BITS)).astype(np.float32)

    def trained(folder):
        views = PixelViews(jnp.asarray(scene[0]), jax.random.key(0), ViewConfig(size=PIXELS_SIDE, **RECIPES["crop-flip"]), True)
        stage, parameters, carry = whole_stage(small_student(), scene, views, learning=everything, epochs=3, scan=False,
                                               checkpoint_seconds=0.0)
        checkpoints = Checkpoints(tmp_path / folder)
        try:
            return fit(stage, start(stage, parameters, carry), checkpoints)
        finally:
            checkpoints.close()

    whole = trained("whole")
    with monkeypatch.context() as patch:
        calls, original = [], loop.stepped_epoch

        def cut(*arguments, after_step, **others):
            def stop(step, state, history):
                after_step(step, state, history)
                calls.append(step)
                if len(calls) == 13:
                    raise KeyboardInterrupt

            return original(*arguments, after_step=stop, **others)

        patch.setattr(loop, "stepped_epoch", cut)
        with pytest.raises(KeyboardInterrupt):
            trained("cut")
    assert calls[-1] == 3  # of the five steps of the third epoch
    resumed = trained("cut")
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(resumed.state), jax.tree.leaves(whole.state))
    assert [record["loss"] for record in resumed.history] == [record["loss"] for record in whole.history]


SETTINGS = {"train_backbone": True, "method": "mse", "own_objective": False, "teacher_view": "clean", "fresh_views": True,
            "view_recipe": "crop-flip", "optimizer": "adamw", "lr_schedule": "cosine", "ema_decay": 0.9,
            "clip_norm": 1.0, "epochs": 3, "lr": 1e-2, "keep": "both"}


def test_a_student_kept_for_both_searches_is_one_encoder_of_its_teachers_space(cache, tmp_path, toy_backbones):
    metrics, _ = tiny(tmp_path / "run", cache, **SETTINGS)
    names = {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()}
    assert names == {"teacher", "student_both"} and (tmp_path / "run" / "student_both.safetensors").exists()
    teacher, student = (jax_brcd.load(tmp_path / "run" / name) for name in ("teacher", "student_both"))
    assert student.space == teacher.space and set(metrics["student"]) == {"symmetric", "asymmetric"}
    assert student.provenance["metrics"]["asymmetric"] == metrics["student"]["asymmetric"]
    assert student.provenance["metrics"]["map"] == metrics["student"]["symmetric"]["map"]
    card = model_card(read_config(tmp_path / "run" / "student_both"), "user/it")
    assert "student, for symmetric and asymmetric search" in card
    records = [record for record in history(tmp_path / "run") if "both_map" in record]
    assert len(records) == 3
    for record in records:
        assert record["both_map"] == pytest.approx((record["symmetric_map"] + record["asymmetric_map"]) / 2)
    with np.load(tmp_path / "run" / "codes.npz") as codes:
        np.testing.assert_array_equal(codes["symmetric_test"], codes["asymmetric_test"])
    _, said = tiny(tmp_path / "run", cache, **SETTINGS)
    assert "already there" in said[-1]
    # a schedule that ends later is another training: its folder is none that longer ones go on from
    students = [name for name in stages(cache) if name.startswith("student")]
    assert students and not any("3epochs" in name for name in students)


@pytest.mark.parametrize(("own_objective", "encoded"), [(False, 1), (True, 2)])
def test_a_method_of_one_view_alone_pays_for_one(scene, own_objective, encoded):
    seen = []

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Counted(GivenViews):
        def outputs(self, model, *arguments, **others):
            seen.append(1)
            return super().outputs(model, *arguments, **others)

    learning = dataclasses.replace(WHOLE, own_objective=own_objective)
    stage, parameters, carry = whole_stage(small_student(), scene, views=Counted(jnp.asarray(scene[0][:, :, :8, :8])),
                                           learning=learning)
    batch = Batches(*(part[0] for part in epoch_batches(IMAGES, BATCH, epoch=0, seed=0, views=VIEWS)))
    _, (_, metrics) = jax.eval_shape(stage.task.loss, parameters, carry, stage.task.constants, batch, jax.random.key(0))
    assert len(seen) == encoded and ("contrastive" in metrics) == own_objective


def test_torch_refs_run_takes_the_same_settings(tmp_path, cache, monkeypatch):
    """That they reach its student, who is shown one view and the teacher's clean outputs; what it does not do is refused."""
    told = {"teacher": "resnet8", "teacher_weights": "random", "teacher_epochs": 0, "student": "resnet8", "bits": BITS,
            "cache_dir": cache, "out": tmp_path / "torch", "epochs": 1, "batch_size": 256, "views": 2,
            **{name: value for name, value in SETTINGS.items() if name not in ("epochs", "keep")}}
    config, seen = create_config(**told), []

    def train(model, parameters, outputs, *others, learning, views, replaces_objective, **settings):
        assert (learning, views, replaces_objective) == (config.learning, ["i"], True)
        rows = torch.arange(4)
        seen.extend(outputs(rows, torch.full((4,), number))[1].logits for number in (0, 1))
        raise KeyboardInterrupt

    monkeypatch.setattr(distill, "train_student", train)
    with pytest.raises(KeyboardInterrupt):
        distill.run(config)
    torch.testing.assert_close(*seen, rtol=0, atol=0)
    with pytest.raises(InputError, match="keep both: torch_ref does not honour it"):
        distill.run(create_config(**told, keep="both"))
    with pytest.raises(InputError, match="ema_decay 0.9: of the frozen student"):
        distill.run(create_config(**{**told, "train_backbone": False, "out": tmp_path / "other"}))


@pytest.mark.parametrize("most", [looking.CANDIDATES, 50])
def test_a_students_teacher_may_speak_with_its_neighbours(tmp_path, toy_backbones, monkeypatch, most):
    """The student's targets are the means of what the teacher says; they are found once, for every method."""
    monkeypatch.setattr(looking, "CANDIDATES", most)
    cache, told, original = tmp_path / "cache", [], distillation.student_stage

    def heard(model, of_teacher, *others, **settings):
        told.append(of_teacher)
        return original(model, of_teacher, *others, **settings)

    monkeypatch.setattr(distillation, "student_stage", heard)
    settings = {**SETTINGS, "epochs": 1, "method": "mse+bits", "method_weights": "1,1"}
    tiny(tmp_path / "alone", cache, **settings)
    tiny(tmp_path / "together", cache, **settings, teacher_neighbours=3)
    alone, together = told
    teacher = jax_brcd.load(tmp_path / "together" / "teacher")
    images = load_dataset("digits", cache_dir=cache).train.images
    others = cosine_neighbours(teacher.features(images), 3, among=candidates(len(images), 0))
    np.testing.assert_allclose(together.logits, average(np.asarray(alone.logits), others), atol=1e-5)
    np.testing.assert_array_equal(together.codes, np.sign(together.logits))
    assert (np.asarray(together.codes) != np.asarray(alone.codes)).any()
    monkeypatch.setattr(neighbours, "cosine_neighbours", lambda *arguments, among: pytest.fail("found again"))
    tiny(tmp_path / "other", cache, **{**settings, "method": "mse", "method_weights": None}, teacher_neighbours=3)
    assert len([name for name in stages(cache) if name.startswith("neighbours")]) == 1


def test_torch_refs_teacher_speaks_with_the_same_neighbours(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(looking, "CANDIDATES", 50)
    told = {"teacher": "resnet8", "teacher_weights": "random", "teacher_epochs": 0, "student": "resnet8", "bits": BITS,
            "cache_dir": cache, "views": 2, **{name: value for name, value in SETTINGS.items() if name != "keep"}}
    seen, rows = [], torch.arange(len(load_dataset("digits", cache_dir=cache).train))

    def train(model, parameters, outputs, *others, **settings):
        seen.append(outputs(rows, torch.zeros_like(rows))[1])
        raise KeyboardInterrupt

    monkeypatch.setattr(distill, "train_student", train)
    for count in (0, 4):
        with pytest.raises(KeyboardInterrupt):
            distill.run(create_config(**told, teacher_neighbours=count, out=tmp_path / str(count)))
    alone, together = ([part.numpy() for part in outputs] for outputs in seen)
    others = cosine_neighbours(alone[0], 4, among=candidates(len(rows), 0))
    for own, mean in zip(alone[:2], together[:2], strict=True):
        np.testing.assert_allclose(mean, average(own, others), atol=1e-5)
    np.testing.assert_array_equal(together[2], np.sign(together[1]))


def test_half_precision_leaves_weights_moments_and_averages_in_float32(scene):
    stage, parameters, carry = whole_stage(create_hash_model("resnet8", BITS, dtype=jnp.bfloat16), scene)
    batch = Batches(*(part[0] for part in epoch_batches(IMAGES, BATCH, epoch=0, seed=0, views=VIEWS)))
    step = functools.partial(loop.train_step, stage.task.loss, stage.task.optimizer)
    state, metrics = jax.eval_shape(step, start(stage, parameters, carry), stage.task.constants, batch, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves((state, metrics))} == {jnp.dtype("float32"), jnp.dtype("int32")}
