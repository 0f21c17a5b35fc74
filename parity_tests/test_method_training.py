"""Every method trains, resumes and sees the views it asks for, whether they are encoded now or were kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jobs import job

from jax_brcd.data import DATASETS, ImageDataset, Images, Source
from jax_brcd.methods import METHODS, TeacherKnowledge, create_method
from jax_brcd.models import HashModel, create_hash_model
from jax_brcd.models.heads import linear_head
from jax_brcd.models.layers import Backbone
from jax_brcd.retrieval import candidates, cosine_neighbours, nearest_neighbours, neighbours
from jax_brcd.runtime.errors import InputError
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.run import run
from jax_brcd.stages.student import draw_negatives, student_stage
from jax_brcd.teachers import base
from jax_brcd.teachers.base import average
from jax_brcd.training import loop as training
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.loop import fit, start, train_epoch
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.views.batches import epoch_batches
from jax_brcd.views.derivations import ITSELF, Mixture, Rotation
from jax_brcd.views.features import FeatureCache
from jax_brcd.views.sources import KeptFeatures, KeptTeacher, LiveTeacher, PixelViews
from torch_ref import augment as reference
from torch_ref.distill import run as distill_in_torch

pytestmark = pytest.mark.long

IMAGES, BITS, BATCH, VIEWS, CLASSES = 40, 16, 16, 3, 4
# The weight makes what falls in training what the method adds, and not the student's own objective
SMALL = {"clusters": CLASSES, "cluster_restarts": 2, "negatives": 12, "embedding": 12, "distillation_weight": 1000.0}


@pytest.fixture(scope="module")
def model():
    return create_hash_model("resnet8", BITS, rngs=nnx.Rngs(0))  # its head takes 64 features, which are given here


@pytest.fixture(scope="module")
def scene():
    """Features of four noisy classes, of their views and of what is derived of them, for a teacher and a weaker student."""
    draw = np.random.default_rng(0)
    means, projection = draw.normal(size=(CLASSES, 64)), draw.normal(size=(64, BITS))
    still = means[draw.integers(CLASSES, size=IMAGES)] + 0.5 * draw.normal(size=(IMAGES, 64))
    names = ["itself", *(Rotation(turns).name for turns in (1, 2, 3)), Mixture(0).name]
    views = {name: still + 0.3 * draw.normal(size=(VIEWS, IMAGES, 64)) for name in names}
    return {
        "codes": np.sign(still @ projection).astype(np.float32),
        "teacher": {name: jnp.asarray(np.sign(part @ projection), jnp.int8) for name, part in views.items()},
        "teacher_features": {name: jnp.asarray(part, jnp.float32) for name, part in views.items()},
        "student": {name: jnp.asarray(part + 0.5 * draw.normal(size=part.shape), jnp.float32)
                    for name, part in views.items()},
    }


def small_method(name):
    own = METHODS[name].__dataclass_fields__
    return create_method(name, **{setting: value for setting, value in SMALL.items() if setting in own})


def stage_of(scene, model, name, epochs=6, **settings):
    (student, *_), (teacher, *_) = (list(scene[role].items()) for role in ("student", "teacher"))
    method = small_method(name)
    source = KeptTeacher(teacher[1], scene["teacher"]).with_features(
        KeptFeatures(scene["teacher_features"]["itself"], scene["teacher_features"]), model.head)
    stage, parameters, carry = student_stage(
        model, source, method, TeacherKnowledge.of(scene["codes"], method.needs, seed=3),
        train_backbone=False, learning_rate=1e-2, temperature=0.3, kl_weight=0.001, method_seed=3,
        **job(KeptFeatures(student[1], scene["student"]), n_images=IMAGES, batch_size=BATCH, epochs=epochs, seed=5,
              kept_views=VIEWS, **settings))
    return stage, start(stage, parameters, carry)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_its_loss_falls(scene, model, name):
    stage, state = stage_of(scene, model, name)
    found = []
    for epoch in range(stage.schedule.epochs):
        batches = epoch_batches(IMAGES, BATCH, epoch=epoch, seed=stage.schedule.seed, views=VIEWS)
        state, metrics = train_epoch(stage.task.loss, stage.task.optimizer, state, stage.task.constants, batches,
                                     jax.random.key(epoch))
        found.append({name: np.asarray(values) for name, values in metrics.items()})
    assert all(np.isfinite(values).all() for metrics in found for values in metrics.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    falling = "contrastive" if name == "none" else "distillation"
    assert found[-1][falling].mean() < found[0][falling].mean()


@pytest.mark.parametrize("name", ["crcd", "packd"])
def test_a_method_with_a_memory_resumes_to_the_same_numbers(scene, model, name, tmp_path, monkeypatch):
    stage, state = stage_of(scene, model, name, epochs=4, checkpoint_seconds=0.0)
    copy = jax.tree.map(jnp.array, state)
    original, calls = training._run_epoch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    whole = fit(stage, state, Checkpoints(tmp_path / "whole"))
    monkeypatch.setattr(training, "_run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(stage, jax.tree.map(jnp.array, copy), Checkpoints(tmp_path / "cut"))
    resumed = fit(stage, copy, Checkpoints(tmp_path / "cut"))
    assert len(calls) == 3 + 2  # two epochs were kept
    for ours, theirs in zip(*map(jax.tree.leaves, (resumed.state, whole.state)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [record["loss"] for record in resumed.history] == [record["loss"] for record in whole.history]


DERIVED = (Rotation(1), Mixture(0))


def cheap_views(keys, images, config):
    """Stands for the published views: another tint for each key."""
    return images / 255.0 + jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 3)))(keys)


@pytest.fixture
def pixels(monkeypatch):
    """Eight random images, views of them, and each one's partners to be mixed with."""
    draw = np.random.default_rng(1)
    images = draw.integers(256, size=(8, 12, 12, 3), dtype=np.uint8)
    partners = nearest_neighbours(draw.choice([-1.0, 1.0], (8, 6)).astype(np.float32), 2)
    for module in ("sources", "features"):
        monkeypatch.setattr(f"jax_brcd.views.{module}.random_views", cheap_views)
    return PixelViews(jnp.asarray(images), jax.random.key(4), ViewConfig(size=12), False, jnp.asarray(partners))


