"""A table of embeddings as teacher: its codes are those of the rows, its student learns them, its head is an encoder of rows.

The pixels of the digits stand for embeddings here.
"""

import dataclasses
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from toy_runs import OPTIONS, answer, content, refusal, scores, stages, tiny, toys, trainings, words

import jax_brcd
from jax_brcd import distill, evaluate, student, teacher
from jax_brcd.data import DATASETS, ImageDataset, Images, Source, load_dataset
from jax_brcd.data.dataset import one_hot
from jax_brcd.encoder import create_encoder
from jax_brcd.losses.contrastive import masked_mean
from jax_brcd.models import create_hash_model
from jax_brcd.models.rows import RowFormat, create_row_model
from jax_brcd.retrieval.packing import PackedCodes
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.options import option
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.run import run_teacher
from jax_brcd.teachers.objectives import OBJECTIVES, HashingBatch, Sees, create_objective
from jax_brcd.views.encoding import encode
from jax_brcd.views.rows import RowViews
from jax_brcd.views.sources import StillTeacher
from torch_ref import distill as torch_distill

TABLE = {"teacher": "embeddings", "teacher_weights": "random", "teacher_objective": "itq", "method": "kl"}


def digit_rows():
    from sklearn.datasets import load_digits

    return (load_digits().data / 16 - 0.3).astype(np.float16)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a table of all digits, a run of it at `run` and its cache."""
    folder = tmp_path_factory.mktemp("embeddings")
    (folder / "table").mkdir()
    np.save(folder / "table" / "all.npy", digit_rows())
    with toys():
        metrics, said = tiny(folder / "run", folder / "cache", embeddings=folder / "table", **TABLE)
        (folder / "told.json").write_text(json.dumps([metrics, said]))
        yield folder


@pytest.fixture(scope="module")
def digits(place):
    return load_dataset("digits", cache_dir=place / "cache")


def rows_of(part):
    return digit_rows()[part.place.positions]


def test_codes_are_the_signs_of_what_the_objective_gives_of_the_rows(place, digits):
    """ITQ solved by hand of the training images' rows: no bit of the test queries or the database is another."""
    kernel, bias, _ = create_objective("itq").solve(rows_of(digits.train).astype(np.float32), 16, seed=1)
    with np.load(place / "run" / "codes.npz") as codes:
        for part in ("test", "database"):
            found = np.unpackbits(codes[f"teacher_{part}"], axis=1, count=16)
            logits = rows_of(getattr(digits, part)).astype(np.float64) @ kernel + bias
            np.testing.assert_array_equal(found[abs(logits).min(axis=1) > 1e-5], (logits > 0)[abs(logits).min(axis=1) > 1e-5])
    metrics, said = json.loads((place / "told.json").read_text())
    assert metrics["teacher"]["map"] > 0.5, "the table searches well by itself"
    assert metrics["costs"]["teacher"] | {"images_per_second": 0, "flops": 0} == {
        "model": "embeddings", "parameters": 16 * 65, "flops": 0, "images_per_second": 0}
    assert "all views of an image have one row" in metrics["remarks"][0]


def test_its_head_is_an_encoder_of_rows(place, digits, tmp_path):
    encoder = jax_brcd.load(place / "run" / "teacher")
    assert encoder.over_embeddings and (encoder.backbone, encoder.bits, encoder.role) == ("embeddings", 16, "teacher")
    rows = rows_of(digits.database)
    codes = encoder.encode(rows)
    with np.load(place / "run" / "codes.npz") as kept:
        np.testing.assert_array_equal(codes.packed, kept["teacher_database"])
    assert codes.space == encoder.space == jax_brcd.load(place / "run" / "student_asymmetric").space
    for first, some in ((0, rows[:9]), (5, rows[5]), (3, rows[3:70].astype(np.float64)), (0, jnp.asarray(rows[:2])),
                        (0, rows[:3].tolist()), (0, rows[:0])):
        count = 1 if np.ndim(some) == 1 else len(some)
        np.testing.assert_array_equal(encoder.encode(some).packed, codes.packed[first : first + count])
    again = jax_brcd.load(encoder.save(tmp_path / "again"))
    np.testing.assert_array_equal(again.logits(rows[:9]), encoder.logits(rows[:9]))
    assert (again.space, again.preprocessing, again.provenance) == (encoder.space, RowFormat(64), encoder.provenance)


