"""What a data set is to the rest: images and labels in the parts that the protocol names."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from jaxtyping import Int, UInt8

from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.progress import Progress, Say

Drawable = TypeVar("Drawable")  # images, or the lines that name them: what has `take`
RESIZED, CROPPED = 256, 224  # pixels, of the published evaluation view
PARTS = ("train", "database", "validation", "test", "pretraining")
EVERYTHING = "all"  # in place of the part's name, where all parts are drawn from the images of a whole data set


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the images of a part stand in what they were taken from, for tables with a row an image.

    Attributes:
        name: of what they were taken from: the part whose files they lie in, or EVERYTHING. count: images there, with those
            that could not be read. positions: of each image of the part. paths: of all images there; none where images have none.
    """

    name: str
    count: int
    positions: Int[np.ndarray, "images"]
    paths: tuple[str, ...] = ()

    @classmethod
    def whole(cls, name: str, count: int, paths: Iterable[str] = ()) -> "Place":
        """That of all images in their order."""
        return cls(name, count, np.arange(count), tuple(paths))

    def take(self, positions: np.ndarray) -> "Place":
        """That of the images at the given positions."""
        return dataclasses.replace(self, positions=self.positions[positions])


@dataclasses.dataclass(frozen=True)
class Images:
    """Images as uint8 RGB and their labels, one-hot or multi-hot; without classes where there are no labels.

    Images that would not fit into memory are memory-mapped: index them, a batch at a time.
    """

    images: UInt8[np.ndarray, "n height width 3"]
    labels: UInt8[np.ndarray, "n classes"]
    content: str = ""  # digest of `images` where whoever made them knows it, so that they need not be read again
    place: Place | None = None  # where each stands in what it was taken from, where that is known

    def __len__(self) -> int:
        return len(self.images)

    def take(self, positions: np.ndarray) -> "Images":
        """The images at the given positions, in that order."""
        return Images(self.images[positions], self.labels[positions], place=self.place and self.place.take(positions))


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """A data set split by a protocol. Training sees `train` without its labels; labels serve evaluation alone."""

    name: str
    split: str  # name of the protocol
    train: Images
    database: Images
    validation: Images  # queries that choose checkpoints
    test: Images  # queries that are reported
    class_names: tuple[str, ...]
    flip: bool  # whether a mirrored image is still one of its class
    default_k: int
    pretraining: Images | None = None  # labelled images that take no further part
    central_crop: bool = False  # evaluate the middle of an image (Resize(256), CenterCrop(224)) and not all of it
    notes: tuple[str, ...] = ()  # what a reader of the results must know
    squares: int | None = None  # pixels of the squares that its files were decoded to; None where images are as they came
    lists: tuple[tuple[str, str], ...] = ()  # name and digest of each list file that the parts were read from

    @property
    def labelled(self) -> bool:
        """Whether there are labels to evaluate by."""
        return self.test.labels.shape[1] > 0

    def evaluation_resize(self, size: int) -> int | None:
        """Pixels of an evaluated image's shorter side before its central `size` square is cut out; None where the whole image
        is resized to the square. The published 256 for 224, in proportion for other sizes."""
        return resized_for(size) if self.central_crop else None

    def digests(self) -> dict[str, str]:
        """A short digest of everything in the files that results depend on, by what it is: "images of train", "labels of
        database", and so on for each part, and "train.txt" for a list file.

        They tell of content and not of places, so a data set that was moved is still the same. Images that were decoded are
        as they were when their files were last written; a file replaced by one of the same size and time of change is not
        seen. Images held in memory are read once, which takes a second a GB.
        """
        from jax_brcd.runtime.digests import digest  # not above: it imports JAX

        parts = {name: part for name in PARTS if (part := getattr(self, name)) is not None}
        content: dict[tuple[int, str], str] = {}  # by identity: images that serve two parts are read once
        found = {}
        for name, part in parts.items():
            one = id(part.images), part.content
            if one not in content:
                content[one] = part.content or digest(part.images)
            found[f"images of {name}"], found[f"labels of {name}"] = content[one], digest(part.labels)
        return found | dict(self.lists)


@dataclasses.dataclass(frozen=True)
class Request:
    """What a data set is asked for. Each reads what concerns it."""

    folder: pathlib.Path  # where its files lie, or are to be put
    cache_dir: pathlib.Path  # where what is made of them may lie
    split: str
    train_images: str  # "published" for the subset that the protocol trains on, "all" for the whole database
    train_count: int | None  # how many of these train, drawn by the seed; None for all of them
    seed: int  # of every drawing and shuffle
    max_bad_images: int  # image files that may be missing or corrupt
    decode_workers: int | None  # processes that decode image files; None for as many as pay
    square_side: int  # pixels of the squares that image files become
    label_format: str | None  # how list files give labels; None where that is plain to see
    progress: Progress  # told how far decoding and downloads are
    say: Say  # told what a reader should know at once


def as_many_as_asked(part: Drawable, images: int, request: Request, name: str) -> Drawable:
    """The part that trains with as many of its `images` as are asked for, in their order.

    Raises:
        InputError: for more than there are.
    """
    count = request.train_count
    if count is None:
        return part
    if count > images:
        everything = ", or `train_images` all" if request.train_images == "all" else ""  # where the split has that choice
        raise InputError(f"{name} has {images} to train on; give that or less{everything}", field="train_images", value=count)
    return part.take(np.sort(np.random.default_rng((request.seed, count)).choice(images, count, replace=False)))


def resized_for(size: int) -> int:
    """Pixels of the shorter side of an image from which a `size` square is cut out: 256 for 224."""
    return round(size * RESIZED / CROPPED)


def square_side(*sizes: int) -> int:
    """Pixels of the squares that image files become for models that see `sizes`: the published 256, or what the largest needs."""
    return max([RESIZED, *map(resized_for, sizes)])


def one_hot(labels: np.ndarray, n_classes: int) -> UInt8[np.ndarray, "n classes"]:
    """One-hot rows of class numbers."""
    rows = np.zeros((len(labels), n_classes), np.uint8)
    rows[np.arange(len(labels)), labels] = 1
    return rows


def label_notes(parts: dict[str, Images]) -> Iterable[str]:
    """What a reader must know of the labels: images that have none, and queries that nothing in the database answers."""
    unlabelled = {name: int((part.labels.sum(axis=1) == 0).sum()) for name, part in parts.items() if part.labels.shape[1]}
    counts = ", ".join(f"{count:,} of {len(parts[name]):,} in {name}" for name, count in unlabelled.items() if count)
    if counts:
        yield f"Images without any label, which are relevant to nothing: {counts}."
    if not parts["database"].labels.shape[1]:
        return
    searched = parts["database"].labels.any(axis=0)
    for name in ("validation", "test"):
        labels = parts[name].labels
        alone = int((labels.any(axis=1) & ~(labels.astype(bool) & searched).any(axis=1)).sum())
        if alone:
            yield f"Queries of {name} that share no label with any image of the database, and so score 0: {alone:,}."
