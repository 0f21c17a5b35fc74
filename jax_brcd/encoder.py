"""HashEncoder: a hash model with its preprocessing, code length, role, code space and provenance, as one folder.

The folder holds `config.json` and `model.safetensors`, the weights in the layout that the model's family names (torchvision's,
with the hash head in place of the classifier).
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_brcd.models import HashModel, create_hash_model
from jax_brcd.models.layouts import LAYOUTS
from jax_brcd.models.variants import Preprocessing
from jax_brcd.models.weights import read_weights, write_weights
from jax_brcd.retrieval.packing import PackedCodes
from jax_brcd.runtime import devices
from jax_brcd.runtime.digests import digest
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, read_json, replacing_folder, write_json
from jax_brcd.runtime.progress import Progress, silent
from jax_brcd.views.fitting import canvas_side, fitted_views

CONFIG, WEIGHTS, FORMAT = "config.json", "model.safetensors", 1
FIELDS = ("format", "backbone", "layout", "dtype", "bits", "role", "space", "preprocessing", "provenance")
TEACHER, STUDENT = "teacher", "student"
BATCHES = (1, 8, 64)  # images that a compiled program encodes at once; the first is what every bit is decided by
CANVAS_BYTES = 2**26  # of a batch of canvases at most
# A logit within this part of the largest of its image is decided anew by the program of one image: with another number of images
# beside it XLA adds in another order, and a bit must not depend on that.
DOUBT = {"float32": 2e-4, "bfloat16": 5e-2}
LONGEST = 2**31  # (twice an image's pixels times those it is resized to) must be a 32-bit number

Image = Any  # a uint8 array (height, width, 3), a Pillow image, or the path of an image file


@dataclasses.dataclass(frozen=True, eq=False)
class HashEncoder:
    """What turns images into hash codes, and where it comes from.

    Attributes:
        model: maps normalised images to logits (batch, bits). backbone: the registered name of its backbone.
        preprocessing: what an image becomes before the model sees it.
        role: "teacher" or "student".
        space: the id of the code space. A teacher and the students taught to give its codes share it; codes of different
            spaces must not be compared.
        provenance: where it comes from: version, protocol, settings, digests and metrics of the run that made it.
    """

    model: HashModel
    backbone: str
    preprocessing: Preprocessing
    bits: int
    role: str
    space: str
    dtype: str = "float32"
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def encode(self, images: Any, *, progress: Progress = silent) -> PackedCodes:
        """Codes of images; a bit is 1 where the logit is > 0.

        The same pixels give the same bits alone, among others, from a file or from an array.

        Args:
            images: uint8 RGB, an array (n, height, width, 3) or one image (height, width, 3); a Pillow image; the path of an image
                file; or a sequence of such images of any sizes. Pillow images and files of other modes (gray, palette) become
                RGB; orientation tags are ignored, as where data sets are read. No image gives no code.
            progress: told how many images are encoded.

        Raises:
            InputError: for arrays that are no uint8 RGB images (floats in 0..1: `(255 * images).round().astype("uint8")`; gray
                ones: repeat their channel), and files that are no images.
        """
        items = as_items(images)
        packed = np.zeros((len(items), -(-self.bits // 8)), np.uint8)
        for positions, logits in self._batches(items, progress):
            packed[positions] = np.packbits(logits > 0, axis=1)
        return PackedCodes(packed, self.bits, self.space)

    def logits(self, images: Any, *, progress: Progress = silent) -> Float[np.ndarray, "images bits"]:
        """What the bits are the signs of, float32. Beyond the sign their last digits depend on how many images are encoded at once.

        Arguments and errors as `encode`.
        """
        items = as_items(images)
        found = np.zeros((len(items), self.bits), np.float32)
        for positions, logits in self._batches(items, progress):
            found[positions] = logits
        return found

    def save(self, folder: os.PathLike | str) -> pathlib.Path:
        """Writes the encoder's folder, whole or not at all, in place of an encoder that is there; returns its path.

        Raises:
            InputError: where something else lies there.
        """
        folder = as_path(folder)
        if folder.exists() and not (folder / CONFIG).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder}: holds something that is no encoder; name another folder")
        layout = self.model.backbone.layout
        with replacing_folder(folder) as temporary:
            write_weights(temporary / WEIGHTS, LAYOUTS[layout].state(self.model), model=self.backbone, bits=str(self.bits))
            write_json(temporary / CONFIG, {
                "format": FORMAT, "backbone": self.backbone, "layout": layout, "dtype": self.dtype, "bits": self.bits,
                "role": self.role, "space": self.space, "preprocessing": self.preprocessing.to_dict(),
                "provenance": dict(self.provenance)})
        return folder

    def with_provenance(self, **facts: Any) -> "HashEncoder":
        """The encoder with further facts of where it comes from."""
        return dataclasses.replace(self, provenance={**self.provenance, **facts})

    @functools.cached_property
    def _split(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(self.model)

    def _batches(self, items: Sequence[Image], progress: Progress) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        """Positions and logits (batch, bits) of all images, a batch at a time."""
        done = 0
        for batch in batches_of_canvases(items, self.preprocessing):
            yield batch.positions, self._batch_logits(batch)
            done += len(batch.positions)
            progress("encode images", done, len(items))

    def _batch_logits(self, batch: "CanvasBatch") -> Float[np.ndarray, "batch bits"]:
        p = self.preprocessing
        views = fitted_views(jnp.asarray(batch.canvases), jnp.asarray(batch.sizes), size=p.size, resize=p.resize, mean=p.mean, std=p.std)
        logits = np.array(self._forward(views))
        if len(views) > 1:
            bound = DOUBT[self.dtype] * np.abs(logits).max(axis=1, initial=0.0)
            for row in np.flatnonzero((np.abs(logits).min(axis=1, initial=np.inf) <= bound)[: len(batch.positions)]):
                logits[row] = np.asarray(self._forward(views[row : row + 1]))[0]
        return logits[: len(batch.positions)]

    def _forward(self, views: Float[Array, "batch size size 3"]) -> Float[Array, "batch bits"]:
        graph, state = self._split
        if len(views) == 1:
            return _logits(graph, state, views)[:1]
        graph, state = devices.replicate((graph, state))
        return _logits(graph, state, devices.spread(views))


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph: nnx.GraphDef, state: nnx.State, views: Float[Array, "batch size size 3"]) -> Float[Array, "batch bits"]:
    # In full float32 where a device would round its operands, so that bits are the same on all of them
    with jax.default_matmul_precision("highest"):
        return devices.gathered(nnx.merge(graph, state)(views))


@dataclasses.dataclass(frozen=True)
class CanvasBatch:
    """Images of about one size on canvases of the same size; those beyond the positions are padding."""

    positions: Sequence[int]
    canvases: np.ndarray  # uint8 (batch, side, side, 3)
    sizes: np.ndarray  # int32 (batch, 2)


def as_items(images: Any) -> Sequence[Image]:
    """What `HashEncoder.encode` is given as a sequence of single images.

    Raises:
        InputError: for an array that is no image or stack of images.
    """
    if isinstance(images, jax.Array):
        images = np.asarray(images)
    if isinstance(images, np.ndarray):
        if images.ndim == 4 or (images.ndim == 1 and len(images) == 0):
            if len(images):
                check_pixels(images[0])
            return images
        check_pixels(images)
        return images[None]
    if isinstance(images, (str, os.PathLike)) or hasattr(images, "convert"):
        return [images]
    if not isinstance(images, Iterable):
        raise InputError(f"{type(images).__name__} is no image and no sequence of images")
    return images if isinstance(images, Sequence) else list(images)


def check_pixels(image: np.ndarray) -> None:
    """Raises InputError for anything but uint8 RGB (height, width, 3), saying how to convert it."""
    shown = f"{image.dtype} {image.shape}"
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        raise InputError(f"gray image {shown}: three channels are needed; repeat it: np.repeat(image.reshape(*image.shape[:2], 1), 3, 2)")
    if image.ndim == 3 and image.shape[2] == 4:
        raise InputError(f"image {shown} with an alpha channel: RGB is needed; give image[..., :3]")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"array {shown}: no RGB image (height, width, 3) or stack of them (n, height, width, 3)")
    if image.dtype != np.uint8:
        raise InputError(f"image {shown}: uint8 pixels in 0..255 are needed; of floats in 0..1 give (255 * images).round()."
                         "astype('uint8')")


def read_item(image: Image) -> np.ndarray:
    """An image's pixels, uint8 (height, width, 3).

    Raises:
        InputError: for what is no image.
    """
    if isinstance(image, jax.Array):
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        check_pixels(image)
        return image
    if isinstance(image, (str, os.PathLike)) or hasattr(image, "convert"):
        from jax_brcd.data.reading import read_image

        return read_image(as_path(image) if isinstance(image, (str, os.PathLike)) else image)
    raise InputError(f"{type(image).__name__} is no image; give a uint8 array (height, width, 3), a Pillow image or the path of a file")


def batches_of_canvases(items: Sequence[Image], preprocessing: Preprocessing) -> Iterator[CanvasBatch]:
    """All images in batches of one canvas size each, read a few ahead."""
    waiting: dict[int, list[tuple[int, np.ndarray]]] = {}
    for position, pixels in enumerate(_read_ahead(items)):
        _check_size(pixels, preprocessing)
        side = canvas_side(*pixels.shape[:2])
        waiting.setdefault(side, []).append((position, pixels))
        if len(waiting[side]) == _most(side):
            yield _on_canvases(waiting.pop(side), side)
    for side, rest in waiting.items():
        yield _on_canvases(rest, side)


def _most(side: int) -> int:
    """Images of a batch of such canvases: as many as memory allows."""
    return next(size for size in reversed(BATCHES) if size * side * side * 3 <= CANVAS_BYTES or size == BATCHES[0])


def _on_canvases(images: list[tuple[int, np.ndarray]], side: int) -> CanvasBatch:
    count = len(images)
    size = next(size for size in BATCHES if size >= count)
    size = size if size == 1 else devices.whole_size(size)
    canvases, sizes = np.zeros((size, side, side, 3), np.uint8), np.ones((size, 2), np.int32)
    for row, (_, pixels) in enumerate(images):
        height, width = pixels.shape[:2]
        canvases[row, :height, :width], sizes[row] = pixels, (height, width)
    return CanvasBatch([position for position, _ in images], canvases, sizes)


def _check_size(pixels: np.ndarray, preprocessing: Preprocessing) -> None:
    longer, shorter = max(pixels.shape[:2]), min(pixels.shape[:2])
    target = preprocessing.size if preprocessing.resize is None else preprocessing.resize * longer // shorter
    if (2 * longer + 1) * target >= LONGEST:
        raise InputError(f"an image of {pixels.shape[1]} x {pixels.shape[0]} pixels is too elongated; cut it, or make it smaller")


def _read_ahead(items: Sequence[Image]) -> Iterator[np.ndarray]:
    """Pixels of each image in order. Files are decoded by threads, as many as there are cores, a few images ahead."""
    if isinstance(items, np.ndarray) or not any(isinstance(item, (str, os.PathLike)) for item in items):
        yield from map(read_item, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        ahead = collections.deque(pool.submit(read_item, item) for item in items[: 8 * threads])
        for number in range(len(items)):
            pixels = ahead.popleft().result()
            if number + 8 * threads < len(items):
                ahead.append(pool.submit(read_item, items[number + 8 * threads]))
            yield pixels


def space_of(model: HashModel, backbone: str, preprocessing: Preprocessing) -> str:
    """The id of the code space that a model's own codes are in: its name and a digest of its weights and preprocessing."""
    state = LAYOUTS[model.backbone.layout].state(model)
    parts = [part for name in sorted(state) for part in (name, state[name])]
    return f"{backbone}-{digest('space', json.dumps(preprocessing.to_dict(), sort_keys=True), *parts)}"


