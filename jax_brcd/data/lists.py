"""Data sets as the hashing community shares them: three list files, one image a line, `path l1 ... lC` with labels of 0 or 1.

`train.txt`, `database.txt` and `test.txt` lie in the data set's folder and their paths are relative to it ("Data as published"
in docs/method.md; the lists of HashNet, Cao et al., ICCV 2017). How a line is read stands in listfile.py.
"""

import functools
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from jax_brcd.data.dataset import ImageDataset, Images, Request, as_many_as_asked, label_notes
from jax_brcd.data.listfile import LABEL_FORMATS, ListFile, read_list
from jax_brcd.data.repeats import Named, same_pixels
from jax_brcd.data.scanning import examples
from jax_brcd.data.store import BadImages, Listed, Squares, decoded
from jax_brcd.runtime.errors import InputError

TRAIN, DATABASE, TEST = "train.txt", "database.txt", "test.txt"
USUAL_K = 1000
# Ranks that mAP looks at: "Search and its measure" in docs/method.md; MIRFLICKR's k as in Luo et al., CIMON, IJCAI 2021
PUBLISHED_K = {"nus-wide": 5000, "coco": 5000, "mirflickr": 5000, "imagenet100": 1000}


def loader(name: str) -> Callable[[Request], ImageDataset]:
    """The function that loads the list files of a folder as the data set `name`, with its published k if it has one."""
    return functools.partial(load, name, PUBLISHED_K.get(name))


def load(name: str, published_k: int | None, request: Request) -> ImageDataset:
    """The images that the three lists name; the test list is shuffled and halved into validation and test queries.

    Args:
        published_k: ranks that mAP looks at where the lists are published ones; None for 1,000, or fewer of a smaller database.

    Raises:
        InputError: for a list that is absent, empty or wrong, with its line; for labels that may be meant in two ways; for
            images that cannot be read, if more than `request.max_bad_images`.
    """
    lists, class_names = with_labels({file: read_list(request.folder / file) for file in (TRAIN, DATABASE, TEST)}, request)
    _check_place(request.folder, lists)
    train, database, test = (part.called(pathlib.PurePath(file).stem) for file, part in lists.items())
    if len(test.images) < 2:
        raise InputError(f"{request.folder / TEST}: one image; at least two are needed, one to choose checkpoints by and one "
                         "to report on")
    everything = request.train_images == "all"
    shuffled = np.random.default_rng(request.seed).permutation(len(test.images))
    half = len(shuffled) // 2
    parts, notes = decode_parts(
        {"train": database if everything else train, "database": database, "validation": test.take(shuffled[:half]),
         "test": test.take(shuffled[half:])}, request)
    return ImageDataset(
        name=name, split="published lists, test list halved" if published_k else "lists, test list halved", **parts,
        class_names=class_names, flip=True, default_k=published_k or min(USUAL_K, len(parts["database"])), central_crop=True,
        squares=request.square_side,
        notes=(*label_notes(parts), *_repeats(lists), *notes),
        lists=tuple((file, part.digest()) for file, part in lists.items() if file != TRAIN or not everything))


def with_labels(files: dict[str, ListFile], request: Request) -> tuple[dict[str, ListFile], tuple[str, ...]]:
    """The lists with the labels that their words mean in place of these, and the names of the classes.

    Raises:
        InputError: where lists differ in their number of classes, and where one label an image may be meant in two ways.
    """
    if request.label_format is None and files[TRAIN].columns == 1:
        raise InputError(
            f"{request.folder / TRAIN}: one label an image, which may be the number of its class or a 0 or 1 for the only "
            "class; say `label_format` class-numbers or multi-hot, or write a 0 or 1 for each class: a.jpg 1 0")
    lists, class_names = LABEL_FORMATS[request.label_format or "multi-hot"](files)
    for file, part in lists.items():
        if part.columns != lists[TRAIN].columns:
            raise InputError(f"{request.folder / file}: {part.columns} labels an image, but {TRAIN} has "
                             f"{lists[TRAIN].columns}; all three lists need the same classes")
    return {file: part._replace(words=None) for file, part in lists.items()}, class_names  # far larger than labels


def _check_place(folder: pathlib.Path, lists: dict[str, ListFile]) -> None:
    """Refuses lists whose paths begin where someone else's program ran, as published ones do, if leaving that out finds
    files."""
    for part in lists.values():
        image, names = part.images[0], pathlib.PurePosixPath(part.images[0].path).parts
        if (folder / image.path).exists():
            continue
        for start in range(1, len(names)):
            if folder.joinpath(*names[start:]).exists():
                raise InputError(f"{image.where}: {image.path}: no such file, but {'/'.join(names[start:])} is there; paths "
                                 f"are relative to the folder of the list, so take {'/'.join(names[:start])}/ away from the "
                                 "lines")


def decode_parts(lists: dict[str, ListFile], request: Request) -> tuple[dict[str, Images], tuple[str, ...]]:
    """The images of every part, decoded and memory-mapped, without the bad ones, and what a reader must know of them. A part
    that stands twice is decoded once.

    Raises:
        InputError: for images that cannot be read, if more than `request.max_bad_images`, and for more to train on than there are.
    """
    train = as_many_as_asked(lists["train"], len(lists["train"].images), request, str(request.folder))
    lists = {**lists, "train": train}
    bad, parts, named, damaged = BadImages(request.max_bad_images), {}, {}, []
    known: dict[tuple[Listed, ...], Squares] = {}  # so that what reads a whole array finds that it has read it
    for name, part in lists.items():
        images = tuple(part.images)
        squares = known[images] = known.get(images) or decoded(
            request.folder, images, request.cache_dir / "images", bad=bad, workers=request.decode_workers, description=name,
            side=request.square_side, progress=request.progress, say=request.say)
        labels = part.labels if len(squares.kept) == len(images) else part.labels[squares.kept]
        drawn = name == "train" and request.train_count is not None  # which have the digest of images drawn in memory
        parts[name] = Images(squares.images, labels, "" if drawn else squares.content,
                             part.place and part.place.take(squares.kept))
        named[name] = Named([part.images[position].path for position in squares.kept], labels, squares.digests)
        damaged += [f"{squares.damaged} was damaged, and its images are decoded anew."] if squares.damaged else []
    fewer = _fewer(len(parts["train"]), request.train_count)
    return parts, (*bad.notes(), *fewer, *same_pixels(named), *dict.fromkeys(damaged))


def _fewer(images: int, asked: int | None) -> Iterable[str]:
    """Says where fewer images train than were asked for."""
    if asked is not None and images < asked:
        yield f"Of {asked:,} images that were drawn to train, {asked - images:,} could not be read: {images:,} train."


def _repeats(lists: dict[str, ListFile]) -> Iterable[str]:
    """Images that a list names more than once, and queries that are searched for among themselves."""
    for file, part in lists.items():
        numbers: dict[str, list[int]] = {}
        for number, image in enumerate(part.images):
            numbers.setdefault(image.path, []).append(number)
        again = {path: found for path, found in numbers.items() if len(found) > 1}
        if again:
            other = sum(bool((part.labels[found] != part.labels[found[0]]).any()) for found in again.values())
            labels = f", {other:,} of them with other labels each time" if other else ""
            yield f"{file} names {len(again):,} images more than once{labels}: {examples(list(again))}."
    shared = {image.path for image in lists[DATABASE].images} & {image.path for image in lists[TEST].images}
    if shared:
        yield f"{len(shared):,} queries of {TEST} are in {DATABASE} too, so that each finds itself: {examples(sorted(shared))}."
