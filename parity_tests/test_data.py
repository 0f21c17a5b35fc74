"""The data sets: the published splits, and one clear line for every way in which files can be wrong."""

import hashlib
import io
import pathlib
import re
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jax_brcd.data import cifar10, digits, load_dataset
from jax_brcd.data.download import download
from jax_brcd.runtime.errors import InputError

RECORDS = 200


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A small data set in CIFAR-10's layout: 200 records a file, pixels that tell which record they are of."""
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)
    monkeypatch.setattr(cifar10, "TRAIN_PER_CLASS", 30)
    monkeypatch.setattr(cifar10, "QUERIES_PER_CLASS", 7)
    monkeypatch.setattr(cifar10, "VALIDATION_PER_CLASS", 5)
    monkeypatch.setattr(cifar10, "URL", "file:///absent/cifar-10-binary.tar.gz")
    write_tree(tmp_path / cifar10.FOLDER)
    return tmp_path


def write_tree(folder):
    folder.mkdir(parents=True)
    for number, name in enumerate((*cifar10.TRAIN_FILES, cifar10.TEST_FILE)):
        records = np.zeros((RECORDS, cifar10.RECORD_BYTES), np.uint8)
        records[:, 0] = np.arange(RECORDS) % 10
        records[:, 1], records[:, 2], records[:, 1 + 1024] = np.arange(RECORDS), number, 7
        records.tofile(folder / name)
    (folder / cifar10.NAMES_FILE).write_text("\n".join(f"class{number}" for number in range(10)) + "\n\n")


def identities(images):
    """(record, file) of each image of the small tree."""
    return set(zip(images.images[:, 0, 0, 0].tolist(), images.images[:, 0, 1, 0].tolist(), strict=True))


def load(folder, **settings):
    return load_dataset("cifar10", data_dir=folder, cache_dir=folder, **settings)


def test_cifar10_is_split_as_published(tree):
    data = load(tree)
    assert (len(data.train), len(data.database), len(data.validation), len(data.test)) == (300, 1000, 100, 100)
    np.testing.assert_array_equal(data.train.labels.sum(axis=0), 30)
    assert identities(data.train) < identities(data.database)
    assert not identities(data.validation) & identities(data.test)
    assert len(identities(data.validation) | identities(data.test)) == RECORDS
    assert data.default_k == 1000 and data.flip and data.class_names[3] == "class3"


def test_pixels_are_channels_last_and_labels_one_hot(tree):
    data = load(tree)
    assert data.database.images.shape == (1000, 32, 32, 3) and data.database.images.dtype == np.uint8
    np.testing.assert_array_equal(data.database.images[205, 0, 0], [5, 7, 0])
    np.testing.assert_array_equal(data.database.labels.argmax(axis=1), np.arange(1000) % 10)


def test_splits_depend_on_the_seed_alone(tree):
    first, again, other = load(tree), load(tree), load(tree, seed=1)
    np.testing.assert_array_equal(first.train.images, again.train.images)
    np.testing.assert_array_equal(first.test.images, again.test.images)
    assert identities(first.train) != identities(other.train)
    assert identities(first.test) != identities(other.test)


def test_all_images_may_train(tree):
    assert len(load(tree, train_images="all").train) == 1000


def test_so_many_images_as_are_told_train(tree):
    whole, some, again, other = (load(tree, train_images=count, seed=seed)
                                 for count, seed in (("all", 0), (300, 0), (300, 0), (300, 1)))
    assert len(some.train) == len(identities(some.train)) == 300 and identities(some.train) < identities(whole.train)
    np.testing.assert_array_equal(some.train.images, again.train.images)
    assert identities(some.train) != identities(other.train)
    assert identities(some.test) == identities(whole.test) and len(some.database) == 1000
    named, whole = load(tree, split="cifar10-I", train_images=100), load(tree, split="cifar10-I")
    assert len(named.train) == 100 and identities(named.train) < identities(whole.train)
    assert len(load_dataset("digits", cache_dir=tree, train_images=100).train) == 100
    with pytest.raises(InputError, match="train_images 1001: cifar10 has 1000 .*; give that or less, or train_images all$"):
        load(tree, train_images=1001)
    with pytest.raises(InputError, match="train_images 301: cifar10 has 300 to train on; give that or less$"):
        load(tree, split="cifar10-I", train_images=301)


