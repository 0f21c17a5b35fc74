"""Kept features: what a frozen backbone gives for images and their views is encoded once and reused by every later run.

A folder of the cache is named by a digest of all that the features depend on, so it never has to be invalidated. Each
view is a file of its own, written whole, and of many images in pieces first, so an interrupted encoding goes on at the piece it
was at. A file ends in a digest of its features: what was cut or overwritten is encoded anew.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Shaped, UInt8

from jax_brcd.runtime import devices
from jax_brcd.runtime.digests import digest
from jax_brcd.runtime.files import as_path, atomic_path, is_passing, lock_beside, locked
from jax_brcd.runtime.precision import in_32_bits
from jax_brcd.runtime.progress import Progress, Say, silent, unheard
from jax_brcd.views.augmentation import ViewConfig, random_views
from jax_brcd.views.derivations import ITSELF, Derivation, view_keys
from jax_brcd.views.encoding import encoded, encoding_batch, streamed

PIECE = 1024  # images that an interrupted encoding loses at most
FORMAT = 1  # to be raised when the same settings come to mean other features


def weights_digest(module: nnx.Module) -> str:
    """A digest of every parameter and statistic of a model."""
    leaves = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))[0]
    return digest(*(item for path, leaf in leaves for item in (jax.tree_util.keystr(path), np.asarray(leaf))))


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Features of one backbone under `directory`; `name` and `dtype` only label what is encoded."""

    directory: os.PathLike | str
    name: str
    backbone: nnx.Module
    dtype: str
    progress: Progress = silent
    say: Say = unheard  # told of damage

    @functools.cached_property
    def _weights(self) -> str:
        return weights_digest(self.backbone)

    def _folder(self, kind: str, *made_of: object) -> pathlib.Path:
        return as_path(self.directory) / digest(FORMAT, kind, self.name, self._weights, self.dtype, *made_of)

    @in_32_bits
    def evaluation(
        self, images: UInt8[np.ndarray, "images height width 3"], *, size: int, resize: int | None = None, **others: Any
    ) -> np.ndarray:
        """Features of un-augmented images: float32 (images, features), memory-mapped.

        Args:
            size, resize: as in `evaluation_views`. others: `mean`, `std` and `interpolation` where they are not its defaults.
        """
        view = (size,) if resize is None else (size, resize)
        path = self._folder("evaluation", images, *view, *sorted(others.items())) / "images.npy"
        self._keep(path, len(images), np.float32, functools.partial(
            encoded, self.backbone, images, size=size, resize=resize, **others, description=f"{self.name} images",
            progress=self.progress))
        return np.load(path, mmap_mode="r", allow_pickle=False)

    @in_32_bits
    def views(
        self, images: UInt8[np.ndarray, "images height width 3"], count: int, *, key: Key[Array, ""], config: ViewConfig,
        derivation: Derivation = ITSELF, partners: Int[np.ndarray, "images neighbours"] | None = None,
    ) -> np.ndarray:
        """Features of the first `count` views of each image: bfloat16 (views, images, features).

        The backbone runs in evaluation mode.

        Args:
            derivation: encoded in place of the views themselves. partners: the images that each may be mixed with.
        """
        seed = np.asarray(jax.random.key_data(key))
        made = () if derivation == ITSELF else (derivation, partners)
        folder = self._folder("views", images, seed, config, *made)
        made_of = np.zeros((len(images), 0), np.int32) if partners is None else partners
        drawing = Drawing(key, config, derivation)
        return np.stack([self._view(folder, images, number, count, drawing, made_of) for number in range(count)])

    def _view(self, folder, images, number: int, count: int, drawing: "Drawing", partners: np.ndarray) -> np.ndarray:
        def batches(*, begin: int) -> Iterator[np.ndarray]:
            graph, state, key = devices.replicate((*nnx.split(self.backbone), drawing.key))
            everyone = np.arange(len(images), dtype=np.int32)
            sources = [np.asarray(source) for source in drawing.sources(everyone, number, partners)]

            def compute(rows):
                made_of = tuple(source[np.minimum(rows, len(images) - 1)] for source in sources)
                pixels = tuple(images[source] for source in made_of)
                return encode_views(graph, state, *devices.spread((pixels, made_of, rows)), np.int32(number), key,
                                    drawing.config, drawing.derivation)

            what = "view" if drawing.derivation == ITSELF else f"{drawing.derivation.name} of view"
            for features in streamed(compute, everyone, description=f"{self.name} {what} {number + 1}/{count}", begin=begin,
                                     progress=self.progress):
                yield features.astype(ml_dtypes.bfloat16).view(np.uint16)

        path = folder / f"view_{number:04d}.npy"
        self._keep(path, len(images), np.uint16, batches)
        return np.load(path, mmap_mode="r", allow_pickle=False).view(ml_dtypes.bfloat16)

    def _keep(self, path: pathlib.Path, rows: int, dtype: type, batches: Callable[..., Iterator[np.ndarray]]) -> None:
        """Makes a file of the features of so many images, unless it is there. Another run that wants it waits meanwhile.

        Args:
            batches: given `begin`, the features of each batch from that image on.
        """
        folder = path.with_suffix(".pieces")
        if self._has(path, rows, dtype):  # which needs no folder that may be written to
            if devices.is_first():
                shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed when they had been joined
            return
        waits = functools.partial(self.say, f"Another run makes {path}; this one waits for it.")
        with locked(lock_beside(path), waits) if devices.is_first() else contextlib.nullcontext():
            if self._has(path, rows, dtype):
                return
            if devices.is_first() and path.exists():
                self.say(f"{path}: damaged; its features are encoded anew.")
            size = encoding_batch(rows)
            pieces = Pieces(folder, rows, dtype, max(1, PIECE // size) * size)
            there = devices.agreed(pieces.there() if devices.is_first() else 0)
            begin = min(there * pieces.size, rows)
            if begin:
                self.say(f"{path}: goes on from image {begin:,} of {rows:,}.")
            left = in_pieces(batches(begin=begin), pieces.size) if there < pieces.count else ()
            for number, features in enumerate(left, there):
                if devices.is_first():
                    pieces.keep(number, features)
            if devices.is_first():
                pieces.join(path)
            devices.wait_for_all(str(path))

    def _has(self, path: pathlib.Path, rows: int, dtype: type) -> bool:
        """Whether a file holds the features, for all processes together."""
        return devices.agreed(devices.is_first() and is_whole(path, rows, dtype))


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Features on their way to a file: those of `size` images at a time, each a file of its own in a folder."""

    folder: pathlib.Path
    rows: int
    dtype: type
    size: int

    @property
    def count(self) -> int:
        """How many pieces there are to be; one without rows of no images."""
        return max(1, -(-self.rows // self.size))

    def there(self) -> int:
        """How many pieces are there, one after the other and whole."""
        for number in range(self.count):
            if not is_whole(self._path(number), min(self.size, self.rows - number * self.size), self.dtype):
                return number
        return self.count

    def keep(self, number: int, features: Shaped[np.ndarray, "images width"]) -> None:
        """Writes a piece."""
        with atomic_path(self._path(number)) as temporary:
            write_features(temporary, [features], features.shape, self.dtype)

    def join(self, path: pathlib.Path) -> None:
        """Makes one file of all pieces, and takes these away."""
        parts = (np.load(self._path(number), allow_pickle=False) for number in range(self.count))  # one in memory at a time
        first = next(parts)
        with atomic_path(path) as temporary:
            write_features(temporary, itertools.chain([first], parts), (self.rows, first.shape[1]), self.dtype)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> pathlib.Path:
        return self.folder / f"{number:06d}.npy"


def in_pieces(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Rows of batches, `size` together and at the end those that are left."""
    held = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= size:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def write_features(path: pathlib.Path, parts: Iterable[np.ndarray], shape: tuple[int, ...], dtype: type | np.dtype) -> None:
    """Writes the parts of an array as NumPy writes it whole, and behind it the digest that NumPy does not look at."""
    sha = hashlib.sha256()
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape})
        for part in parts:
            data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
            file.write(data)
            sha.update(data)
        file.write(sha.digest())


