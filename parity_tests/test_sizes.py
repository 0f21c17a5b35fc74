"""Teacher and student at sizes of their own: the same views, drawn once and rendered for each; what is refused, named and told."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from image_trees import write_lists
from toy_runs import OPTIONS, Toy, answer, refusal, stages, tiny, trainings, words

import jax_brcd
from jax_brcd import distill, evaluate
from jax_brcd.data import load_dataset
from jax_brcd.data.dataset import square_side
from jax_brcd.encoder import create_encoder
from jax_brcd.models import BACKBONES, Preprocessing, Variant, create_hash_model
from jax_brcd.report import results_table
from jax_brcd.runtime.digests import digest
from jax_brcd.runtime.files import read_json
from jax_brcd.settings.command_line import say
from jax_brcd.stages import context as stage_context
from jax_brcd.stages import run as stage_run
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.evaluation import load_for_evaluation
from jax_brcd.views.augmentation import ViewConfig, draw_view_parameters, random_views
from jax_brcd.views.blur import scaled_blur
from jax_brcd.views.derivations import Mixture
from jax_brcd.views.features import FeatureCache
from jax_brcd.views.plan import ViewPlan
from torch_ref.augment import ScaledBlur

SEEN = {"seeing": Preprocessing(20, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.35)),
        "looking": Preprocessing(16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)), "narrow": Preprocessing(16)}
SIZES = {"teacher": "seeing", "teacher_size": 24, "student": "looking", "student_size": 12}


class Pooled(nnx.Module):
    """Images of any size from 4 pixels on to features (batch, 2 width)."""

    def __init__(self, width, rngs):
        self.filter = nnx.Conv(3, width, (4, 4), strides=2, padding="VALID", rngs=rngs)

    def __call__(self, images):
        found = self.filter(images)
        return jnp.concatenate([jnp.mean(nnx.relu(found), axis=(1, 2)), jnp.max(found, axis=(1, 2))], axis=1)


@pytest.fixture(autouse=True, scope="module")
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
        for name, kind in (("seeing", Pooled), ("looking", Pooled), ("narrow", Toy)):
            BACKBONES.register(name)(Variant(lambda *, rngs, kind=kind: kind(8, rngs), SEEN[name]))
        patch.setattr(stage_run, "write_report", lambda *report: None)  # which takes a second a run
        yield


def noise(count, height=40, width=30):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


# Views


def smooth(side=96):
    rows, columns = np.mgrid[:side, :side] / side
    waves = [np.sin(17 * rows + 5 * columns), np.cos(11 * columns), np.sin(23 * rows * columns)]
    return (np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8)


def test_what_is_drawn_does_not_depend_on_the_size():
    usual = ViewConfig(size=48)
    other = usual.rendered(112, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert (other.size, other.mean, other.blur_unit) == (112, (0.5, 0.5, 0.5), 112 / 48)
    ours, theirs = (draw_view_parameters(jax.random.split(jax.random.key(1), 16), 60, 40, config) for config in (usual, other))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_view_at_two_sizes_looks_alike():
    """Averaged to the smaller size the larger one is the smaller one; with the blur of its own pixels it would not be."""
    images, keys = np.stack([smooth()] * 4), jax.random.split(jax.random.key(0), 4)
    usual = ViewConfig(size=96, blur=1.0, sigma=(2.1, 2.1), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    rendered = usual.rendered(32, usual.mean, usual.std)

    def difference(other):
        small, large = sorted((np.asarray(random_views(keys, images, config)) for config in (usual, other)), key=np.size)
        return np.abs(large.reshape(4, 32, 3, 32, 3, 3).mean(axis=(2, 4)) - small)[:, 2:-2, 2:-2].mean()

    found, unscaled = difference(rendered), difference(dataclasses.replace(rendered, blur_unit=1.0))
    assert found < 0.005 and 1.5 * found < unscaled


@pytest.mark.parametrize(("window", "unit", "sigma"), [(3, 0.2, 2.1), (3, 2.5, 2.1), (3, 4.625, 0.3), (9, 0.2, 2.0), (9, 1.5, 2.0)])
def test_the_blur_at_another_size_is_torch_refs(window, unit, sigma):
    planes = np.random.default_rng(0).random((3, 40, 33), np.float32)
    theirs = ScaledBlur(window, (sigma, sigma), unit).transform(torch.tensor(planes), {"sigma": [sigma, sigma]})
    ours = jax.jit(lambda planes, sigma: scaled_blur(planes, sigma, unit=unit, size=window))(planes, jnp.float32(sigma))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_view_of_one_pixel_has_no_blur_to_scale():
    planes = jnp.full((3, 1, 1), 0.25)
    np.testing.assert_array_equal(scaled_blur(planes, jnp.float32(2.0), unit=0.5), planes)


def test_views_without_sizes_keep_their_names():
    """Of features that were kept before views could be rendered at other sizes."""
    assert digest(ViewConfig(size=32)) == "55449c5ee9482fe57ac1"
    gray = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert digest(ViewConfig(size=32).rendered(16, **gray)) != digest(ViewConfig(size=16, **gray))


def test_both_models_see_the_same_views_kept_and_fresh(tmp_path):
    """What is kept for a model of a view mixed with another is what it would see now, at its size and in its colours."""
    images, partners, mixture = noise(6), np.array([[1], [2], [3], [4], [5], [0]], np.int32), Mixture(0)
    plan = ViewPlan(images, ViewConfig(size=24), 3, 2, 2**30)
    small = plan.rendered(12, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert small.config == ViewConfig(size=12, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), blur_unit=0.5)
    model = create_hash_model("looking", 8)
    cache = FeatureCache(tmp_path, "looking", model.backbone, "float32")
    rows, numbers, valid = jnp.arange(6, dtype=jnp.int32), jnp.ones(6, jnp.int32), jnp.ones(6, bool)

    def kept_and_live(plan):
        views = plan.pixels(train=False, partners=partners).views
        live = jax.jit(lambda: views.outputs(model, rows, numbers, valid, mixture).features)()
        return plan.features(cache, derivation=mixture, partners=partners)[1].astype(np.float32), live

    seen = [kept_and_live(each) for each in (plan, small)]
    for kept, live in seen:
        np.testing.assert_allclose(kept, live, atol=0.02)
    assert len(list(tmp_path.iterdir())) == 2 and not np.allclose(seen[0][0], seen[1][0], atol=0.02)


def test_models_that_draw_from_the_same_images_share_them_on_the_device():
    plan = ViewPlan(noise(6), ViewConfig(size=24), 3, None, 2**30)
    rendered = plan.rendered(12, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    teacher, student = plan.pixels(train=False), rendered.pixels(train=True)
    assert teacher.views.images is student.views.images
    assert dataclasses.replace(plan, images=noise(6)).pixels(train=True).views.images is not teacher.views.images
    held = weakref.ref(teacher.views.images)
    del teacher, student
    gc.collect()
    assert held() is None, "images stay on the device when nothing draws from them"


# Runs


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def load(cache, **settings):
    """The context of a run that is not carried out."""
    return stage_context.load_context(create_config(**{**OPTIONS, "cache_dir": cache, **settings}))


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    """A run whose method sees turned views and teaches the teacher's bits; its directory and its metrics."""
    out = tmp_path_factory.mktemp("runs") / "sizes"
    return out, tiny(out, cache, **SIZES, method="sskd+bits")[0]


