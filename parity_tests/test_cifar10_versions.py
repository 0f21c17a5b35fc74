"""CIFAR-10 as torchvision and others leave it: the Python version, of which nothing is executed, and folders a level too
deep."""

import ast
import os
import pathlib
import pickle
import shutil
import struct

import numpy as np
import pytest

from jax_brcd.data import cifar10, load_dataset
from jax_brcd.data.plainpickle import read_plain_pickle
from jax_brcd.runtime.errors import InputError

RECORDS = 200
NAMES = [f"class{number}" for number in range(10)]


def python_2_text(text):
    return b"U" + bytes([len(text)]) + text


def python_2_file(pixels, labels):
    """A data file as Python 2 wrote it, instruction for instruction: texts as strings, numbers short, the array by the names
    that NumPy had then."""
    content = pixels.tobytes()
    rows, columns = pixels.shape
    array = (b"cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\nq\x05K\x00\x85U\x01b\x87Rq\x06(K\x01"
             + b"M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns)
             + b"\x86cnumpy\ndtype\nq\x07U\x02u1K\x00K\x01\x87R"
             b"q\x08(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", len(content)) + content
             + b"tb")
    numbers = b"]q\x03(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    names = b"](" + b"".join(python_2_text(b"%d.png" % number) for number in range(len(labels))) + b"e"
    items = (python_2_text(b"batch_label") + b"q\x01" + python_2_text(b"training batch 1 of 5") + b"q\x02"
             + python_2_text(b"labels")
             + numbers + python_2_text(b"data") + array + python_2_text(b"filenames") + names)
    return b"\x80\x02}q\x00(" + items + b"u."


def python_3_file(pixels, labels, protocol=2):
    return pickle.dumps({b"batch_label": b"training batch 1 of 5", b"labels": labels, b"data": pixels,
                         b"filenames": [b"a.png"]},
                        protocol=protocol)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)
    monkeypatch.setattr(cifar10, "TRAIN_PER_CLASS", 30)
    monkeypatch.setattr(cifar10, "URL", "file:///absent/cifar-10-binary.tar.gz")


def write_both(folder, write=python_2_file):
    """The same images and labels in both versions."""
    draw = np.random.default_rng(0)
    for version in cifar10.VERSIONS:
        (folder / version.folder).mkdir(parents=True)
    binary, python = cifar10.VERSIONS
    for ours, theirs in zip((*binary.train_files, binary.test_file), (*python.train_files, python.test_file), strict=True):
        pixels, labels = draw.integers(0, 256, (RECORDS, 3072), np.uint8), [number % 10 for number in range(RECORDS)]
        np.hstack([np.array(labels, np.uint8)[:, None], pixels]).tofile(folder / binary.folder / ours)
        (folder / python.folder / theirs).write_bytes(write(pixels, labels))
    (folder / binary.folder / binary.names_file).write_text("\n".join(NAMES) + "\n")
    (folder / python.folder / python.names_file).write_bytes(
        pickle.dumps({b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072}, protocol=2))
    return folder


def load(folder):
    return load_dataset("cifar10", data_dir=folder, cache_dir=folder)


@pytest.mark.parametrize("write", [python_2_file, python_3_file, lambda *content: python_3_file(*content, protocol=4)])
def test_the_python_version_is_the_same_data_set(tmp_path, small, write):
    folder = write_both(tmp_path, write)
    expected = load(folder)
    shutil.rmtree(folder / cifar10.FOLDER)
    for place in (folder, folder / "cifar-10-batches-py"):
        data = load(place)
        assert data.class_names == expected.class_names == tuple(NAMES)
        for name in ("train", "database", "validation", "test"):
            np.testing.assert_array_equal(getattr(data, name).images, getattr(expected, name).images)
            np.testing.assert_array_equal(getattr(data, name).labels, getattr(expected, name).labels)
        assert data.digests() == expected.digests()