@pytest.mark.parametrize(("split", "sizes"), [  # of training, database and test queries, out of 1,000 and 200 images
    ("cifar10-I", (300, 1200 - 70 - 300, 70)),
    ("cifar10-II", (300, 1200 - 70, 70)),
    ("cifar10-III", (1000, 1000, 200)),
])
def test_the_common_splits_of_cifar10_have_names(tree, split, sizes):
    data = load(tree, split=split)
    train, database, validation, test = (identities(part) for part in (data.train, data.database, data.validation, data.test))
    assert (len(train), len(database), len(test)) == sizes
    assert not test & (train | database)
    assert train.isdisjoint(database) if split == "cifar10-I" else train <= database
    assert validation < train and len(validation) == 50
    np.testing.assert_array_equal(data.validation.labels.sum(axis=0), 5)
    for part in (data.train, data.test):
        assert len(set(part.labels.sum(axis=0).tolist())) == 1
    assert data.split == f"{split} (checkpoints chosen by 50 of the training images)"
    np.testing.assert_array_equal(data.test.labels.argmax(axis=1), data.test.images[:, 0, 0, 0] % 10)


def test_a_named_split_depends_on_the_seed_alone(tree):
    first, again, other = (identities(load(tree, split="cifar10-II", seed=seed).test) for seed in (0, 0, 1))
    assert first == again != other


def test_a_split_that_a_data_set_does_not_know_is_answered_with_its_own(tree, tmp_path):
    with pytest.raises(InputError, match="unknown split of cifar10 'cifar10-IV': did you mean 'cifar10-I"):
        load(tree, split="cifar10-IV")
    with pytest.raises(InputError, match="unknown split of digits 'cifar10-I': known: published"):
        load_dataset("digits", cache_dir=tmp_path, split="cifar10-I")
    with pytest.raises(InputError, match="train_images all: the split cifar10-I names its training images"):
        load(tree, split="cifar10-I", train_images="all")


def test_the_folder_of_the_files_itself_may_be_named(tree):
    assert len(load(tree / cifar10.FOLDER).database) == 1000


@pytest.mark.parametrize(("damage", "message"), [
    (lambda path: path.write_bytes(path.read_bytes()[:-5]), "truncated"),
    (lambda path: path.write_bytes(path.read_bytes()[: -cifar10.RECORD_BYTES]), "truncated"),
    (lambda path: np.zeros((RECORDS, 3074), np.uint8).tofile(path), "of another data set"),
    (lambda path: np.full((RECORDS, 3073), 99, np.uint8).tofile(path), "not CIFAR-10's classes"),
    (lambda path: path.unlink(), "data_batch_2.bin missing"),
])
def test_a_file_that_is_wrong_is_named(tree, damage, message):
    damage(tree / cifar10.FOLDER / "data_batch_2.bin")
    with pytest.raises(InputError, match=message) as error:
        load(tree)
    assert "data_batch_2.bin" in str(error.value)


def test_names_of_another_data_set_are_refused(tree):
    (tree / cifar10.FOLDER / cifar10.NAMES_FILE).write_text("one two")
    with pytest.raises(InputError, match="2 class names instead of 10"):
        load(tree)


def test_offline_the_line_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", "file:///absent/cifar-10-binary.tar.gz")
    with pytest.raises(InputError) as error:
        load(tmp_path / "new")
    assert "file:///absent/cifar-10-binary.tar.gz" in str(error.value)
    assert f"at {tmp_path / 'new' / 'cifar-10-binary.tar.gz'} by hand" in str(error.value)
    assert "\n" not in str(error.value)


def archive_of(folder, path, names=cifar10.BINARY.files):
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            tar.add(folder / name, f"{cifar10.FOLDER}/{name}")
        member = tarfile.TarInfo("../outside.txt")
        tar.addfile(member, io.BytesIO())


def test_an_absent_cifar10_is_downloaded_and_unpacked(tree, tmp_path_factory, monkeypatch):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    archive_of(tree / cifar10.FOLDER, source / "cifar-10-binary.tar.gz")
    monkeypatch.setattr(cifar10, "URL", (source / "cifar-10-binary.tar.gz").as_uri())
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5((source / "cifar-10-binary.tar.gz").read_bytes()).hexdigest())
    assert len(load(target / "data").database) == 1000
    assert [path.name for path in (target / "data").glob("[!.]*")] == [cifar10.FOLDER]
    assert not (target / "outside.txt").exists()


