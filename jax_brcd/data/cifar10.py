"""CIFAR-10 (Krizhevsky, 2009) in its binary layout, split as published (method.md, "Data as published")."""

import pathlib
import shutil
import tarfile
import tempfile

import numpy as np

from jax_brcd.data.dataset import ImageDataset, Images, one_hot
from jax_brcd.data.download import download
from jax_brcd.errors import InputError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE, NAMES_FILE = "test_batch.bin", "batches.meta.txt"
FILES = (*TRAIN_FILES, TEST_FILE, NAMES_FILE)
CLASSES, SIDE = 10, 32
RECORD_BYTES = 1 + 3 * SIDE * SIDE
RECORDS_PER_FILE = 10_000
TRAIN_PER_CLASS = 500


def load(folder: pathlib.Path, *, train_images: str, seed: int) -> ImageDataset:
    """The published split: 500 random images a class train, the 50,000 training images are the database, the test images are
    shuffled and halved into validation and test queries.

    Args:
        folder: holds `cifar-10-batches-bin`, or is that folder; downloaded into it when absent.
        train_images: "published" for the 5,000, "all" for the whole database. seed: of the drawing and the shuffle.

    Raises:
        InputError: offline and absent, truncated, or of another data set.
    """
    place = find(folder)
    names = tuple((place / NAMES_FILE).read_text().split())
    if len(names) != CLASSES:
        raise InputError(f"{place / NAMES_FILE}: {len(names)} class names instead of {CLASSES}; "
                         "unpack the binary version of CIFAR-10 again")
    parts = [read_file(place / name) for name in TRAIN_FILES]
    database = Images(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    queries = Images(*read_file(place / TEST_FILE))
    draw = np.random.default_rng(seed)
    train = database if train_images == "all" else database.take(draw_per_class(database.labels, TRAIN_PER_CLASS, draw))
    shuffled = draw.permutation(len(queries))
    half = len(queries) // 2
    return ImageDataset(
        name="cifar10", split="published", train=train, database=database,
        validation=queries.take(shuffled[:half]), test=queries.take(shuffled[half:]),
        class_names=names, flip=True, default_k=1000,
    )


def draw_per_class(labels: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Positions of `count` random images of each class, in ascending order."""
    drawn = [draw.choice(np.flatnonzero(labels[:, number]), count, replace=False) for number in range(labels.shape[1])]
    return np.sort(np.concatenate(drawn))


def read_file(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) and one-hot labels (n, 10) of one binary file.

    Raises:
        InputError: for a file that does not hold 10,000 records of 1 + 3072 bytes with labels 0 to 9.
    """
    mend = "put the file of CIFAR-10's binary version there"
    size = path.stat().st_size
    if size != RECORDS_PER_FILE * RECORD_BYTES:
        raise InputError(f"{path}: {size} bytes instead of {RECORDS_PER_FILE * RECORD_BYTES}, so it is truncated "
                         f"or of another data set; {mend}")
    records = np.fromfile(path, np.uint8).reshape(-1, RECORD_BYTES)
    labels = records[:, 0]
    if labels.max() >= CLASSES or len(np.unique(labels)) < CLASSES:
        raise InputError(f"{path}: its labels are not CIFAR-10's classes 0 to 9; {mend}")
    images = records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), one_hot(labels, CLASSES)


def find(folder: pathlib.Path) -> pathlib.Path:
    """The folder of the binary files, which is downloaded where nothing of it is there."""
    for place in (folder / FOLDER, folder):
        missing = [name for name in FILES if not (place / name).is_file()]
        if not missing:
            return place
        if len(missing) < len(FILES):
            raise InputError(f"{place}: {', '.join(missing)} missing; unpack {URL} into {folder}")
    fetch(folder)
    return folder / FOLDER


def fetch(folder: pathlib.Path) -> None:
    """Downloads and unpacks the archive; the folder appears only when all its files are there."""
    archive = folder / URL.rsplit("/", 1)[-1]
    if not archive.exists():
        download(URL, archive, algorithm="md5", checksum=MD5)
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}.", dir=folder) as temporary:
        unpacked = pathlib.Path(temporary) / FOLDER
        unpacked.mkdir()
        try:
            with tarfile.open(archive) as tar:
                for name in FILES:
                    with tar.extractfile(f"{FOLDER}/{name}") as member, open(unpacked / name, "wb") as file:
                        shutil.copyfileobj(member, file)
        except (tarfile.TarError, KeyError, EOFError) as error:
            raise InputError(f"{archive}: not CIFAR-10's binary archive ({error}); delete it and try again") from None
        unpacked.rename(folder / FOLDER)
    archive.unlink()
