"""Data sets by name; each is one file and one line here."""

import pathlib
from collections.abc import Callable

from jax_brcd.data import cifar10, digits
from jax_brcd.data.dataset import ImageDataset, Images
from jax_brcd.registry import Registry

DATASETS: Registry[Callable[..., ImageDataset]] = Registry("data set")
DATASETS.register("digits")(digits.load)
DATASETS.register("cifar10")(cifar10.load)

__all__ = ["DATASETS", "ImageDataset", "Images", "load_dataset"]


def load_dataset(
    name: str, *, data_dir: pathlib.Path | None = None, cache_dir: pathlib.Path, train_images: str = "published",
    seed: int = 0,
) -> ImageDataset:
    """The data set `name`, split by `seed`.

    Args:
        data_dir: its folder; None for a place below `cache_dir`. train_images: "published" or "all".

    Raises:
        InputError: for an unknown name, or files that are absent, truncated or of another data set.
    """
    folder = data_dir.expanduser() if data_dir is not None else cache_dir / "data"
    return DATASETS[name](folder, train_images=train_images, seed=seed)