@pytest.mark.parametrize(("rows", "message"), [
    (np.zeros((2, 63)), "rows of 63 numbers; this encoder takes 64"),
    (np.zeros((2, 32, 32, 3), np.uint8), "4 axes instead of 2"),
    (np.full((3, 64), [[0.0], [np.nan], [1.0]]), "row 1, counted from 0, holds NaN"),
    (np.full((1, 64), 1e39), "too large for float32"),
    (np.array([["a"] * 64]), "no real numbers"),
    ([[1.0] * 64, [1.0] * 63], "rows of different lengths"),
])
def test_an_encoder_of_rows_refuses_what_is_none(place, rows, message):
    with pytest.raises(InputError, match=message):
        jax_brcd.load(place / "run" / "teacher").encode(rows)


def test_bits_of_rows_do_not_depend_on_what_is_encoded_beside_them():
    """Logits that are nothing but rounding errors: each row is orthogonal to each bit."""
    model = create_row_model(48, 16)
    draw = np.random.default_rng(0)
    kernel = draw.normal(size=(48, 16))
    rows = draw.normal(size=(130, 48))
    rows -= rows @ kernel @ np.linalg.pinv(kernel)
    model.head.kernel[...], model.head.bias[...] = jnp.asarray(kernel, jnp.float32), jnp.zeros(16)
    encoder = create_encoder(model, "embeddings", RowFormat(48), bits=16, role="teacher")
    together = encoder.encode(rows).packed
    np.testing.assert_array_equal(together, np.concatenate([encoder.encode(row).packed for row in rows]))


def test_its_search_is_measured_from_the_table_alone(place, digits, capsys, tmp_path):
    """The run's table is found again where it lay; elsewhere it is named."""
    metrics = json.loads((place / "told.json").read_text())[0]
    run = place / "run"
    pairs = {("student_asymmetric", "teacher"): metrics["student"]["asymmetric"], ("teacher", "teacher"): metrics["teacher"]}
    for (queries, database), found in pairs.items():
        arguments = ["--queries", run / queries, "--database", run / database, "--save-codes", tmp_path / "codes"]
        told = answer(evaluate.main, arguments, capsys)
        assert f"{found['map']:.4f}" in told and f"{found['precision']:.4f}" in told
    codes = jax_brcd.load(run / "teacher").encode(rows_of(digits.database))
    assert (PackedCodes.load(tmp_path / "codes").packed == codes.packed).all()
    shutil.copytree(place / "table", tmp_path / "moved")
    options = ["--queries", run / "student_asymmetric", "--database", run / "teacher", "--embeddings"]
    assert f"{metrics['student']['asymmetric']['map']:.4f}" in answer(evaluate.main, [*options, tmp_path / "moved"], capsys)
    (tmp_path / "narrow").mkdir()
    np.save(tmp_path / "narrow" / "all.npy", digit_rows()[:, :60])
    narrow = refusal(evaluate.main, [*options, tmp_path / "narrow"], capsys)
    assert "rows of 60 numbers, but the encoder of --database takes 64" in narrow


