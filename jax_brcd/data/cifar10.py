"""CIFAR-10 (Krizhevsky, 2009) in its binary or its Python version, split as published ("Data as published" in docs/method.md)
or as others do. Both versions hold the same images in the same order."""

import gzip
import pathlib
import shutil
import tarfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jax_brcd.data.dataset import EVERYTHING, ImageDataset, Images, Place, Request, as_many_as_asked, one_hot
from jax_brcd.data.download import download
from jax_brcd.data.plainpickle import read_plain_pickle
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import lock_beside, locked, system_errors, workplace
from jax_brcd.runtime.progress import Progress, silent
from jax_brcd.runtime.registry import Registry

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE, NAMES_FILE = "test_batch.bin", "batches.meta.txt"
CLASSES, SIDE = 10, 32
RECORD_BYTES = 1 + 3 * SIDE * SIDE
RECORDS_PER_FILE = 10_000
TRAIN_PER_CLASS, QUERIES_PER_CLASS, VALIDATION_PER_CLASS = 500, 100, 100


class Version(NamedTuple):
    """A form in which CIFAR-10's files are shared."""

    name: str
    folder: str  # as its archive calls it
    train_files: tuple[str, ...]
    test_file: str
    names_file: str
    read: Callable[[pathlib.Path], tuple[np.ndarray, np.ndarray]]
    class_names: Callable[[pathlib.Path], tuple[str, ...]]

    @property
    def files(self) -> tuple[str, ...]:
        """All files of it."""
        return (*self.train_files, self.test_file, self.names_file)

    def missing(self, place: pathlib.Path) -> list[str]:
        """The files of it that a folder lacks."""
        return [name for name in self.files if not (place / name).is_file()]


class Split(NamedTuple):
    """The parts that a protocol makes of the images."""

    train: Images
    database: Images
    validation: Images
    test: Images
    note: str = ""  # what the name alone does not say


# (the 50,000 training images, the 10,000 test images, the whole database trains, draw) -> parts
SPLITS: Registry[Callable[[Images, Images, bool, np.random.Generator], Split]] = Registry("split of cifar10")


