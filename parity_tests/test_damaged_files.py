"""Files of the cache and of run directories that someone cut, overwrote or deleted: made anew with a word, or refused by
name."""

import errno
import json
import shutil
import types

import jax
import numpy as np
import pytest
from flax import nnx
from image_trees import write_images

from jax_brcd.data import load_dataset, store
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import read_json, write_json
from jax_brcd.stages.claim import CONFIG, DIVERGED, Claim, changes, check_settings, read_claim
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.folder import StageFolder, read_history
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.loop import _Course
from jax_brcd.views import features
from jax_brcd.views.features import FeatureCache

DEEP = "[" * 100_000 + "]" * 100_000


def overwrite(path, begin=0):
    """Other bytes in the same place, of the same length."""
    content = bytearray(path.read_bytes())
    content[begin : begin + 64] = bytes(255 - each for each in content[begin : begin + 64])
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def changed(**values):
    return lambda folder: write_json(folder / "index.json", read_json(folder / "index.json") | values)


def test_json_that_is_nested_too_deeply_is_broken_json(tmp_path):
    (tmp_path / "deep.json").write_text(DEEP)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "deep.json")


# Decoded images


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A folder of images, what it holds, and a cache in which it is decoded."""
    place = tmp_path_factory.mktemp("decoded")
    write_images(place / "tree", *(f"cat/{number}.png" for number in range(3)), "dog/0.png", "dog/1.png")
    return place, load_dataset("folder", data_dir=place / "tree", cache_dir=place / "cache", decode_workers=0)


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "index.json").write_text("{"), lambda folder: (folder / "index.json").write_text("[1]"),
    lambda folder: (folder / "index.json").write_bytes(b"\xff\xfe"), lambda folder: (folder / "index.json").write_text(DEEP),
    lambda folder: ((folder / "index.json").unlink(), (folder / "index.json").mkdir()),
    changed(done=99), changed(done=-1), changed(done="3"), changed(done=None), changed(bad=5), changed(bad=[[0]]),
    changed(bad=[[7, "no such file"]]), changed(bad=[[0, 1]]), changed(content=1), changed(content="0" * 20),
    changed(written="now"),
    lambda folder: cut(folder / "images.u8"), lambda folder: (folder / "images.u8").unlink(),
    lambda folder: overwrite(folder / "images.u8", 5000)])
def test_decoded_images_that_were_damaged_are_decoded_anew_with_a_word(tree, tmp_path, damage):
    place, whole = tree
    shutil.copytree(place / "cache", tmp_path / "cache")
    folder = max((tmp_path / "cache" / "images").iterdir(), key=lambda folder: (folder / "images.u8").stat().st_size)
    damage(folder)
    again = load_dataset("folder", data_dir=place / "tree", cache_dir=tmp_path / "cache", decode_workers=0)
    np.testing.assert_array_equal(again.database.images, whole.database.images)
    assert again.digests() == whole.digests()
    assert again.notes == (*whole.notes, f"{folder} was damaged, and its images are decoded anew.")
    assert load_dataset("folder", data_dir=place / "tree", cache_dir=tmp_path / "cache", decode_workers=0).notes == whole.notes


@pytest.mark.parametrize("change", [
    lambda folder: (folder / "images.u8").touch(), lambda folder: (folder / "digests.u8").unlink(),
    lambda folder: overwrite(folder / "digests.u8"),
    lambda folder: write_json(folder / "index.json", {name: read_json(folder / "index.json")[name]
                                                      for name in ("done", "bad")})])
def test_decoded_images_that_are_whole_are_kept_whatever_else_was_changed(tree, tmp_path, monkeypatch, change):
    place, whole = tree
    shutil.copytree(place / "cache", tmp_path / "cache")
    for folder in (tmp_path / "cache" / "images").iterdir():
        change(folder)
    monkeypatch.setattr("jax_brcd.data.store.decode_all", None)
    for _ in range(2):
        again = load_dataset("folder", data_dir=place / "tree", cache_dir=tmp_path / "cache", decode_workers=0)
        assert again.digests() == whole.digests() and again.notes == whole.notes


PASSING = [OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "Permission denied"), MemoryError(),
           jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")]


def raised(error):
    def fail(*_, **__):
        raise error
    return fail


@pytest.mark.parametrize("error", PASSING)
def test_what_cannot_be_read_now_is_neither_deleted_nor_called_damaged(tree, tmp_path, monkeypatch, error):
    place, _ = tree
    before = {path: path.read_bytes() for path in (place / "cache").rglob("*") if path.is_file()}
    result = StageFolder(tmp_path, "teacher", {"bits": 16})
    with result.held(print):
        result.finish(remarks=[])
    arrays = {"a": np.arange(3)}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(arrays, {"epoch": 1})
    with monkeypatch.context() as patch:
        patch.setattr(store, "read_json", raised(error))
        patch.setattr(features.np, "load", raised(error))
        with pytest.raises(type(error)):
            features.is_whole(tmp_path / "images.npy", 5, np.float32)
        patch.setattr(checkpoints._manager, "restore", raised(error))
        with pytest.raises(type(error)):
            load_dataset("folder", data_dir=place / "tree", cache_dir=place / "cache", decode_workers=0)
        with pytest.raises(type(error)), result.reading():
            raise error
        with pytest.raises(type(error)):
            checkpoints.restore(arrays)
    assert before == {path: path.read_bytes() for path in (place / "cache").rglob("*") if path.is_file()}
    assert checkpoints.restore(arrays)[1] == {"epoch": 1}
    checkpoints.close()


# Kept features


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of features that are made of the images' first pixels, with what it says and how often it encodes."""
    made, said = [], []

    def encoded(backbone, images, *, begin, **settings):
        made.append(len(images) - begin)
        for image in images[begin:]:
            if not image.any():
                raise KeyboardInterrupt
            yield np.asarray(image[None, 0, :, 0], np.float32)

    monkeypatch.setattr(features, "encoded", encoded)
    monkeypatch.setattr(features, "weights_digest", lambda module: "weights")
    return FeatureCache(tmp_path, "toy", nnx.Module(), "float32", say=said.append), made, said