def test_what_tables_an_evaluation_needs_is_told_before_its_data_is_loaded(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jax_brcd.stages.evaluation.load_images", lambda *arguments, **told: pytest.fail("data was loaded"))
    shutil.copytree(place / "run" / "teacher", tmp_path / "lone")
    config = json.loads((tmp_path / "lone" / "config.json").read_text())
    (tmp_path / "lone" / "config.json").write_text(json.dumps(config | {"provenance": {}}))
    images = place / "run" / "student_symmetric"
    for encoder, told, message in (
            (images, ["--embeddings", place / "table"], "table: neither encoder is over embeddings; leave it out"),
            (tmp_path / "lone", [], "an encoder over embeddings; name the folder of their tables with --embeddings"),
            (tmp_path / "lone", ["--embeddings", tmp_path / "absent"], "absent: no such folder; name the one that holds")):
        arguments = ["--queries", encoder, "--database", encoder, "--dataset", "digits", *told]
        assert message in refusal(evaluate.main, arguments, capsys)


def test_another_student_of_its_folder_trains_no_teacher(place, capsys):
    options = _without(words(place / "second", place / "cache", method="bits"), ("--teacher", "--pretraining", "--bits"))
    with trainings() as names:
        answer(student.main, ["--teacher", place / "run" / "teacher", *options], capsys)
    assert names == ["student"]
    assert jax_brcd.load(place / "second" / "student_asymmetric").space == jax_brcd.load(place / "run" / "teacher").space
    metrics = json.loads((place / "second" / "metrics.json").read_text())
    assert metrics["teacher"] == json.loads((place / "told.json").read_text())[0]["teacher"]


def _without(told, names):
    """A command line without some options and their values."""
    kept, skipped = [], False
    for word in told:
        skipped = word.startswith(names) if word.startswith("--") else skipped
        kept += [] if skipped else [word]
    return kept


@pytest.mark.parametrize("objective", ["bihalf", "greedyhash"])
def test_objectives_of_one_view_learn_from_rows(place, objective):
    """They gain on the random head that they begin with."""
    def score(name, epochs):
        return run_teacher(create_config(**OPTIONS | TABLE | {
            "teacher_objective": objective, "teacher_epochs": epochs, "teacher_lr": 1e-2, "embeddings": place / "table",
            "out": place / name, "cache_dir": place / "cache"}))["teacher"]["map"]

    assert score(f"{objective}-20", 20) > score(f"{objective}-0", 0) + 0.03


@dataclasses.dataclass(frozen=True)
class Agreement:
    """A toy objective that contrasts two views and takes dropped features for a second."""

    sees = Sees.TWO_ROWS

    agreement_weight: float = option(1.0, "weight of the toy", low=0)

    def loss(self, batch, *, temperature, kl_weight):
        """See LearntObjective; told is the part of the first view's features, of which none is 0, that the second lacks."""
        lacking = masked_mean(jnp.mean((batch.features_i != 0) & (batch.features_j == 0), axis=1), batch.valid)
        apart = jnp.mean(jnp.where(batch.valid[:, None], (batch.logits_i - batch.logits_j) ** 2, 0.0))
        return self.agreement_weight * apart, {"lacking": lacking}


def test_an_objective_that_allows_it_sees_dropped_features_as_its_second_view(place, monkeypatch):
    """Of a strength that is a setting, and part of what the teacher's folder is named by."""
    monkeypatch.setattr(OBJECTIVES, "_entries", {**OBJECTIVES._entries, "agreement": Agreement})
    settings = OPTIONS | TABLE | {"teacher_objective": "agreement", "embeddings": place / "table", "cache_dir": place / "cache"}
    lacking = {}
    for dropout in (0.0, 0.3):
        run_teacher(create_config(**settings, embeddings_dropout=dropout, out=place / f"dropped-{dropout}"))
        (record,) = map(json.loads, (place / f"dropped-{dropout}" / "history.jsonl").read_text().splitlines())
        lacking[dropout] = record["lacking"], record["loss"]
    assert lacking[0.0] == (0.0, 0.0)
    assert lacking[0.3][0] == pytest.approx(0.3, abs=0.01) and lacking[0.3][1] > 0


def test_dropped_features_are_drawn_by_image_and_view_alone():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(50, 400)), jnp.float32)
    views = RowViews(rows, jax.random.key(3), 0.25)
    order = jnp.arange(50)
    np.testing.assert_array_equal(views.of(order, jnp.full(50, 4)), rows, err_msg="an even view is the row")
    odd = views.of(order, jnp.full(50, 5))
    assert float(jnp.mean(odd == 0)) == pytest.approx(0.25, abs=0.01)
    np.testing.assert_allclose(odd, jnp.where(odd == 0, 0, rows / 0.75), rtol=1e-6)
    np.testing.assert_array_equal(views.of(order[::-1], jnp.full(50, 5))[::-1], odd, err_msg="whatever batch it stands in")
    for other in (views.of(order, jnp.full(50, 7)), RowViews(rows, jax.random.key(4), 0.25).of(order, jnp.full(50, 5))):
        assert 0.3 < float(jnp.mean((other == 0) != (odd == 0))) < 0.45  # 2 x 0.25 x 0.75
    np.testing.assert_array_equal(RowViews(rows, jax.random.key(3)).of(order, jnp.full(50, 5)), rows)


