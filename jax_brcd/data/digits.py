"""scikit-learn's handwritten digits (Alpaydin and Kaynak, 1998): 1,797 images of 8x8 that ship with it, so a first run needs no
files."""

import functools
import importlib.util
import pathlib

import numpy as np
from jaxtyping import Float, Int, UInt8

from jax_brcd.data.dataset import EVERYTHING, ImageDataset, Images, Place, Request, as_many_as_asked, one_hot

SIZE = 32
PRETRAINING, VALIDATION, TEST = 600, 200, 200
BRIGHTEST = 16.0


def load(request: Request) -> ImageDataset:
    """600 labelled digits for pretraining, 200 validation and 200 test queries, the other 797 train and are searched.

    The seed and how many train is all that is looked at: the data ships with scikit-learn.
    """
    every = read()
    order = np.random.default_rng(request.seed).permutation(len(every))
    ends = np.cumsum([PRETRAINING, VALIDATION, TEST])
    pretraining, validation, test, rest = (every.take(part) for part in np.split(order, ends))
    return ImageDataset(
        name="digits", split=f"{PRETRAINING} pretraining, {len(rest)} database, {VALIDATION} validation, {TEST} test",
        train=as_many_as_asked(rest, len(rest), request, "digits"), database=rest, validation=validation, test=test,
        pretraining=pretraining, class_names=tuple(map(str, range(10))), flip=False, default_k=100,
    )


@functools.cache
def read() -> Images:
    """All digits, read once in a process."""
    pixels, numbers = read_file()
    return Images(enlarge(pixels), one_hot(numbers, 10), place=Place.whole(EVERYTHING, len(pixels)))


def read_file() -> tuple[Float[np.ndarray, "n 8 8"], Int[np.ndarray, "n"]]:
    """Pixels and numbers as scikit-learn's `load_digits` gives them, from its file: importing scikit-learn takes as long as all
    that a run imports else."""
    package = importlib.util.find_spec("sklearn")
    path = pathlib.Path(*package.submodule_search_locations, "datasets", "data", "digits.csv.gz")
    if not path.exists():  # another version of scikit-learn may keep it elsewhere
        from sklearn.datasets import load_digits

        raw = load_digits()
        return raw.images, raw.target
    rows = np.loadtxt(path, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int)


def enlarge(images: Float[np.ndarray, "n 8 8"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Gray 8x8 digits of 0 to 16 as RGB at the small ViT's size, linearly interpolated."""
    from scipy.ndimage import zoom

    factor = SIZE // images.shape[1]
    smooth = zoom(images, (1, factor, factor), order=1, mode="nearest", grid_mode=True)
    gray = np.round(smooth * (255.0 / BRIGHTEST)).clip(0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)