def saved(array):
    return lambda path: np.save(path, array)


@pytest.mark.parametrize("damage", [
    cut, lambda path: overwrite(path, 130), lambda path: overwrite(path, 0), lambda path: overwrite(path, 20),
    lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[:40]),
    lambda path: path.write_bytes(b"PK\3\4"), saved(np.zeros((2, 4), np.float32)), saved(np.zeros((5, 4), np.float64)),
    saved(np.zeros(5, np.float32)), saved(np.array([None] * 5)), saved(np.zeros((5, 4), np.float32).T.copy().T)])
def test_features_that_were_damaged_are_encoded_anew_with_a_word(cache, tmp_path, damage):
    kept, made, said = cache
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    expected = np.array(kept.evaluation(images, size=4))
    (path,) = tmp_path.glob("*/images.npy")
    damage(path)
    np.testing.assert_array_equal(kept.evaluation(images, size=4), expected)
    np.testing.assert_array_equal(kept.evaluation(images, size=4), images[:, 0, :, 0])
    assert made == [5, 5] and said == [f"{path}: damaged; its features are encoded anew."]


@pytest.mark.parametrize(("stop", "known"), [(9, 8), (8, 8), (3, 0), (None, 10)])
def test_an_encoding_that_was_interrupted_goes_on_at_its_last_piece(cache, tmp_path, monkeypatch, stop, known):
    kept, made, said = cache
    monkeypatch.setattr(features, "PIECE", 4)
    monkeypatch.setattr(features, "encoding_batch", lambda rows: 2)
    monkeypatch.setattr(features, "digest", lambda *_: "these")
    images = np.random.default_rng(0).integers(1, 256, (10, 4, 4, 3), np.uint8)
    hurt = images.copy()
    hurt[stop] *= stop is None
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, OSError)):
        if stop is None:
            patch.setattr(features.Pieces, "join", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        kept.evaluation(hurt, size=4)
    np.testing.assert_array_equal(kept.evaluation(images, size=4), images[:, 0, :, 0])
    path = tmp_path / "these/images.npy"
    assert made == [10] + [10 - known] * (known < 10)
    assert said == [f"{path}: goes on from image {known} of 10."] * (known > 0)
    assert [each.name for each in path.parent.glob("[!.]*")] == ["images.npy"]
    path.with_suffix(".pieces").mkdir()
    kept.evaluation(images, size=4)
    assert len(made) <= 2 and not path.with_suffix(".pieces").exists(), "it is kept, and nothing beside it"


def test_features_of_older_versions_have_no_digest_and_are_kept(cache, tmp_path):
    kept, made, _ = cache
    images = np.ones((5, 4, 4, 3), np.uint8)
    kept.evaluation(images, size=4)
    (path,) = tmp_path.glob("*/images.npy")
    np.save(path, np.load(path))
    np.testing.assert_array_equal(kept.evaluation(images, size=4), np.ones((5, 4)))
    assert made == [5]


# Stage folders


@pytest.mark.parametrize("damage", [
    lambda path: overwrite(path / "encoder" / "weights"), lambda path: (path / "encoder" / "weights").unlink(),
    lambda path: shutil.rmtree(path / "encoder"), lambda path: cut(path / "history.jsonl"),
    lambda path: (path / "stage.json").write_text("[]"), lambda path: (path / "stage.json").write_text(DEEP),
    lambda path: (path / "stage.json").write_text('{"files": [1]}'), lambda path: (path / "stage.json").write_text("{}")])
def test_a_result_that_was_damaged_is_refused_with_the_folder_to_delete(tmp_path, damage):
    folder = StageFolder(tmp_path, "teacher", {"bits": 16})
    with folder.held(print):
        (folder.path / "encoder").mkdir()
        (folder.path / "encoder" / "weights").write_bytes(bytes(100))
        (folder.path / "history.jsonl").write_text('{"epoch": 1}\n')
        folder.finish(remarks=[])
    with folder.reading():
        assert folder.record == {"remarks": []} and read_history(folder.path / "history.jsonl") == [{"epoch": 1}]
    damage(folder.path)
    with pytest.raises(InputError) as refused, folder.reading():
        assert folder.record == {"remarks": []}
    assert str(refused.value).startswith(f"{folder.path}: finished once, and damaged since (")
    assert str(refused.value).endswith("; delete that folder to make it again") and "\n" not in str(refused.value)


def test_results_of_older_versions_have_no_digests_and_are_read(tmp_path):
    folder = StageFolder(tmp_path, "teacher", {"bits": 16})
    folder.path.mkdir(parents=True)
    write_json(folder.path / "stage.json", {"gave": {"remarks": ["one"]}})
    with folder.reading():
        assert folder.record == {"remarks": ["one"]}


@pytest.mark.parametrize("line", ["[1]", "3", DEEP, "{", "null"])
def test_a_history_of_other_lines_is_no_history(tmp_path, line):
    (tmp_path / "history.jsonl").write_text(f'{{"epoch": 1}}\n{line}\n')
    with pytest.raises(ValueError):
        read_history(tmp_path / "history.jsonl")


GOOD = {"epoch": 2, "best": {"symmetric": 0.5}, "misses": 1, "history": [{}, {}]}


@pytest.mark.parametrize("told", [
    None, [], {}, GOOD | {"epoch": "2"}, GOOD | {"epoch": 3}, GOOD | {"best": 1}, GOOD | {"best": {"symmetric": "high"}},
    GOOD | {"misses": None}, GOOD | {"history": 5}, GOOD | {"begun": {}}, GOOD | {"begun": {"step": -1, "metrics": {}}},
    GOOD | {"begun": {"step": 1, "metrics": []}}])
def test_progress_that_no_training_told_is_refused_with_the_folder_to_delete(tmp_path, told):
    course = object.__new__(_Course)
    course.checkpoints = types.SimpleNamespace(directory=tmp_path)
    course._take(GOOD)
    assert course.epoch == 2 and course.stopping.best == {"symmetric": 0.5}
    with pytest.raises(InputError, match="damaged .*; delete that directory to train the stage again") as refused:
        course._take(told)
    assert str(tmp_path) in str(refused.value)


# Run directories


@pytest.mark.parametrize("told", [
    DEEP, "[]", '{"settings": {}, "data": 5}', '{"settings": {}, "data": {"images of train": 5}}',
    '{"settings": {"epochs": [1]}, "data": {}}', '{"settings": {"method": 5}, "data": {}}',
    '{"settings": {"teacher_objective": 5}, "data": {}}', '{"settings": {}, "data": {}, "continued": ["student"]}',
    '{"settings": {}, "data": {}, "continued": {"student": 1}}', '{"settings": {}, "data": {}, "finished": "yes"}'])
def test_a_run_directory_whose_record_was_damaged_is_refused_by_its_name(tmp_path, told):
    (tmp_path / CONFIG).write_text(told)
    with pytest.raises(InputError, match="broken .*; name another out, or delete the directory") as refused:
        read_claim(tmp_path)
    assert str(tmp_path / CONFIG) in str(refused.value)


def test_settings_of_another_kind_are_other_settings(tmp_path):
    config = create_config(out=tmp_path)
    claim = Claim(config.flat() | {"epochs": "many", "teacher_epochs": None}, {})
    assert set(changes(config, {}, claim, student=True)) == {"epochs", "teacher_epochs"}
    with pytest.raises(InputError, match="holds a run with epochs many"):
        check_settings(tmp_path, config, {}, claim, student=True)


@pytest.mark.parametrize("told", [[], {"stage": "student"}, {"stage": ["student"], "folder": "x"},
                                  {"stage": "student", "folder": 3}])
def test_a_mark_of_divergence_that_was_damaged_is_refused_by_its_name(tmp_path, told):
    config = create_config(out=tmp_path)
    (tmp_path / DIVERGED).write_text(json.dumps(told))
    with pytest.raises(InputError, match=f"{DIVERGED}: broken"):
        check_settings(tmp_path, config, {}, Claim(config.flat() | {"lr": 1.0}, {}), student=True)
