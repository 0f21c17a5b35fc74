"""List files and image folders: their parts, what is kept of them on disk, and one line for each way in which they can be
wrong."""

import dataclasses
import gc
import json
import shutil
import threading
import weakref

import numpy as np
import pytest
from image_trees import COLOURS, picture, write_lists

from jax_brcd import distill
from jax_brcd.data import lists, load_dataset, store
from jax_brcd.data.decoding import decode
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.command_line import run_command
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.context import load_images
from jax_brcd.views.features import digest
from torch_ref import distill as torch_distill

TRAIN, DATABASE, TEST = 6, 9, 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set of list files that tests copy."""
    return write_lists(tmp_path_factory.mktemp("lists"), TRAIN, DATABASE, TEST)


@pytest.fixture
def tree(made, tmp_path):
    return shutil.copytree(made, tmp_path / "tree")


def load(folder, name="list", **settings):
    return load_dataset(name, data_dir=folder, cache_dir=folder.parent / "cache", **settings)


def write_folder(folder, images=20):
    """Images of three classes in a sub-folder each, one of them a level deeper."""
    for number in range(images):
        place = folder / ("red", "green", "blue")[number % 3] / ("deep" if number == 4 else "")
        place.mkdir(parents=True, exist_ok=True)
        picture(number).save(place / f"{number:03d}.jpg")
    (folder / "red" / "notes.txt").write_text("no image")
    return folder


def of_colour(images):
    """The class of each image by its colour."""
    means = np.asarray(images).reshape(len(images), -1, 3).mean(axis=1)
    return np.abs(means[:, None] - np.array(COLOURS)).sum(axis=-1).argmin(axis=1)


def test_the_lists_are_the_parts_and_the_test_list_is_halved(tree):
    data = load(tree)
    assert [len(part) for part in (data.train, data.database, data.validation, data.test)] == [6, 9, 2, 3]
    for part in (data.train, data.database, data.validation, data.test):
        np.testing.assert_array_equal(part.labels.argmax(axis=1), of_colour(part.images))
    np.testing.assert_array_equal(data.database.images[3], decode(tree / "images" / "003.jpg"))
    queries = np.concatenate([data.validation.images, data.test.images])
    assert len(np.unique(queries.reshape(TEST, -1), axis=0)) == TEST
    assert data.central_crop and data.evaluation_resize(224) == 256 and data.default_k == DATABASE
    other = load(tree, seed=1)
    assert (other.test.labels.argmax(axis=1) != data.test.labels.argmax(axis=1)).any() or (
        np.asarray(other.test.images) != np.asarray(data.test.images)).any()


@pytest.mark.parametrize(("name", "k"), [("nus-wide", 5000), ("coco", 5000), ("mirflickr", 5000), ("imagenet100", 1000)])
def test_known_lists_are_measured_as_published(tree, name, k):
    data = load(tree, name)
    assert (data.name, data.default_k, data.split) == (name, k, "published lists, test list halved")


def test_labels_may_be_multi_hot_and_the_whole_database_may_train(tree):
    lines = (tree / "database.txt").read_text().splitlines()
    (tree / "database.txt").write_text("\n".join([f"{lines[0].split()[0]} 1 1 1", "", *lines[1:]]))
    data = load(tree, train_images="all")
    np.testing.assert_array_equal(data.database.labels[0], [1, 1, 1])
    assert len(data.train) == len(data.database) == DATABASE
    assert len(list((tree.parent / "cache" / "images").iterdir())) == 3  # the database was decoded once
    assert data.train.images is data.database.images, "what reads all of one has read the other"
    assert data.train.labels is data.database.labels


def test_words_of_lists_are_let_go_before_images_are_decoded_and_labels_are_not_copied(tree, monkeypatch):
    class Words(list):
        """A list that can be referred to weakly."""

    read_list, decode_parts, words, seen = lists.read_list, lists.decode_parts, [], []

    def followed(path):
        part = read_list(path)
        part = part._replace(words=Words(part.words))
        words.append(weakref.ref(part.words))
        return part

    def spied(parts, request):
        gc.collect()
        seen.append((sum(each() is not None for each in words), parts))
        return decode_parts(parts, request)

    monkeypatch.setattr(lists, "read_list", followed)
    monkeypatch.setattr(lists, "decode_parts", spied)
    data, ((held, parts),) = load(tree), seen
    assert (held, len(words)) == (0, 3) and all(getattr(data, name).labels is part.labels for name, part in parts.items())


def test_so_many_images_as_are_told_are_decoded_to_train_and_stay_on_disk(tree):
    whole, some = load(tree), load(tree, train_images=4)
    assert isinstance(some.train.images, np.memmap)
    positions = some.train.place.positions
    assert len(positions) == 4 and (np.diff(positions) > 0).all()
    np.testing.assert_array_equal(some.train.images, whole.database.images[positions])
    np.testing.assert_array_equal(some.train.labels, whole.database.labels[positions])
    np.testing.assert_array_equal(load(tree, train_images=4).train.place.positions, positions)
    assert (load(tree, train_images=4, seed=1).train.place.positions != positions).any()
    with pytest.raises(InputError, match=f"train_images {DATABASE + 1}: {tree} has {DATABASE} to train on; give that or less"):
        load(tree, train_images=DATABASE + 1)


@pytest.mark.parametrize("count", [4, DATABASE])
def test_training_images_that_are_drawn_are_told_by_their_pixels_as_those_that_were_drawn_in_memory(tree, count):
    whole, some = load(tree, train_images="all"), load(tree, train_images=count)
    in_memory = dataclasses.replace(whole, train=whole.train.take(some.train.place.positions))
    assert some.digests() == in_memory.digests()


@pytest.mark.parametrize(("name", "told", "k"), [("nus-wide", {}, 5000), ("list", {"k": DATABASE + 1}, DATABASE + 1)])
def test_ranks_that_the_database_does_not_have_are_refused_before_anything_is_trained(tree, name, told, k):
    places = {"dataset": name, "data_dir": tree, "cache_dir": tree.parent / "cache", "out": tree.parent / "run"}
    with pytest.raises(InputError, match=f"the database of {name} holds {DATABASE} images; give that or less") as error:
        load_images(create_config(**places, **told))
    assert (error.value.field, error.value.value) == ("k", k)


@pytest.mark.parametrize(("file", "change", "message"), [
    ("train.txt", lambda lines: [*lines[:2], lines[2] + " 0", *lines[3:]], "train.txt:3: 4 labels instead of the 3"),
    ("train.txt", lambda lines: [lines[0], "images/001.jpg 0 2 0"], "train.txt:2: label '2' is neither 0 nor 1"),
    ("test.txt", lambda lines: [lines[0], "images/001.jpg"], "test.txt:2: no labels"),
    ("test.txt", lambda lines: ["../images/001.jpg 0 1 0"], "test.txt:1: path '../images/001.jpg' leads out of"),
    ("database.txt", lambda lines: [*lines, "/images/001.jpg 0 1 0"], "database.txt:10: path '/images/001.jpg' leads out of"),
    ("database.txt", lambda lines: [line + " 0" for line in lines], "database.txt: 4 labels an image, but train.txt has 3"),
    ("database.txt", lambda lines: ["", " "], "database.txt: names no image; a part of a data set cannot be empty"),
    ("test.txt", lambda lines: lines[:1], "test.txt: one image; at least two are needed"),
    ("train.txt", lambda lines: ["\udcff\udcfe 1 0 0"], "train.txt: UTF-16 text; save it as UTF-8"),
    ("test.txt", None, "test.txt: no such list file; name the folder"),
])
def test_a_list_that_is_wrong_is_named_with_its_line(tree, file, change, message):
    path = tree / file
    if change is None:
        path.unlink()
    else:
        path.write_text("\n".join(change(path.read_text().splitlines())), errors="surrogateescape")
    with pytest.raises(InputError) as error:
        load(tree)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def damage(tree):
    """A truncated image, a file that is no image, and a missing one; all train and are searched."""
    path = tree / "images" / "001.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    (tree / "images" / "002.jpg").write_text("not an image")
    (tree / "images" / "004.jpg").unlink()


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_one_bad_image_too_many_stops_with_its_path(tree, limit):
    damage(tree)
    with pytest.raises(InputError) as error:
        load(tree, max_bad_images=limit)
    line, path, reason = ((2, "001", "truncated or corrupt (image file is truncated"), (3, "002", "no JPEG, PNG"),
                          (5, "004", "no such file"))[limit]
    assert str(error.value).startswith(f"{tree / 'train.txt'}:{line}: images/{path}.jpg: {reason}")
    assert "max_bad_images" in str(error.value) and "\n" not in str(error.value)


def test_bad_images_are_skipped_named_and_counted_once(tree):
    damage(tree)
    for _ in range(2):  # the second time from what is on disk
        data = load(tree, max_bad_images=3)
        assert [len(part) for part in (data.train, data.database)] == [TRAIN - 3, DATABASE - 3]
        np.testing.assert_array_equal(data.train.labels.argmax(axis=1), [0, 0, 2])
        np.testing.assert_array_equal(of_colour(data.database.images), data.database.labels.argmax(axis=1))
        note, = data.notes
        assert note.startswith("Images that could not be read and were skipped: 3.")
        assert all(f"images/{name}.jpg: " in note for name in ("001", "002", "004"))


def test_bad_images_among_those_that_were_drawn_to_train_are_told(tree):
    damage(tree)
    data = load(tree, max_bad_images=3, train_images=DATABASE)
    assert len(data.train) == DATABASE - 3
    assert f"Of {DATABASE} images that were drawn to train, 3 could not be read: {DATABASE - 3} train." in data.notes
    assert len(load(tree, max_bad_images=3, train_images="all").notes) == 1


def test_a_part_of_which_nothing_can_be_read_is_refused(tree):
    (tree / "train.txt").write_text("absent.jpg 1 0 0\n")
    with pytest.raises(InputError, match="none of the 1 images of train could be read"):
        load(tree, max_bad_images=5)


def test_decoding_that_is_cut_goes_on_and_what_is_decoded_is_not_done_again(tree, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 2)
    damage(tree)
    original, seen = store.decode_all, []

    def cut_after(count):
        def decode_some(paths, **told):
            for number, square in enumerate(original(paths, **told)):
                if number == count:
                    raise KeyboardInterrupt
                seen.append(paths[number])
                yield square
        return decode_some

    monkeypatch.setattr(store, "decode_all", cut_after(5))
    with pytest.raises(KeyboardInterrupt):
        load(tree, max_bad_images=3)
    with open(next((tree.parent / "cache" / "images").glob("*/images.u8")), "ab") as file:
        file.write(b"half a chunk that no index speaks of")
    monkeypatch.setattr(store, "decode_all", cut_after(99))
    resumed = load(tree, max_bad_images=3)
    assert len(seen) == 5 + (TRAIN - 4) + DATABASE + TEST  # two chunks of two were kept
    monkeypatch.setattr(store, "decode_all", None)
    for data in (resumed, load(tree, max_bad_images=3)):
        np.testing.assert_array_equal(data.train.images, np.stack([decode(tree / "images" / f"{number:03d}.jpg")
                                                                   for number in (0, 3, 5)]))
    picture(50).save(tree / "images" / "005.jpg")
    with pytest.raises(TypeError):  # a file that changed is decoded again
        load(tree, max_bad_images=3)


def test_a_second_that_decodes_the_same_images_says_that_it_waits(tree, monkeypatch):
    original, seen, found, said = store.decode_all, [], {}, []
    begun, told = threading.Event(), threading.Event()

    def held(paths, **settings):
        begun.set()
        assert told.wait(60)
        seen.extend(paths)
        return original(paths, **settings)

    def hear(text):
        said.append(text)
        told.set()

    def go(name, **heard):
        found[name] = load(tree, decode_workers=0, **heard)

    monkeypatch.setattr(store, "decode_all", held)
    first = threading.Thread(target=go, args=("first",))
    first.start()
    assert begun.wait(60)
    go("second", say=hear)
    first.join()
    images = [store.Listed(f"images/{number:03d}.jpg") for number in range(TRAIN)]
    place = tree.parent / "cache" / "images" / store.digest(tree, images)
    assert said[0] == f"Another process decodes the images of train into {place}; this one waits for it."
    assert len(seen) == TRAIN + DATABASE + TEST
    np.testing.assert_array_equal(found["first"].train.images, found["second"].train.images)


def test_decoded_images_that_someone_deleted_are_decoded_again(tree):
    before = np.array(load(tree).database.images)
    for path in (tree.parent / "cache" / "images").glob("*/images.u8"):
        path.unlink()
    np.testing.assert_array_equal(load(tree).database.images, before)


def test_a_disk_without_room_is_known_before_decoding(tree, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(0, 0, 2**19))
    with pytest.raises(InputError, match=r"0\.0 GiB are needed for 6 decoded images and 0\.0 GiB are free; name another"):
        load(tree)


def test_decoded_images_are_memory_mapped_and_digested_by_what_they_hold(tree, tmp_path):
    images = load(tree).database.images
    assert isinstance(images, np.memmap) and images.shape == (DATABASE, 256, 256, 3)
    copy = np.memmap(tmp_path / "copy", np.uint8, mode="w+", shape=images.shape)
    copy[:] = images
    copy.flush()
    assert digest(images) == digest(copy)
    changed = np.memmap(tmp_path / "changed", np.uint8, mode="w+", shape=images.shape)
    changed[:] = images
    changed[-1, -1, -1, -1] ^= 1
    changed.flush()
    assert digest(changed) != digest(copy)


def test_a_sub_folder_is_a_class(tmp_path):
    data = load(write_folder(tmp_path / "tree"), "folder")
    assert data.class_names == ("blue", "green", "red")
    assert [len(part) for part in (data.database, data.validation, data.test)] == [18, 1, 1]
    names = np.array(["red", "green", "blue"])
    for part in (data.train, data.database, data.test):
        np.testing.assert_array_equal(np.array(data.class_names)[part.labels.argmax(axis=1)], names[of_colour(part.images)])


def test_images_in_the_folder_itself_have_no_labels(tmp_path):
    (tmp_path / "tree").mkdir()
    for number in range(5):
        picture(number).save(tmp_path / "tree" / f"{number}.png")
    data = load(tmp_path / "tree", "folder")
    assert not data.labelled and data.class_names == () and data.database.labels.shape == (3, 0)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda folder: picture(0).save(folder / "loose.jpg"), "images lie both beside and in sub-folders"),
    (lambda folder: shutil.rmtree(folder), "no such folder"),
    (lambda folder: [shutil.rmtree(folder / name) for name in ("red", "green")], "3 images"),
    (lambda folder: [path.unlink() for path in folder.rglob("*.jpg")], "0 images"),
])
def test_a_folder_that_is_wrong_is_refused(tmp_path, spoil, message):
    folder = write_folder(tmp_path / "tree", images=9)
    spoil(folder)
    with pytest.raises(InputError, match=message) as error:
        load(folder, "folder")
    assert str(folder) in str(error.value)


SMALL = ["--teacher", "resnet8", "--teacher-weights", "random", "--student", "resnet8", "--student-weights", "random", "--bits",
         "16", "--clusters", "2", "--views", "2", "--teacher-epochs", "1", "--epochs", "1", "--batch-size", "4", "--min-epochs",
         "0"]


def test_images_without_labels_train_and_evaluation_is_skipped_with_a_note(tmp_path, capsys):
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(12):
        picture(number).save(folder / f"{number}.jpg")
    (folder / "12.jpg").write_text("not an image")
    distill.main(["--dataset", "folder", "--data-dir", str(folder), *SMALL, "--max-bad-images", "1", "--out",
                  str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache")])
    printed = capsys.readouterr().out
    assert "Evaluation was skipped: the data set has no labels." in printed
    assert "could not be read and were skipped: 1. 12.jpg: no JPEG" in printed
    batch_norm = "encodes 2 views of each image once; its batch norm runs on its running averages"
    assert batch_norm in printed
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "teacher" not in metrics and metrics["protocol"]["database"] in (10, 11)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Evaluation was skipped" in page and "12.jpg" in page and batch_norm in page
    assert (tmp_path / "run" / "student_symmetric.safetensors").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--teacher-weights", "absent.pth"], "--teacher-weights absent.pth: no such weight file; check the path"),
    (["--student-weights", "absent"], "--student-weights absent: no such weight file; check the path"),
    (["--student-weights", "held-out"], "--student-weights held-out: no such weight file; check the path"),
    (["--student-weights", "test.txt"], "--student-weights test.txt: unknown kind of weight file; give a .safetensors"),
    (["--teacher-weights", "held-out"], "--teacher-weights held-out: list holds no labelled images out; give a weight file"),
    (["--teacher-weights", "imagenet"], "--teacher-weights: no weights 'imagenet' of 'resnet8' are known"),
    (["--teacher-weights", "images"], "--teacher-weights images: a folder, and no encoder's: it holds no config.json"),
    (["--teacher", "embeddings", "--teacher-objective", "itq", "--embeddings", "no"], "--embeddings no: no such folder"),
])
def test_what_is_not_there_is_told_before_images_are_decoded(tree, monkeypatch, capsys, arguments, message):
    decoded = []
    monkeypatch.setattr(store, "decode_all", lambda paths, **settings: decoded.extend(paths))
    monkeypatch.chdir(tree)
    common = ["--dataset", "list", "--data-dir", ".", *SMALL, "--cache-dir", "cache", "--out", "run"]
    with pytest.raises(SystemExit) as stop:
        run_command(distill.main, [*common, *arguments])
    assert stop.value.code == 2 and decoded == [] and not (tree / "run").exists()
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_the_reference_takes_the_same_data_sets(tree, capsys):
    common = ["--dataset", "list", "--data-dir", str(tree), *SMALL, "--k", "5", "--cache-dir", str(tree.parent / "cache")]
    distill.main([*common, "--out", str(tree.parent / "ours")])
    torch_distill.main([*common, "--out", str(tree.parent / "theirs")])
    ours, theirs = (json.loads((tree.parent / name / "metrics.json").read_text()) for name in ("ours", "theirs"))
    assert ours["protocol"]["split"] == theirs["protocol"]["split"] == "lists, test list halved"
    assert 0 < theirs["student"]["symmetric"]["map"] <= 1 and 0 < ours["student"]["symmetric"]["map"] <= 1


def test_the_command_answers_a_bad_list_in_one_line(tree, capsys):
    (tree / "test.txt").write_text("images/000.jpg 1 0\nimages/001.jpg 0 x\n")
    with pytest.raises(SystemExit) as stop:
        run_command(distill.main, ["--dataset", "list", "--data-dir", str(tree), "--out", str(tree.parent / "run"),
                                   "--cache-dir", str(tree.parent / "cache")])
    assert stop.value.code == 2 and not (tree.parent / "run").exists()
    assert capsys.readouterr().err.startswith(f"error: {tree / 'test.txt'}:2: label 'x' is neither 0 nor 1")
