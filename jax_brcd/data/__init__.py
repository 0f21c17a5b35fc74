"""Data sets by name; each is one file and one line here."""

import os
from collections.abc import Callable
from typing import NamedTuple

from jax_brcd.data import cifar10, digits, folders, lists
from jax_brcd.data.dataset import RESIZED, ImageDataset, Images, Request
from jax_brcd.data.embeddings import Embeddings, read_embeddings
from jax_brcd.data.listfile import LABEL_FORMATS
from jax_brcd.runtime.errors import UnknownName
from jax_brcd.runtime.files import as_path
from jax_brcd.runtime.progress import Progress, Say, silent, unheard
from jax_brcd.runtime.registry import Registry, unknown_name


class Source(NamedTuple):
    """A data set that can be loaded, and the names of its splits, the default first. `held_out` says whether it may hold
    labelled images out, to pretrain on."""

    load: Callable[[Request], ImageDataset]
    splits: tuple[str, ...] = ("published",)
    held_out: bool = True


DATASETS: Registry[Source] = Registry("data set")
DATASETS.register("digits")(Source(digits.load))
DATASETS.register("cifar10")(Source(cifar10.load, tuple(cifar10.SPLITS), held_out=False))
for name in (*lists.PUBLISHED_K, "list"):
    DATASETS.register(name)(Source(lists.loader(name), held_out=False))
DATASETS.register("folder")(Source(folders.load, held_out=False))

__all__ = ["DATASETS", "LABEL_FORMATS", "Embeddings", "ImageDataset", "Images", "load_dataset", "read_embeddings"]


def load_dataset(
    name: str, *, data_dir: os.PathLike | str | None = None, cache_dir: os.PathLike | str, split: str = "published",
    train_images: int | str = "published", seed: int = 0, max_bad_images: int = 0, decode_workers: int | None = None,
    label_format: str | None = None, square_side: int = RESIZED, progress: Progress | None = None,
    say: Say = unheard,
) -> ImageDataset:
    """The data set `name`, split by `seed`.

    Args:
        data_dir: its folder; None for a place below `cache_dir`. split: name of the protocol.
        train_images: "published", "all", or how many of all, drawn by `seed`. max_bad_images: image files that may be missing or
            corrupt and are skipped.
        decode_workers: processes that decode image files; None for as many as pay, 0 for this one.
        label_format: how list files give labels: "multi-hot" for a 0 or 1 a class, "class-numbers" for the number of the one
            class; None for multi-hot labels of several classes, as published.
        square_side: pixels of the squares that image files become (see dataset.square_side).
        progress: called with what is being done, how much of it is done and how much there is, while images are decoded and
            files downloaded. say: told where another process decodes the same images, and this one waits.

    Raises:
        InputError: for an unknown name or split, files that are absent, truncated or of another data set, and more training
            images than there are.
    """
    source = DATASETS[name]
    if split not in source.splits:
        raise UnknownName(unknown_name(f"split of {name}", split, source.splits))
    cache_dir = as_path(cache_dir)
    # Of a split that names its training images, so many of those
    drawn_from = "all" if split == source.splits[0] else "published"
    choice, count = (train_images, None) if isinstance(train_images, str) else (drawn_from, train_images)
    return source.load(Request(
        as_path(data_dir) if data_dir is not None else cache_dir / "data", cache_dir, split, choice, count, seed, max_bad_images,
        decode_workers, square_side, label_format, silent if progress is None else progress, say))