def test_each_encoder_keeps_what_it_saw(run):
    out, metrics = run
    expected = {"teacher": dataclasses.replace(SEEN["seeing"], size=24)} | dict.fromkeys(
        ("student_symmetric", "student_asymmetric"), dataclasses.replace(SEEN["looking"], size=12))
    images = load_dataset("digits", cache_dir=out).test.images
    with np.load(out / "codes.npz") as codes:
        for role, seen in expected.items():
            encoder = jax_brcd.load(out / role)
            assert encoder.preprocessing == seen and encoder.model.backbone.image_size == seen.size
            name = f"{role.removeprefix('student_')}_test"
            differing = np.unpackbits(encoder.encode(images).packed ^ codes[name]).mean()
            assert differing < 0.001, name  # the run adds in another order
    assert metrics["protocol"]["sizes"] == {"teacher": 24, "student": 12} and "squares" not in metrics["protocol"]
    assert "; pixels seen: teacher 24, student 12" in results_table(metrics)


def test_evaluate_takes_each_encoders_own_size(run, cache, capsys):
    out, metrics = run
    said = answer(evaluate.main, ["--queries", out / "student_asymmetric", "--database", out / "teacher"], capsys)
    assert "pixels seen: queries 12, database 24" in said
    found = float(said.splitlines()[2].split()[2])
    assert found == pytest.approx(metrics["student"]["asymmetric"]["map"], abs=0.002)


