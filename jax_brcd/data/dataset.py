"""What a data set is to the rest: images and labels in the parts that the protocol names."""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import UInt8

RESIZED, CROPPED = 256, 224  # pixels, of the published evaluation view


@dataclasses.dataclass(frozen=True)
class Images:
    """Images as uint8 RGB and their labels, one-hot or multi-hot; without classes where there are no labels.

    Images that would not fit into memory are memory-mapped: index them, a batch at a time.
    """

    images: UInt8[np.ndarray, "n height width 3"]
    labels: UInt8[np.ndarray, "n classes"]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, positions: np.ndarray) -> "Images":
        """The images at the given positions, in that order."""
        return Images(self.images[positions], self.labels[positions])


CLUSTER_RANGE = (2, 30)  # where nothing is published


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
    cluster_range: tuple[int, int] = CLUSTER_RANGE  # numbers of clusters of its codes that are worth trying, both included
    notes: tuple[str, ...] = ()  # what a reader of the results must know

    @property
    def labelled(self) -> bool:
        """Whether there are labels to evaluate by."""
        return self.test.labels.shape[1] > 0

    def digests(self):
        from jax_brcd.runtime.digests import digest
        return {f"{kind} of {part}": digest(getattr(getattr(self, part), kind)) for part in ("train","database","validation","test","pretraining") if getattr(self, part) is not None for kind in ("images","labels")}

    def evaluation_resize(self, size: int) -> int | None:
        """Pixels of an evaluated image's shorter side before its central `size` square is cut out; None where the whole image
        is resized to the square. The published 256 for 224, in proportion for other sizes."""
        return round(size * RESIZED / CROPPED) if self.central_crop else None


@dataclasses.dataclass(frozen=True)
class Request:
    """What a data set is asked for. Each reads what concerns it."""

    folder: pathlib.Path  # where its files lie, or are to be put
    cache_dir: pathlib.Path  # where what is made of them may lie
    split: str = "published"
    train_images: str = "published"  # "published" for the subset that the protocol trains on, "all" for the whole database
    seed: int = 0  # of every drawing and shuffle
    max_bad_images: int = 0  # image files that may be missing or corrupt
    decode_workers: int | None = None  # processes that decode image files; None for as many as pay


def one_hot(labels: np.ndarray, n_classes: int) -> UInt8[np.ndarray, "n classes"]:
    """One-hot rows of class numbers."""
    return np.eye(n_classes, dtype=np.uint8)[labels]