def create_encoder(
    model: HashModel, backbone: str, preprocessing: Preprocessing, *, bits: int, role: str, space: str | None = None,
    dtype: str = "float32", provenance: Mapping[str, Any] | None = None,
) -> HashEncoder:
    """An encoder; without a `space` its codes are in one of their own."""
    return HashEncoder(model, backbone, preprocessing, bits, role, space or space_of(model, backbone, preprocessing), dtype,
                       provenance or {})


def read_config(folder: os.PathLike | str) -> dict[str, Any]:
    """What an encoder's folder says of it.

    Raises:
        InputError: for a folder that is absent or no encoder's, or of a newer format.
    """
    path = as_path(folder) / CONFIG
    if not path.is_file():
        raise InputError(f"{as_path(folder)}: no encoder's folder ({CONFIG} and {WEIGHTS}); give one that a run or `save` wrote, such "
                         "as runs/NAME/student_asymmetric")
    try:
        config = read_json(path)
        absent = [name for name in FIELDS if name not in config]
        if absent:
            raise InputError(f"{path}: says nothing of {', '.join(absent)}, so it is no encoder's; give an encoder's folder")
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: broken ({error}); save the encoder again") from None
    if config["format"] > FORMAT:
        raise InputError(f"{path}: written by a newer jax_brcd; update this one")
    return config


def load(folder: os.PathLike | str) -> HashEncoder:
    """The encoder that a folder holds.

    Raises:
        InputError: for a folder that is absent or no encoder's, of a newer format, or whose weights do not fit.
    """
    config = read_config(folder)
    model = nnx.eval_shape(lambda: create_hash_model(config["backbone"], config["bits"], dtype=jnp.dtype(config["dtype"])))
    LAYOUTS[config["layout"]].load(model, read_weights(as_path(folder) / WEIGHTS))
    return HashEncoder(model, config["backbone"], Preprocessing.from_dict(config["preprocessing"]), config["bits"], config["role"],
                       config["space"], config["dtype"], config["provenance"])