class Flat(nnx.Module):
    """A model, its own backbone, whose features and logits are its pixels in a row."""

    @property
    def backbone(self):
        return self

    def __call__(self, pixels, *, train=False, valid=None, key=None):
        return pixels.reshape(len(pixels), -1)

    def head(self, features):
        return features


def draw_views(views, derivation):
    """View 1 of every image."""
    every = jnp.arange(8)
    drawn = views.outputs(Flat(), every, jnp.ones_like(every), every >= 0, derivation).features
    return np.asarray(drawn).reshape(8, 12, 12, 3)


def test_a_turned_view_is_the_view_turned(pixels):
    upright, turned, full = (draw_views(pixels, derivation) for derivation in (ITSELF, Rotation(1), Rotation(4)))
    np.testing.assert_array_equal(turned, np.rot90(upright, axes=(1, 2)))
    np.testing.assert_array_equal(full, upright)


def assert_mixed(mixed, views, partners):
    """Each image lies on the line between its view and that of one of its partners."""
    for image, view in enumerate(views):
        residuals = []
        for partner in np.asarray(partners)[image]:
            direction, offset = (view - views[partner]).ravel(), (mixed[image] - views[partner]).ravel()
            weight = offset @ direction / (direction @ direction)
            residuals.append(np.abs(offset - weight * direction).max() if 0 <= weight <= 1 else np.inf)
        assert min(residuals) < 1e-4


def test_a_mixed_view_lies_between_the_views_of_an_image_and_of_a_partner(pixels):
    views, mixed, other = (draw_views(pixels, derivation) for derivation in (ITSELF, Mixture(0), Mixture(1)))
    assert_mixed(mixed, views, pixels.partners)
    assert_mixed(other, views, pixels.partners)
    assert np.abs(other - mixed).max() > 0.1  # another mixture of the same view


def test_what_is_derived_of_views_is_the_same_encoded_now_or_kept(pixels, tmp_path, monkeypatch):
    """Kept features are bfloat16, off by up to 1/256 at the largest pixels, 2; they are encoded once, and only what is asked
    for."""
    cache = FeatureCache(tmp_path, "flat", Flat(), "float32")
    images, partners = np.asarray(pixels.images), np.asarray(pixels.partners)

    def kept(**made):
        return cache.views(images, 2, key=pixels.key, config=pixels.config, **made)

    features = kept()
    assert len(list(tmp_path.iterdir())) == 1
    derived = {derivation.name: jnp.asarray(kept(derivation=derivation, partners=partners)) for derivation in DERIVED}
    assert len(list(tmp_path.iterdir())) == 1 + len(DERIVED)
    source = KeptFeatures(jnp.asarray(features), derived)
    batch = jnp.array([6, 1, 1, 0, 3, 4, 4, 7]), jnp.array([0, 1, 0, 0, 1, 1, 0, 1]), jnp.ones(8, bool)
    for derivation in (ITSELF, *DERIVED):
        ours, theirs = (each.outputs(Flat(), *batch, derivation).features for each in (source, pixels))
        np.testing.assert_allclose(ours, theirs, atol=0.004)
    monkeypatch.setattr("jax_brcd.views.features.encode_views", None)
    np.testing.assert_array_equal(kept(derivation=DERIVED[1], partners=partners), derived[DERIVED[1].name])