def test_sizes_that_say_what_holds_anyway_make_nothing_again(cache, tmp_path):
    """A teacher at its own size; a student at the teacher's, which is of the same colours."""
    same = {"teacher": "seeing", "student": "seeing"}
    tiny(tmp_path / "untold", cache, **same)
    before = stages(cache)
    with trainings() as trained:
        tiny(tmp_path / "told", cache, **same, teacher_size=20, student_size=20)
    assert trained == [] and stages(cache) == before


def test_a_size_names_the_students_stages_where_it_differs_from_the_teachers(run, cache):
    folders = [read_json(path / "stage.json")["depends_on"] for path in (cache / "stages").glob("*-*") if path.is_dir()]
    named = [facts["student sees"] for facts in folders if "student sees" in facts]
    assert len(named) == 2 and all(seen["size"] == 12 and seen["mean"] == [0.1, 0.2, 0.3] for seen in named)
    sees = [load(cache, **SIZES | {"student_size": size}).student_facts() for size in (12, 16, None)]
    assert sees[0] != sees[1] and sees[2] == {}


def test_images_that_travel_are_rendered_for_both(tmp_path):
    """Fresh views of a student that learns, travelling and held on the device: the same run, but for the rounding of programs."""
    told = {**SIZES, "fresh_views": True, "train_backbone": True, "method": "mse", "teacher_objective": "itq"}
    found = [tiny(tmp_path / f"{mib}", tmp_path / f"cache{mib}", **told, resident_mib=mib)[0] for mib in (0, 2048)]
    for search in ("symmetric", "asymmetric"):
        assert found[0]["student"][search]["map"] == pytest.approx(found[1]["student"][search]["map"], abs=0.01)
    assert found[0]["teacher"]["map"] == pytest.approx(found[1]["teacher"]["map"], abs=0.01)


def test_a_student_without_a_size_sees_what_the_teacher_sees_and_is_told_so(cache, tmp_path, capsys):
    """The note says how it would see the colours that it is meant for."""
    encoder = create_encoder(create_hash_model("looking", 16), "looking", SEEN["looking"], bits=16, role="student")
    told = {**SIZES, "student_weights": encoder.save(tmp_path / "weights")}
    context = load(cache, **{**told, "student_size": None})
    assert context.student_preprocessing == context.preprocessing == dataclasses.replace(SEEN["seeing"], size=24)
    (note,) = stage_run.colour_notes(context)
    say(note)
    assert "with `student_size` 24 it would see its own" in note and "with --student-size 24 it" in capsys.readouterr().out
    context = load(cache, **{**told, "student_size": 24})
    assert context.student_preprocessing == dataclasses.replace(SEEN["looking"], size=24)
    assert stage_run.colour_notes(context) == [] and "sizes" not in context.protocol()


def test_a_teacher_brought_along_keeps_its_space_only_at_its_own_size(cache, tmp_path):
    own = Preprocessing(18, 22, mean=(0.3, 0.3, 0.3))
    encoder = create_encoder(create_hash_model("seeing", 16), "seeing", own, bits=16, role="teacher")
    brought = {"teacher": "seeing", "teacher_weights": encoder.save(tmp_path / "brought"), "student": "seeing"}
    found = {}
    for size in (18, 12):
        told = {**OPTIONS, **brought, "teacher_size": size, "out": tmp_path / f"{size}", "cache_dir": cache}
        told.pop("teacher_epochs")
        stage_run.run_teacher(create_config(**told))
        found[size] = jax_brcd.load(tmp_path / f"{size}" / "teacher")
    assert found[18].space == encoder.space != found[12].space
    assert found[18].preprocessing == own == load(cache, **brought).preprocessing
    assert found[12].preprocessing == dataclasses.replace(own, size=12, resize=None)


# What is refused


