"""What a run can know of its data: digests that change with labels and images, and with nothing else; progress; a cheap
import."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from image_trees import picture, write_lists

from jax_brcd.data import ImageDataset, Images, load_dataset, store
from jax_brcd.data.download import download

TRAIN, DATABASE, TEST = 4, 6, 4
FILES = ("train.txt", "database.txt", "test.txt")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_lists(tmp_path_factory.mktemp("lists"), TRAIN, DATABASE, TEST, width=20, height=16)


@pytest.fixture
def tree(made, tmp_path):
    return shutil.copytree(made, tmp_path / "tree")


def load(folder, **settings):
    return load_dataset("list", data_dir=folder, cache_dir=folder.parent / "cache", decode_workers=0, **settings)


def changes(before, after):
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_the_same_files_have_the_same_digests_wherever_they_lie(tree, tmp_path):
    before = load(tree).digests()
    parts = ("train", "database", "validation", "test")
    assert set(before) == {*(f"{what} of {part}" for what in ("images", "labels") for part in parts), *FILES}
    assert all(isinstance(each, str) and 0 < len(each) <= 20 for each in before.values())
    moved = shutil.move(tree, tmp_path / "moved")
    assert load(moved).digests() == before
    shutil.rmtree(tmp_path / "cache")
    assert load(moved).digests() == before


def test_how_a_list_is_spelled_does_not_matter(tree):
    before = load(tree).digests()
    for name in ("train", "database", "test"):
        path = tree / f"{name}.txt"
        path.write_bytes(b"\xef\xbb\xbf# a list\r\n" + path.read_bytes().replace(b"\n", b"\r\n").replace(b" ", b"\t"))
    assert load(tree).digests() == before


def test_labels_that_were_swapped_are_seen_and_the_images_are_the_same(tree):
    before = load(tree).digests()
    lines = [line.split(" ", 1) for line in (tree / "database.txt").read_text().splitlines()]
    lines[0][1], lines[1][1] = lines[1][1], lines[0][1]
    (tree / "database.txt").write_text("".join(" ".join(line) + "\n" for line in lines))
    assert changes(before, load(tree).digests()) == {"labels of database", "database.txt"}


def test_an_image_that_changed_is_seen_where_it_stands(tree):
    before = load(tree).digests()
    picture(50, 20, 16).save(tree / "images" / "005.jpg")  # in the database alone
    assert changes(before, load(tree).digests()) == {"images of database"}
    picture(51, 20, 16).save(tree / "images" / "001.jpg")  # trains too
    assert changes(before, load(tree).digests()) == {"images of database", "images of train"}


def test_another_seed_changes_the_queries_alone(tree):
    found = changes(load(tree).digests(), load(tree, seed=2).digests())
    assert "images of test" in found and not found & {"images of train", "labels of database", "test.txt"}


def test_the_order_of_a_list_counts(tree):
    before = load(tree).digests()
    path = tree / "train.txt"
    path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")
    assert changes(before, load(tree).digests()) == {"images of train", "labels of train", "train.txt"}


def test_a_list_that_is_not_used_does_not_count(tree):
    before = load(tree, train_images="all").digests()
    assert "train.txt" not in before and before["images of train"] == before["images of database"]


def test_a_bad_image_that_is_skipped_is_seen_when_it_is_mended(tree):
    content = (tree / "images" / "005.jpg").read_bytes()
    whole = load(tree).digests()
    (tree / "images" / "005.jpg").write_bytes(content[:100])
    without = load(tree, max_bad_images=1).digests()
    assert changes(whole, without) == {"images of database", "labels of database"}
    (tree / "images" / "005.jpg").write_bytes(content)
    assert load(tree, max_bad_images=1).digests() == whole


def test_decoding_that_went_on_later_gives_the_digest_of_one_pass(tree, monkeypatch):
    expected = load(tree).digests()
    shutil.rmtree(tree.parent / "cache")
    monkeypatch.setattr(store, "CHUNK", 2)
    original = store.decode_all

    def cut(paths, **told):
        for number, square in enumerate(original(paths, **told)):
            if number == 3:
                raise KeyboardInterrupt
            yield square

    monkeypatch.setattr(store, "decode_all", cut)
    with pytest.raises(KeyboardInterrupt):
        load(tree)
    monkeypatch.setattr(store, "decode_all", original)
    assert load(tree).digests() == expected


def test_images_that_an_earlier_version_decoded_are_digested_once_and_not_decoded_again(tree, monkeypatch):
    expected = load(tree).digests()
    for path in (tree.parent / "cache" / "images").glob("*/index.json"):
        index = json.loads(path.read_text())
        del index["content"]
        path.write_text(json.dumps(index))
    monkeypatch.setattr(store, "decode_all", None)
    assert load(tree).digests() == expected
    written = {path: path.stat().st_mtime_ns for path in (tree.parent / "cache" / "images").glob(f"*/{store.DIGESTS}")}
    assert written and load(tree).digests() == expected
    assert written == {path: path.stat().st_mtime_ns for path in written}


def test_images_in_memory_are_digested_by_what_they_hold(tmp_path):
    digits = load_dataset("digits", cache_dir=tmp_path)
    before = digits.digests()
    assert {"images of pretraining", "labels of pretraining"} < set(before)
    assert before == load_dataset("digits", cache_dir=tmp_path).digests()
    labels = digits.test.labels.copy()
    labels[0] = np.roll(labels[0], 1)
    relabelled = dataclasses.replace(digits, test=Images(digits.test.images, labels))
    assert changes(before, relabelled.digests()) == {"labels of test"}
    images = digits.database.images.copy()
    images[5, 3, 3, 0] ^= 1
    changed = dataclasses.replace(digits, database=Images(images, digits.database.labels))
    assert changes(before, changed.digests()) == {"images of database"}


def test_a_data_set_made_by_hand_without_labels_has_digests():
    part = Images(np.zeros((3, 8, 8, 3), np.uint8), np.zeros((3, 0), np.uint8))
    data = ImageDataset("mine", "mine", part, part, part, part, (), flip=False, default_k=1)
    assert data.digests()["images of train"] == data.digests()["images of test"]


def test_progress_is_told_and_nothing_is_drawn(tree, capfd):
    told = []
    load(tree, progress=lambda *each: told.append(each))
    assert told == [(f"decode {part}", done, count) for part, count in (
        ("train", TRAIN), ("database", DATABASE), ("validation", 2), ("test", 2)) for done in (0, count)]
    told.clear()
    load(tree, progress=lambda *each: told.append(each))
    load(tree)
    assert told == [] and capfd.readouterr() == ("", "")


def test_a_download_tells_how_far_it_is(tmp_path, capfd):
    (tmp_path / "source").write_bytes(b"x" * 3_000_000)
    told = []
    path = download((tmp_path / "source").as_uri(), str(tmp_path / "target"), algorithm="md5", checksum="",
                    progress=lambda *each: told.append(each))
    assert path.stat().st_size == 3_000_000
    assert told[-1] == ("download source", 3_000_000, 3_000_000) and len(told) > 1 and told == sorted(told)
    assert capfd.readouterr() == ("", "")


def test_importing_the_room_imports_nothing_that_only_some_data_sets_need():
    heavy = ("jax", "sklearn", "scipy", "grain", "PIL", "absl", "tqdm", "pickle5", "torch", "orbax", "matplotlib")
    code = f"import sys, jax_brcd.data; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