def test_negatives_are_other_images():
    indices = jnp.arange(10)
    negatives = np.asarray(draw_negatives(jax.random.key(0), indices, 10, 400))
    assert negatives.shape == (10, 400)
    for image, row in enumerate(negatives):
        assert set(row.tolist()) == set(range(10)) - {image}


def test_neighbours_are_the_nearest_others_even_among_equal_codes():
    codes = np.array([[1, 1, 1], [1, 1, -1], [-1, -1, -1], [-1, -1, 1]], np.float32)
    np.testing.assert_array_equal(nearest_neighbours(codes, 1), [[1], [0], [3], [2]])
    equal = nearest_neighbours(np.ones((5, 4), np.float32), 2)
    np.testing.assert_array_equal(equal, [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]])
    assert nearest_neighbours(codes, 10).shape == (4, 3) and nearest_neighbours(codes[:1], 3).shape == (1, 1)


@pytest.mark.parametrize("images", [30, neighbours.TOGETHER + 5])
def test_neighbours_by_features_are_those_of_the_largest_cosines(images):
    features = np.random.default_rng(images).normal(size=(images, 4)).astype(np.float32)
    told = []
    found = cosine_neighbours(features, 3, lambda *words: told.append(words))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    own = np.arange(images)[:, None]
    assert found.dtype == np.int32 and (found != own).all()
    np.testing.assert_allclose(cosines[own, found], -np.sort(-cosines, axis=1)[:, :3], atol=1e-6)
    assert told[0] == ("nearest images", 0, images) and told[-1] == ("nearest images", images, images)
    np.testing.assert_array_equal(reference.cosine_others(torch.from_numpy(features), 3), found)


def test_neighbours_are_looked_for_among_some_where_there_are_many(monkeypatch):
    """The same of both frameworks; whoever is not among them has neighbours too."""
    monkeypatch.setattr(neighbours, "CANDIDATES", 12)
    assert candidates(12, 0) is None
    among = candidates(40, 5)
    np.testing.assert_array_equal(among, sorted(set(among.tolist())))
    assert len(among) == 12 and among.min() >= 0 and among.max() < 40
    np.testing.assert_array_equal(candidates(40, 5), among)
    assert set(candidates(40, 6)) != set(among)
    features = np.random.default_rng(3).normal(size=(40, 4)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = np.where((np.arange(40)[:, None] != among), unit @ unit[among].T, -np.inf)
    found = cosine_neighbours(features, 3, among=among)
    np.testing.assert_array_equal(found, among[np.argsort(-cosines, axis=1)[:, :3]])
    np.testing.assert_array_equal(reference.cosine_others(torch.from_numpy(features), 3, torch.from_numpy(among)), found)
    assert cosine_neighbours(features, 99, among=among).shape == (40, 11)


def test_neighbours_by_features_of_few_and_of_equal_images():
    equal = cosine_neighbours(np.ones((5, 4), np.float32), 2)
    np.testing.assert_array_equal(equal, [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]])
    np.testing.assert_array_equal(cosine_neighbours(np.ones((1, 4), np.float32), 3), [[0]])
    assert cosine_neighbours(np.ones((3, 4), np.float32), 9).shape == (3, 2)
    with pytest.raises(InputError, match="query features must be finite numbers; row 1"):
        cosine_neighbours(np.array([[1.0], [np.nan]]), 1)


@pytest.mark.parametrize("together", [base.TOGETHER, 2])
def test_outputs_are_averaged_with_those_of_neighbours(monkeypatch, together):
    """However many images are averaged at once."""
    monkeypatch.setattr(base, "TOGETHER", together)
    outputs = np.array([[1.0, -3.0], [4.0, 0.0], [-2.0, 6.0]], np.float32)
    np.testing.assert_allclose(average(outputs, np.array([[1, 2], [0, 2], [1, 1]])), [[1, 1], [1, 1], [2, 2]])
    np.testing.assert_allclose(average(outputs, np.array([[1], [1], [0]])), [[2.5, -1.5], [4, 0], [-0.5, 1.5]])


def test_torch_ref_derives_the_same(pixels):
    images = draw_views(pixels, ITSELF)
    channels_first = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    indices, partners = torch.arange(8), torch.tensor(np.asarray(pixels.partners)).long()

    def derive(derivation):
        made = reference.derive(derivation, channels_first, indices, lambda others: channels_first[others], partners, (0, 1))
        return made.numpy().transpose(0, 2, 3, 1)

    for turns in (1, 2, 3):
        np.testing.assert_array_equal(derive(Rotation(turns)), draw_views(pixels, Rotation(turns)))
    assert_mixed(derive(Mixture(0)), images, pixels.partners)
    codes = np.random.default_rng(0).choice([-1.0, 1.0], (30, 5)).astype(np.float32)
    np.testing.assert_array_equal(reference.nearest_others(torch.from_numpy(codes), 4), nearest_neighbours(codes, 4))