@pytest.mark.parametrize(("settings", "message"), [
    ({"teacher_size": 0}, "--teacher-size 0: too small; give 1 or more"), ({"student_size": -8}, "--student-size -8: too small"),
    ({"student_size": 4096}, "--student-size 4096: too large; give 2048 or less"),
    ({"teacher_size": 24.5}, "--teacher-size: '24.5' is no whole number"),
    ({"teacher": "vit_lite_4_8", "teacher_size": 30}, "--teacher-size 30: vit_lite_4_8 takes multiples of 8 pixels; give"),
    ({"student": "vit_lite_4_8", "student_size": 12}, "--student-size 12: vit_lite_4_8 takes multiples of 8 pixels"),
    ({"student": "vit_lite_4_8"}, "--student vit_lite_4_8: takes multiples of 8 pixels, but seeing sees 20; give it a --st"),
    ({"teacher": "narrow", "teacher_size": 20}, "--teacher-size 20: narrow takes 16 pixels and what else its layers fit"),
    ({"teacher": "seeing", "teacher_size": 3}, "--teacher-size 3: seeing takes 20 pixels and what else its layers fit"),
])
def test_a_size_that_cannot_be_is_refused_before_data_is_read(settings, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stage_context, "load_dataset", None)
    given = {"teacher": "seeing", "student": "looking", **settings}
    assert message in refusal(distill.main, words(tmp_path / "run", tmp_path, **given), capsys)
    assert not (tmp_path / "run").exists()


# Image files


def test_image_files_are_decoded_to_what_the_larger_model_needs(tmp_path):
    assert [square_side(*sizes) for sizes in ((32,), (224, 112), (112, 518), (600,))] == [256, 256, 592, 686]
    tree = write_lists(tmp_path / "tree", 4, 6, 4)
    found = {side: load_dataset("list", data_dir=tree, cache_dir=tmp_path, square_side=side) for side in (256, 300)}
    for side, dataset in found.items():
        assert dataset.train.images.shape == (4, side, side, 3) and dataset.squares == side
    assert found[256].digests()["images of train"] != found[300].digests()["images of train"]
    again = load_dataset("list", data_dir=tree, cache_dir=tmp_path)
    assert again.digests() == found[256].digests()


def test_a_run_says_how_large_its_images_were_and_evaluate_takes_them_so(tmp_path, capsys):
    tree = write_lists(tmp_path / "tree", 6, 8, 4)
    told = {"dataset": "list", "data_dir": tree, "k": 5, **SIZES}
    metrics, _ = tiny(tmp_path / "run", tmp_path / "cache", **{**told, "student_size": 240})
    assert metrics["protocol"]["squares"] == 274
    assert "images decoded to squares of 274 pixels" in results_table(metrics)
    teacher = jax_brcd.load(tmp_path / "run" / "teacher")
    assert teacher.preprocessing.resize == 27
    config = create_config(dataset="list", data_dir=tree, cache_dir=tmp_path / "cache")
    assert load_for_evaluation(config, [teacher])[0].squares == 274
    alone = dataclasses.replace(teacher, provenance={}, preprocessing=Preprocessing(300))
    assert load_for_evaluation(config, [alone])[0].squares == 343
    said = answer(evaluate.main, ["--queries", tmp_path / "run" / "student_symmetric", "--database",
                                  tmp_path / "run" / "student_symmetric", "--k", "5"], capsys)
    assert "images decoded to squares of 274 pixels" in said
    assert float(said.splitlines()[2].split()[2]) == pytest.approx(metrics["student"]["symmetric"]["map"], abs=1e-4)


def test_a_model_larger_than_its_images_is_noted_unless_sizes_are_told(tmp_path, capsys):
    BACKBONES.register("large")(Variant(lambda *, rngs: Pooled(8, rngs), Preprocessing(240)))
    told = {"dataset": "list", "data_dir": write_lists(tmp_path / "tree", 6, 8, 4), "teacher": "large", "student": "looking"}
    note = "large sees 240 pixels of image files that are decoded to squares of 256; `{}` 240 decodes them to 274."
    notes = stage_run.square_notes(load(tmp_path, **told), student=True)
    assert notes == [note.format("teacher_size")]
    say(notes[0])
    assert "; --teacher-size 240 decodes" in capsys.readouterr().out
    assert stage_run.square_notes(load(tmp_path, **told, student_size=16), student=True) == []
    encoder = create_encoder(create_hash_model("large", 16), "large", Preprocessing(240), bits=16, role="teacher")
    encoder.save(tmp_path / "encoder")
    brought = {**told, "teacher_weights": str(tmp_path / "encoder")}
    assert stage_run.square_notes(load(tmp_path, **brought), student=True) == [note.format("student_size")]
    assert stage_run.square_notes(load(tmp_path, **brought), student=False) == [note.format("teacher_size")]
    assert load(tmp_path, **brought, student_size=240).dataset.squares == 274