def test_pythons_own_reader_gives_the_same(tmp_path):
    """Of a file that the test itself wrote."""
    pixels, labels = np.arange(3 * 4, dtype=np.uint8).reshape(3, 4), [3, 1, 2]
    path = tmp_path / "file"
    path.write_bytes(python_2_file(pixels, labels))
    ours, theirs = read_plain_pickle(path), pickle.loads(path.read_bytes(), encoding="bytes")
    assert ours.keys() == theirs.keys() and all(ours[key] == theirs[key] for key in ours if key != b"data")
    np.testing.assert_array_equal(ours[b"data"], theirs[b"data"])


class Harmful:
    """Would make a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_harmful_file_is_refused_in_one_line_and_not_run(tmp_path, small, protocol):
    folder = write_both(tmp_path)
    shutil.rmtree(folder / cifar10.FOLDER)
    path = folder / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({"data": Harmful(tmp_path / "harm")}, protocol=protocol))
    with pytest.raises(InputError) as error:
        load(folder)
    assert str(path) in str(error.value) and "nothing in it was executed" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()
    if 2 <= protocol:
        assert "it names posix.system" in str(error.value)


GLOBAL = b"\x80\x02c"
HARMFUL = {
    "an instance of old classes": b"(S'touch harm'\nios\nsystem\n.",
    "a new object": b"\x80\x02}U\x01acos\nsystem\nU\x01b\x85\x81s.",
    "a function by another module": GLOBAL + b"builtins\neval\nU\x01a\x85R.",
    "a known module's other function": GLOBAL + b"numpy.core.multiarray\nfromfile\nU\x01a\x85R.",
    "an array made a function": GLOBAL + b"numpy\nndarray\nU\x01a\x85R.",
    "a text as a function": b"\x80\x02U\x01aU\x01b\x85R.",
    "an extension": b"\x80\x02\x82\x01.",
    "an identity of elsewhere": b"\x80\x02U\x01aQ.",
    "an array of objects": GLOBAL + b"numpy\ndtype\nU\x02O8K\x00K\x01\x87R.",
    "an array that is larger than its content": (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01J\xff\xff\xff\x7f\x85"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89U\x01xtbs."),
    "an array without content": b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87Rs.",
    "a list and no dictionary": b"\x80\x02].",
    "nothing": b"",
    "what is left out": b"\x80\x02}U\x01a",
    "items of nowhere": b"\x80\x02u.",
    "a mark of nowhere": b"\x80\x02}K\x01K\x02u.",
    "a list as a key": b"\x80\x02}]K\x01s.",
    "what is remembered of nothing": b"\x80\x02h\x07.",
    "more bytes than there are": b"\x80\x02}U\x01aT\xff\xff\xff\x7fxs.",
    "no pickle": b"\x89PNG\r\n",
}


@pytest.mark.parametrize("content", HARMFUL.values(), ids=HARMFUL.keys())
def test_what_is_no_plain_value_is_refused(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no pickle of plain values and byte arrays") as error:
        read_plain_pickle(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path):
    content = python_2_file(np.zeros((2, 3), np.uint8), [1, 2])
    path = tmp_path / "file"
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(InputError):
            read_plain_pickle(path)


def test_bytes_that_changed_at_random_are_read_or_refused(tmp_path):
    content = python_2_file(np.zeros((2, 3), np.uint8), [1, 2])
    path, draw = tmp_path / "file", np.random.default_rng(0)
    for _ in range(1000):
        changed = bytearray(content)
        changed[draw.integers(len(changed))] = draw.integers(256)
        path.write_bytes(changed)
        try:
            assert isinstance(read_plain_pickle(path), dict)
        except InputError as error:
            assert "\n" not in str(error)


UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def is_constant(node, value):
    return isinstance(node, ast.Constant) and node.value is value


def unpickling(tree):
    """The lines of a program that import what unpickles, or that let torch or NumPy do it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = any(name.name.partition(".")[0] in UNPICKLERS for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            found = (node.module or "").partition(".")[0] in UNPICKLERS or (
                node.module == "torch" and any(name.name == "load" for name in node.names))
        elif isinstance(node, ast.Call):
            told = {word.arg: word.value for word in node.keywords}
            found = not is_constant(told.get("allow_pickle", ast.Constant(False)), False) or (
                ast.unparse(node.func) == "torch.load" and not is_constant(told.get("weights_only"), True))
        else:
            continue
        if found:
            yield node.lineno


@pytest.mark.parametrize(("program", "lines"), [
    ("import pickle", [1]), ("import os, pickle as p", [1]), ("from dill import loads", [1]), ("import pickletools", []),
    ("torch.load(f)", [1]), ("torch.load(f, weights_only=False)", [1]), ("torch.load(f, weights_only=True)", []),
    ("from torch import load", [1]), ("\nnp.load(f, allow_pickle=1)", [2]), ("np.load(f, allow_pickle=told)", [1]),
    ("np.load(f, allow_pickle=False)", [])])
def test_what_unpickles_is_seen(program, lines):
    assert list(unpickling(ast.parse(program))) == lines


def test_nothing_in_the_package_unpickles():
    root = pathlib.Path(cifar10.__file__).parents[2]
    paths = [path for package in ("jax_brcd", "torch_ref") for path in (root / package).rglob("*.py")]
    found = [f"{path}:{line}" for path in paths for line in unpickling(ast.parse(path.read_text()))]
    assert found == [] and len(paths) > 100


def damaged(**changes):
    content = {"data": np.zeros((RECORDS, 3072), np.uint8), "labels": [number % 10 for number in range(RECORDS)], **changes}
    return pickle.dumps(content, protocol=2)


@pytest.mark.parametrize("content", [
    damaged(labels=[11] * RECORDS), damaged(labels=[True] * RECORDS), damaged(labels=["0"] * RECORDS), damaged(labels=[0]),
    damaged(labels=[]), damaged(data=np.zeros((RECORDS - 1, 3072), np.uint8)), damaged(data=b"x"),
    damaged(labels=[3] * RECORDS), pickle.dumps({}, protocol=2),
])
def test_a_python_file_of_other_content_is_refused_by_name(tmp_path, small, content):
    folder = write_both(tmp_path)
    shutil.rmtree(folder / cifar10.FOLDER)
    path = folder / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(content)
    with pytest.raises(InputError, match="put the file of CIFAR-10's Python version there") as error:
        load(folder)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("version", [0, 1])
def test_files_that_lie_a_level_too_deep_are_found(tmp_path, small, version):
    folder = write_both(tmp_path / "made")
    name = cifar10.VERSIONS[version].folder
    (tmp_path / "data" / name).mkdir(parents=True)
    shutil.move(folder / name, tmp_path / "data" / name / name)
    assert len(load(tmp_path / "data").database) == 5 * RECORDS


def test_a_whole_version_is_taken_before_one_that_is_not(tmp_path, small):
    folder = write_both(tmp_path)
    (folder / cifar10.FOLDER / "data_batch_2.bin").unlink()
    assert len(load(folder).database) == 5 * RECORDS
    (folder / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(InputError, match=r"data_batch_2\.bin missing"):
        load(folder)


@pytest.mark.parametrize(("lying", "message"), [
    (["cifar-100-python/train"], "cifar-100-python is CIFAR-100's Python version"),
    (["cifar-100-binary/train.bin"], "cifar-100-binary is CIFAR-100's binary version"),
    (["train", "test", "meta"], "holds CIFAR-100's Python version; name CIFAR-10's folder with data_dir"),
    (["train.bin", "test.bin", "fine_label_names.txt"], "is CIFAR-100's binary version"),
    (["cifar-10-batches-mat/data_batch_1.mat"], "cifar-10-batches-mat is CIFAR-10's Matlab version"),
    (["cifar-10-python.tar.gz"], "cifar-10-python.tar.gz is the archive of CIFAR-10's Python version"),
])
def test_offline_another_version_in_the_folder_is_named(tmp_path, small, lying, message):
    for name in lying:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert message in str(error.value) and str(tmp_path) in str(error.value)