def load(request: Request) -> ImageDataset:
    """CIFAR-10 under the split that is asked for; downloaded where `request.folder` holds nothing of it.

    The folder holds `cifar-10-batches-bin` or `cifar-10-batches-py` (what torchvision leaves), itself or one level deeper, or
    is such a folder.

    Raises:
        InputError: offline and absent, truncated, of another data set, or a split that has no choice of training images.
    """
    everything = request.train_images == "all"
    if everything and request.split != "published":
        raise InputError(f"the split {request.split} names its training images; leave one of the two out", field="train_images",
                         value="all")
    place, version = find(request.folder, request.progress)
    names = version.class_names(place / version.names_file)
    if len(names) != CLASSES:
        raise InputError(f"{place / version.names_file}: {len(names)} class names instead of {CLASSES}; "
                         f"unpack the {version.name} version of CIFAR-10 again")
    parts = [version.read(place / name) for name in version.train_files]
    training = _placed("database", *(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    test = _placed("test", *version.read(place / version.test_file))
    split = SPLITS[request.split](training, test, everything, np.random.default_rng(request.seed))
    train = as_many_as_asked(split.train, len(split.train), request, "cifar10")
    return ImageDataset(
        name="cifar10", split=request.split + split.note, train=train, database=split.database,
        validation=split.validation, test=split.test, class_names=names, flip=True, default_k=1000)


def _placed(name: str, images: np.ndarray, labels: np.ndarray) -> Images:
    """All images of a file or several, in their order."""
    return Images(images, labels, place=Place.whole(name, len(images)))


@SPLITS.register("published")
def published(training: Images, test: Images, everything: bool, draw: np.random.Generator) -> Split:
    """500 random images a class train, the 50,000 training images are the database, the test images are shuffled and halved
    into validation and test queries."""
    train = training if everything else training.take(draw_per_class(training.labels, TRAIN_PER_CLASS, draw))
    shuffled = draw.permutation(len(test))
    half = len(test) // 2
    return Split(train, training, validation=test.take(shuffled[:half]), test=test.take(shuffled[half:]))


@SPLITS.register("cifar10-I")
def split_one(training: Images, test: Images, everything: bool, draw: np.random.Generator) -> Split:
    """Of the 60,000 images 1,000 are queries (100 a class), 5,000 train (500 a class), the other 54,000 are the database."""
    pooled, queries, train = draw_queries_and_train(training, test, draw)
    database = np.setdiff1d(np.arange(len(pooled)), np.concatenate([queries, train]))
    return _validated_by_training_images(pooled.take(train), pooled.take(database), pooled.take(queries), draw)


@SPLITS.register("cifar10-II")
def split_two(training: Images, test: Images, everything: bool, draw: np.random.Generator) -> Split:
    """Of the 60,000 images 1,000 are queries (100 a class), the other 59,000 are the database, 5,000 of which train."""
    pooled, queries, train = draw_queries_and_train(training, test, draw)
    database = np.setdiff1d(np.arange(len(pooled)), queries)
    return _validated_by_training_images(pooled.take(train), pooled.take(database), pooled.take(queries), draw)


@SPLITS.register("cifar10-III")
def split_three(training: Images, test: Images, everything: bool, draw: np.random.Generator) -> Split:
    """The 10,000 test images are queries, the 50,000 training images train and are the database."""
    return _validated_by_training_images(training, training, test, draw)


def _validated_by_training_images(train: Images, database: Images, test: Images, draw: np.random.Generator) -> Split:
    """A split with 100 training images a class as validation queries.

    These protocols have no validation part. Queries taken from the test part would choose checkpoints by what is reported, and
    a held-out part of the database would change its size, which readers compare. So images that train anyway are the queries.
    Training sees no label; those of the validation queries choose checkpoints and nothing else. Where the training images are
    searched too (II and III) such a query finds itself, one of its k results.
    """
    validation = train.take(draw_per_class(train.labels, VALIDATION_PER_CLASS, draw))
    note = f" (checkpoints chosen by {len(validation):,} of the training images)"
    return Split(train, database, validation, test, note)


def draw_queries_and_train(training: Images, test: Images, draw: np.random.Generator) -> tuple[Images, np.ndarray, np.ndarray]:
    """All images in one, and the positions of 100 random queries and 500 other training images a class."""
    pooled = _placed(EVERYTHING, np.concatenate([training.images, test.images]), np.concatenate([training.labels, test.labels]))
    drawn = draw_per_class(pooled.labels, QUERIES_PER_CLASS + TRAIN_PER_CLASS, draw)
    chosen = draw_per_class(pooled.labels[drawn], QUERIES_PER_CLASS, draw)
    return pooled, drawn[chosen], np.delete(drawn, chosen)


def draw_per_class(labels: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Positions of `count` random images of each class, in ascending order."""
    drawn = [draw.choice(np.flatnonzero(labels[:, number]), count, replace=False) for number in range(labels.shape[1])]
    return np.sort(np.concatenate(drawn))


def read_file(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) and one-hot labels (n, 10) of one file of the binary version.

    Raises:
        InputError: for a file that does not hold 10,000 records of 1 + 3072 bytes with labels 0 to 9.
    """
    size = path.stat().st_size
    if size != RECORDS_PER_FILE * RECORD_BYTES:
        raise InputError(f"{path}: {size} bytes instead of {RECORDS_PER_FILE * RECORD_BYTES}, so it is truncated "
                         "or of another data set; put the file of CIFAR-10's binary version there")
    records = np.fromfile(path, np.uint8).reshape(-1, RECORD_BYTES)
    return _checked(path, records[:, 1:], records[:, 0], "binary")


def read_python_file(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) and one-hot labels (n, 10) of one file of the Python version, of which nothing is executed.

    Raises:
        InputError: for a file that holds more than plain values, or not 10,000 images with labels 0 to 9.
    """
    content = _plain(path)
    pixels, labels = content.get("data"), content.get("labels")
    shape = (RECORDS_PER_FILE, RECORD_BYTES - 1)
    numbers = isinstance(labels, list) and all(type(label) is int and 0 <= label < CLASSES for label in labels)
    if not isinstance(pixels, np.ndarray) or pixels.shape != shape or not numbers or len(labels) != len(pixels):
        raise InputError(f"{path}: not {shape[0]} images of {shape[1]} bytes with a label of 0 to 9 each, so it is damaged or "
                         "of another data set; put the file of CIFAR-10's Python version there")
    return _checked(path, pixels, np.array(labels), "Python")


def _checked(path: pathlib.Path, pixels: np.ndarray, labels: np.ndarray, version: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and one-hot labels of rows of three 32 x 32 planes, where all ten classes are there."""
    if labels.max() >= CLASSES or len(np.unique(labels)) < CLASSES:
        raise InputError(f"{path}: its labels are not CIFAR-10's classes 0 to 9; put the file of CIFAR-10's {version} "
                         "version there")
    return np.ascontiguousarray(pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), one_hot(labels, CLASSES)


def _plain(path: pathlib.Path) -> dict:
    """A file of the Python version, with its keys as text."""
    return {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in read_plain_pickle(path).items()}


def _binary_names(path: pathlib.Path) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8", errors="replace").split())


def _python_names(path: pathlib.Path) -> tuple[str, ...]:
    names = _plain(path).get("label_names")
    return tuple(name.decode("latin-1") if isinstance(name, bytes) else str(name) for name in names or ())


BINARY = Version("binary", FOLDER, TRAIN_FILES, TEST_FILE, NAMES_FILE, read_file, _binary_names)
PYTHON = Version("Python", "cifar-10-batches-py", tuple(f"data_batch_{number}" for number in range(1, 6)), "test_batch",
                 "batches.meta", read_python_file, _python_names)
VERSIONS = (BINARY, PYTHON)
# What else lies in people's folders: a file or folder of it, and what it is
OTHERS = {"fine_label_names.txt": "CIFAR-100's binary version", "cifar-100-binary": "CIFAR-100's binary version",
          "cifar-100-python": "CIFAR-100's Python version", "cifar-10-batches-mat": "CIFAR-10's Matlab version",
          "batches.meta.mat": "CIFAR-10's Matlab version", "cifar-10-python.tar.gz": "the archive of CIFAR-10's Python version"}


def find(folder: pathlib.Path, progress: Progress = silent) -> tuple[pathlib.Path, Version]:
    """The folder of the files and the version they are of; downloaded where nothing of it is there.

    The files lie in the folder itself, in the sub-folder of their archive's name, or in that of another sub-folder.
    """
    deeper = sorted(path for version in VERSIONS for path in folder.glob(f"*/{version.folder}"))
    places = [(place, version) for version in VERSIONS for place in (folder / version.folder, folder)]
    places += [(place, version) for place in deeper for version in VERSIONS if place.name == version.folder]
    for place, version in places:
        if not version.missing(place):
            return place, version
    for place, version in places:
        missing = version.missing(place)
        if len(missing) < len(version.files):
            raise InputError(f"{place}: {', '.join(missing)} missing; unpack {URL} into {folder}")
    if {"train", "test", "meta"} <= {path.name for path in folder.glob("*")}:
        raise InputError(f"{folder}: holds CIFAR-100's Python version; name CIFAR-10's folder with `data_dir`")
    others = [name for name in OTHERS if (folder / name).exists()]
    try:
        with locked(lock_beside(folder / FOLDER)):  # of several processes and runs one fetches it
            if BINARY.missing(folder / FOLDER):
                fetch(folder, progress)
    except InputError as error:
        found = "; ".join(f"{name} is {OTHERS[name]}" for name in others)
        raise InputError(f"{error.problem}; of what lies in {folder}, {found}" if found else error.problem) from None
    return folder / FOLDER, BINARY


def fetch(folder: pathlib.Path, progress: Progress = silent) -> None:
    """Downloads and unpacks the archive; the folder appears only when all its files are there."""
    archive = folder / URL.rsplit("/", 1)[-1]
    if not archive.exists():
        download(URL, archive, algorithm="md5", checksum=MD5, progress=progress)
    with system_errors(folder / FOLDER), workplace(folder / FOLDER) as place:
        unpacked = place / FOLDER
        unpacked.mkdir()
        try:
            with tarfile.open(archive) as tar:
                for name in BINARY.files:
                    with tar.extractfile(f"{FOLDER}/{name}") as member, open(unpacked / name, "wb") as file:
                        shutil.copyfileobj(member, file)
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, KeyError, EOFError, TypeError) as error:
            raise InputError(f"{archive}: not CIFAR-10's binary archive ({error}); delete it and try again") from None
        unpacked.rename(folder / FOLDER)
    archive.unlink()