def test_a_student_sees_the_same_of_every_view_of_an_image():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
    logits = create_row_model(6, 4).head(rows)
    codes = jnp.sign(logits).astype(jnp.int8)
    kept, whole = StillTeacher(codes), StillTeacher(codes, logits, rows)
    assert (kept.width, whole.width) == (None, 6)
    indices, valid = jnp.array([3, 0, 3]), jnp.ones(3, bool)
    one, other = (whole.outputs(indices, views, valid) for views in (jnp.array([0, 1, 2]), jnp.array([5, 5, 5])))
    for name in ("features", "logits", "codes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.features, rows[indices])
    np.testing.assert_array_equal(one.logits, logits[indices])
    np.testing.assert_array_equal(one.codes, np.sign(one.logits))
    assert kept.outputs(indices, indices, valid).features is None


@pytest.mark.parametrize("name", ["bihalf", "greedyhash"])
def test_a_batch_of_one_view_is_one_of_two_halves(name):
    """What two views of three images are to these objectives, six images of one view are too."""
    draw = np.random.default_rng(0)
    features, logits = (jnp.asarray(draw.normal(size=(6, width)), jnp.float32) for width in (5, 8))
    objective, valid = create_objective(name), jnp.ones(6, bool)
    one = objective.loss(HashingBatch(valid, features, None, logits, None), temperature=0.3, kl_weight=0.0)[0]
    halves = HashingBatch(valid[:3], features[:3], features[3:], logits[:3], logits[3:])
    two = objective.loss(halves, temperature=0.3, kl_weight=0.0)[0]
    assert float(one) == float(two)


@pytest.mark.parametrize(("settings", "message"), [
    ({"teacher_objective": "cibhash"}, "--teacher-objective cibhash: it contrasts two views of an image, and a table of embeddings "
                                       "has one row for all of them; name one of bihalf, greedyhash, itq"),
    ({"method": "sskd"}, "--method sskd: it compares the teacher's outputs of what is made of views (rotation1"),
    ({"method": "packd"}, "--method packd: it compares the teacher's outputs of what is made of views (mixture"),
    ({"method": "kl+sskd"}, "--method kl+sskd: it compares"),
    ({"embeddings": None}, "--teacher embeddings: name the folder of its tables with --embeddings"),
    ({"teacher": "toy"}, "--teacher toy sees images; name --teacher embeddings"),
    ({"teacher": "toy", "teacher_objective": "crovca", "embeddings_dropout": 0.3},
     "--teacher toy sees images; name --teacher embeddings"),
    ({"embeddings": None, "teacher_temperature": 0.5}, "--teacher embeddings: name the folder of its tables with --embeddings"),
    ({"student": "embeddings"}, "unknown backbone 'embeddings'"),
    ({"teacher": "embedings"}, "unknown backbone 'embedings': did you mean 'embeddings'?"),
    ({"teacher_weights": "held-out"}, "--teacher-weights held-out: a table of embeddings is not pretrained"),
    ({"teacher_weights": "imagenet"}, "no such weight file"),
    ({"bits": 65}, "--bits 65: --teacher-objective itq has one principal component a bit"),
    ({"embeddings_dropout": 1}, "--embeddings-dropout 1.0: too large"),
])
def test_what_a_table_does_not_allow_is_refused_before_anything_is_written(place, tmp_path, capsys, settings, message):
    told = {"embeddings": place / "table", **TABLE, **settings}
    arguments = words(tmp_path / "run", tmp_path / "cache", **{name: value for name, value in told.items() if value is not None})
    assert message in refusal(distill.main, arguments, capsys)
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache" / "stages").exists()


def test_weights_of_another_kind_are_refused(place, tmp_path, capsys):
    """Of images over a table, of rows over images, of rows of another length or width."""
    create_encoder(create_hash_model("toy", 16), "toy", jax_brcd.load(place / "run" / "student_symmetric").preprocessing, bits=16,
                   role="teacher").save(tmp_path / "images")
    create_encoder(create_row_model(60, 16), "embeddings", RowFormat(60), bits=16, role="teacher").save(tmp_path / "narrow")
    over_rows = {"embeddings": place / "table", **TABLE}
    cases = [({**over_rows, "teacher_weights": tmp_path / "images"}, "says that it is of toy"),
             ({**over_rows, "teacher_weights": tmp_path / "narrow"}, "mis-shaped hash_head.kernel (60, 16) instead of (64, 16)"),
             ({**over_rows, "teacher_weights": place / "run" / "teacher", "bits": 8}, "it is a head of 8 bits over 64 numbers"),
             ({"teacher_weights": place / "run" / "teacher"}, "an encoder over embeddings, and toy sees images; name --teacher")]
    for settings, message in cases:
        assert message in refusal(distill.main, words(tmp_path / "run", place / "cache", **settings), capsys)


def test_a_run_knows_its_table_by_what_it_holds(place, tmp_path, capsys):
    """Wherever it lies and in whatever form; a row that changed is told, and is another teacher's stage."""
    before = content(place / "run")
    (tmp_path / "moved").mkdir()
    np.save(tmp_path / "moved" / "all.npy", digit_rows().astype(np.float32))
    settings = {**TABLE, "out": place / "run", "cache": place / "cache"}
    _, said = tiny(**settings, embeddings=tmp_path / "moved")
    assert said == [f"{place / 'run'}: already there; nothing was run again."] and content(place / "run") == before
    rows = digit_rows()
    rows[load_dataset("digits", cache_dir=place / "cache").test.place.positions[0], 3] += 1
    np.save(tmp_path / "moved" / "all.npy", rows)
    arguments = words(place / "run", place / "cache", **TABLE, embeddings=tmp_path / "moved")
    assert "its data has changed since: embeddings of test; name another --out" in refusal(distill.main, arguments, capsys)
    known = stages(place / "cache")
    tiny(place / "other", place / "cache", **TABLE, embeddings=tmp_path / "moved")
    assert {name.partition("-")[0] for name in stages(place / "cache") - known} == {"evaluation"}, "the training rows are the same"


def test_a_head_over_other_rows_gives_codes_of_another_space(place, tmp_path):
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other" / "all.npy", digit_rows()[:, ::-1])
    head = place / "run" / "teacher" / "model.safetensors"  # without what its folder says of its space
    spaces = []
    for number, table in enumerate((place / "table", tmp_path / "other", place / "table")):
        tiny(tmp_path / f"{number}", tmp_path / "cache", embeddings=table, **TABLE | {"teacher_weights": head})
        spaces.append(jax_brcd.load(tmp_path / f"{number}" / "teacher").space)
    assert spaces[0] == spaces[2] != spaces[1]


def test_rows_serve_a_student_whose_views_are_new_each_epoch(place):
    told = {**TABLE, "method": "mse+bits", "embeddings": place / "table"}
    metrics, _ = tiny(place / "fresh", place / "cache", **told, fresh_views=True)
    assert scores(metrics)["teacher"] == json.loads((place / "told.json").read_text())[0]["teacher"]


def test_the_commands_of_the_teacher_and_of_the_reference(place, tmp_path, capsys):
    """The teacher alone is the one of the run; the reference has none."""
    told = _without(words(place / "alone", place / "cache", **TABLE, embeddings=place / "table"),
                    ("--student", "--method", "--epochs", "--min", "--validation", "--train", "--no-train"))
    answer(teacher.main, told, capsys)
    assert jax_brcd.load(place / "alone" / "teacher").space == jax_brcd.load(place / "run" / "teacher").space
    reference = ["--teacher", "embeddings", "--embeddings", place / "table", "--out", tmp_path / "torch"]
    assert "--teacher embeddings: torch_ref has no such teacher; name a backbone" in refusal(torch_distill.main, reference, capsys)


def small_cifar(images, labels):
    """100 of CIFAR-10's images that train, 400 that are searched and 100 queries, half of them for validation."""
    def load(request):
        every = Images(images, one_hot(labels, 10))
        train, database, validation, test = (every.take(np.arange(*ends)) for ends in ((0, 100), (0, 400), (400, 450), (450, 500)))
        return ImageDataset("small-cifar", "parts", train, database, validation, test, tuple("abcdefghij"), flip=True, default_k=100)

    return Source(load)


def test_features_of_a_vit_as_a_table_are_that_vit(place, shared, tmp_path, monkeypatch):
    """ITQ gives the same codes of the pretrained ViT-Lite's images and of a table of its features; of a small part of CIFAR-10 here.

    Their students differ in what they are taught of augmented views: 0.02 of mAP is within the noise of 50 queries.
    """
    weights = shared("weights", "vit_lite_7_4.safetensors")
    with np.load(shared("cifar10", "cifar10_jpeg.npz")) as packed:
        ends, jpegs = packed["train_offsets"], packed["train_jpeg"]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(jpegs[ends[row] : ends[row + 1]].tobytes())).convert("RGB"))
                           for row in range(500)])
        labels = packed["train_labels"][:500].astype(int)
    monkeypatch.setattr(DATASETS, "_entries", {**DATASETS._entries, "small-cifar": small_cifar(pixels, labels)})
    settings = {"dataset": "small-cifar", "teacher_objective": "itq", "method": "kl", "epochs": 4, "student": "resnet8"}
    ours, _ = tiny(tmp_path / "vit", place / "cache", **settings, teacher="vit_lite_7_4", teacher_weights=weights)
    vit = jax_brcd.load(tmp_path / "vit" / "teacher")
    features = encode(vit.model.backbone, pixels, size=vit.preprocessing.size, description="images")
    (tmp_path / "table").mkdir()
    for part, ends in (("train", (0, 100)), ("database", (0, 400)), ("test", (450, 500))):
        np.save(tmp_path / "table" / f"{part}.npy", features[slice(*ends)])
    theirs, _ = tiny(tmp_path / "rows", place / "cache", **{**TABLE, **settings, "embeddings": tmp_path / "table"})
    assert ours["teacher"] == theirs["teacher"]
    with np.load(tmp_path / "vit" / "codes.npz") as one, np.load(tmp_path / "rows" / "codes.npz") as other:
        for part in ("teacher_test", "teacher_database"):
            np.testing.assert_array_equal(one[part], other[part])
    for search in ("symmetric", "asymmetric"):
        assert ours["student"][search]["map"] == pytest.approx(theirs["student"][search]["map"], abs=0.02)