def test_of_two_that_want_an_absent_cifar10_one_fetches_it(tree, tmp_path_factory, monkeypatch):
    target, fetch, fetched = tmp_path_factory.mktemp("target"), cifar10.fetch, []
    archive_of(tree / cifar10.FOLDER, target / "cifar-10-binary.tar.gz")

    def slowly(folder, progress):
        fetched.append(folder)
        time.sleep(0.3)  # in which the other one has looked
        fetch(folder, progress)

    monkeypatch.setattr(cifar10, "fetch", slowly)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(cifar10.find, [target, target]))
    assert found == [(target / cifar10.FOLDER, cifar10.BINARY)] * 2 and fetched == [target]


def test_an_archive_put_there_by_hand_is_unpacked_but_must_hold_the_files(tree, tmp_path_factory):
    target = tmp_path_factory.mktemp("target")
    archive_of(tree / cifar10.FOLDER, target / "cifar-10-binary.tar.gz", names=cifar10.BINARY.files[:3])
    with pytest.raises(InputError, match="not CIFAR-10's binary archive"):
        load(target)
    assert [path.name for path in target.glob("[!.]*")] == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("damage", [
    lambda content: content[: len(content) // 2],
    lambda content: content[:1000] + bytes(500) + content[1500:],
    lambda content: b"not an archive",
    lambda content: b"",
])
def test_an_archive_that_is_damaged_is_named(tree, tmp_path_factory, damage):
    target = tmp_path_factory.mktemp("target")
    archive = target / "cifar-10-binary.tar.gz"
    archive_of(tree / cifar10.FOLDER, archive)
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(InputError, match="not CIFAR-10's binary archive") as error:
        load(target)
    assert str(archive) in str(error.value) and [path.name for path in target.glob("[!.]*")] == [archive.name]


def test_no_error_of_the_data_names_an_option_of_the_command():
    for path in pathlib.Path(cifar10.__file__).parent.glob("*.py"):
        assert not re.search(r"--[a-z]", path.read_text()), path


def test_a_download_with_another_digest_leaves_nothing(tmp_path):
    (tmp_path / "source").write_bytes(b"something else")
    with pytest.raises(InputError, match="instead of 0000"):
        download((tmp_path / "source").as_uri(), tmp_path / "target" / "file", algorithm="sha256", checksum="0000")
    assert list((tmp_path / "target").iterdir()) == []


def test_unknown_data_sets_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(InputError, match="unknown data set 'cifar': did you mean 'cifar10'"):
        load_dataset("cifar", data_dir=tmp_path, cache_dir=tmp_path)


def test_digits_parts_are_disjoint_and_cover_all(tmp_path):
    data = load_dataset("digits", cache_dir=tmp_path)
    parts = (data.pretraining, data.validation, data.test, data.database)
    assert [len(part) for part in parts] == [600, 200, 200, 797]
    everything = np.concatenate([part.images.reshape(len(part), -1) for part in parts])
    assert everything.shape == (1797, 32 * 32 * 3) and everything.dtype == np.uint8
    assert len(np.unique(everything, axis=0)) == len(np.unique(digits.enlarge(load_digits().images).reshape(1797, -1), axis=0))
    assert data.train is data.database and not data.flip


@pytest.mark.parametrize("there", [True, False])
def test_digits_are_scikit_learns_wherever_it_keeps_its_file(there, monkeypatch):
    if not there:
        monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    pixels, numbers = digits.read_file()
    expected = load_digits()
    np.testing.assert_array_equal(pixels, expected.images)
    np.testing.assert_array_equal(numbers, expected.target)
    assert np.issubdtype(numbers.dtype, np.integer)


def test_digits_span_the_gray_levels_and_keep_their_shape():
    raw = load_digits().images[:5]
    images = digits.enlarge(raw)
    assert images.min() == 0 and images.max() == 255
    np.testing.assert_array_equal(images[..., 0], images[..., 2])
    blocks = images[..., 0].reshape(5, 8, 4, 8, 4).mean(axis=(2, 4)) / 255 * 16
    assert np.corrcoef(blocks.ravel(), raw.ravel())[0, 1] > 0.95


def test_the_real_images_are_cifar10s(shared, tmp_path):
    pytest.importorskip("PIL", reason="unpacking the images needs Pillow")
    subprocess.run([sys.executable, shared("cifar10", "unpack.py"), tmp_path], check=True)
    data = load_dataset("cifar10", data_dir=tmp_path, cache_dir=tmp_path)
    assert (len(data.train), len(data.database), len(data.validation), len(data.test)) == (5000, 50000, 5000, 5000)
    np.testing.assert_array_equal(data.database.labels.sum(axis=0), 5000)
    np.testing.assert_array_equal(data.train.labels.sum(axis=0), 500)
    assert data.class_names[:3] == ("airplane", "automobile", "bird")