def is_whole(path: pathlib.Path, rows: int, dtype: type) -> bool:
    """Whether a file holds features of so many images, as they were written. Files of older versions have no digest."""
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
        if features.ndim != 2 or len(features) != rows or features.dtype != dtype or not features.flags.c_contiguous:
            return False
        with open(path, "rb") as file:
            file.seek(features.offset + features.nbytes)
            written = file.read()
        return written in (b"", _digest(features))
    except Exception as error:  # a damaged header makes NumPy raise almost anything
        if is_passing(error):
            raise
        return False


def _digest(features: np.ndarray) -> bytes:
    return hashlib.sha256(features.reshape(-1).view(np.uint8).data).digest()


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How views are drawn and what is made of them."""

    key: Key[Array, ""]
    config: ViewConfig
    derivation: Derivation

    def sources(self, indices: np.ndarray, number: int, partners: np.ndarray):
        """The images that view `number` of each image is made of."""
        numbers = jnp.full(indices.shape, number, jnp.int32)
        return self.derivation.sources(self.key, jnp.asarray(indices), numbers, jnp.asarray(partners))


@functools.partial(jax.jit, static_argnums=(0, 7, 8))
def encode_views(
    graph: nnx.GraphDef, state: nnx.State, images: tuple[UInt8[Array, "batch height width 3"], ...],
    sources: tuple[Int[Array, "batch"], ...], indices: Int[Array, "batch"], number: Int[Array, ""], key: Key[Array, ""],
    config: ViewConfig, derivation: Derivation,
) -> Float[Array, "batch features"]:
    """Features of what is derived of view `number` of each image, in evaluation mode.

    Args:
        images: of each source. sources, indices: the sources' and the images' places in the training set.
    """
    numbers = jnp.broadcast_to(number, indices.shape)
    drawn = tuple(random_views(view_keys(key, source, numbers), pixels, config)
                  for source, pixels in zip(sources, images, strict=True))
    return devices.gathered(nnx.merge(graph, state)(derivation.combine(drawn, key, indices, numbers), train=False))