class FlatBackbone(Backbone):
    """A backbone whose features are its pixels in a row."""

    name, image_size, features = "flat", 12, 12 * 12 * 3
    head = staticmethod(linear_head)

    def __call__(self, images, *, train=False, valid=None, key=None):
        return images.reshape(len(images), -1)


@pytest.mark.parametrize("name", ["sskd", "packd"])
def test_a_method_sees_the_same_of_views_encoded_now_or_kept(pixels, name):
    """Step by step the same loss; kept in float32 here, so but for the order of sums."""
    method = small_method(name)
    student, teacher = (HashModel(FlatBackbone(), BITS, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    every, numbers = jnp.tile(jnp.arange(8), 2), jnp.repeat(jnp.arange(2), 8)

    def kept(derivation):
        return pixels.outputs(Flat(), every, numbers, every >= 0, derivation).features.reshape(2, 8, -1)

    derived = {derivation.name: kept(derivation) for derivation in method.needs.derivations}
    features = KeptFeatures(kept(ITSELF), derived)
    codes = np.sign(np.random.default_rng(0).normal(size=(8, BITS))).astype(np.float32)
    found = []
    for views in (pixels, features):
        stage, parameters, carry = student_stage(
            student, LiveTeacher.of(teacher, views), method, TeacherKnowledge(codes), train_backbone=False,
            learning_rate=1e-3, temperature=0.3, kl_weight=0.001, method_seed=3,
            **job(views, n_images=8, batch_size=3, epochs=1, seed=5, kept_views=2))
        batches = epoch_batches(8, 3, epoch=0, seed=stage.schedule.seed, views=2)
        _, metrics = train_epoch(stage.task.loss, stage.task.optimizer, start(stage, parameters, carry), stage.task.constants,
                                 batches, jax.random.key(0))
        found.append(np.asarray(metrics["loss"]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def made_up_images(request):
    draw = np.random.default_rng(request.seed)

    def part(count):
        labels = np.arange(count) % 3
        noise = draw.integers(100, size=(count, 16, 16, 3))
        return Images((noise + 70 * labels[:, None, None, None]).astype(np.uint8), np.eye(3, dtype=np.uint8)[labels])

    return ImageDataset(name="made-up", split="all", train=part(20), database=part(20), validation=part(6), test=part(6),
                        class_names=("a", "b", "c"), flip=True, default_k=5)


def made_up_run(folder, monkeypatch, name, **settings):
    """The configuration of a run of seconds."""
    monkeypatch.setitem(DATASETS._entries, "made-up", Source(made_up_images))
    own = {setting: value for setting, value in {"negatives": 4, "clusters": CLASSES, "cluster_restarts": 2}.items()
           if setting in METHODS[name].__dataclass_fields__}
    return create_config(
        dataset="made-up", teacher="vit_lite_4_8", teacher_weights="random", student="resnet8", student_weights="random",
        bits=8, views=2, teacher_epochs=1, epochs=1, batch_size=10, method=name, out=folder / "run",
        cache_dir=folder / "cache", **{**own, **settings})


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in METHODS), ("sskd", {"fresh_views": True}),
                                                ("packd", {"fresh_views": True})])
def test_torch_ref_runs_every_method(tmp_path, monkeypatch, name, settings):
    metrics = distill_in_torch(made_up_run(tmp_path, monkeypatch, name, **settings))
    assert all(0 < metrics["student"][search]["map"] <= 1 for search in ("symmetric", "asymmetric"))


def test_a_whole_run_keeps_what_its_method_asks_for(tmp_path, monkeypatch):
    """PACKD in the whole pipeline: neighbours by the teacher's codes, mixtures encoded once for teacher and student."""
    metrics = run(made_up_run(tmp_path, monkeypatch, "packd"))
    assert set(metrics["student"]) == {"symmetric", "asymmetric"}
    folders = [path for path in (tmp_path / "cache" / "features").iterdir() if (path / "view_0001.npy").exists()]
    assert len(folders) == 4  # of teacher and student: the views and their mixtures


def test_a_report_shows_how_the_number_of_clusters_was_chosen(tmp_path, monkeypatch):
    run(made_up_run(tmp_path, monkeypatch, "brcd", clusters="auto", cluster_restarts=1))
    assert {"bit_masks.png", "number_of_clusters.png"} <= {path.name for path in (tmp_path / "run" / "plots").iterdir()}
