"""Kept features: what a frozen backbone gives for images and their views is encoded once and reused by every later run.

A folder of the cache is named by a digest of all that the features depend on, so it never has to be invalidated. Each
view is a file of its own, written whole, so an interrupted encoding goes on at the view it was at. A file ends in a digest of
its features: what was cut or overwritten is encoded anew.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8

from jax_brcd.runtime import devices
from jax_brcd.runtime.digests import digest
from jax_brcd.runtime.files import as_path, atomic_path
from jax_brcd.runtime.precision import in_32_bits
from jax_brcd.runtime.progress import Progress, Say, silent, unheard
from jax_brcd.views.augmentation import ViewConfig, random_views
from jax_brcd.views.derivations import ITSELF, Derivation, view_keys
from jax_brcd.views.encoding import encode, stream

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
        if self._lacks(path, len(images), np.float32):
            self._save(path, encode(self.backbone, images, size=size, resize=resize, **others,
                                    description=f"{self.name} images", progress=self.progress))
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
        path = folder / f"view_{number:04d}.npy"
        if self._lacks(path, len(images), np.uint16):
            graph, state, key = devices.replicate((*nnx.split(self.backbone), drawing.key))
            everyone = np.arange(len(images), dtype=np.int32)
            sources = [np.asarray(source) for source in drawing.sources(everyone, number, partners)]

            def compute(rows):
                made_of = tuple(source[np.minimum(rows, len(images) - 1)] for source in sources)
                pixels = tuple(images[source] for source in made_of)
                return encode_views(graph, state, *devices.spread((pixels, made_of, rows)), np.int32(number), key,
                                    drawing.config, drawing.derivation)

            what = "view" if drawing.derivation == ITSELF else f"{drawing.derivation.name} of view"
            features = stream(compute, everyone, description=f"{self.name} {what} {number + 1}/{count}",
                              progress=self.progress)
            self._save(path, features.astype(ml_dtypes.bfloat16).view(np.uint16))
        return np.load(path, mmap_mode="r", allow_pickle=False).view(ml_dtypes.bfloat16)

    def _lacks(self, path: pathlib.Path, rows: int, dtype: type) -> bool:
        """Whether features are yet to be encoded, by all processes together."""
        there = devices.is_first() and path.exists()
        whole = there and is_whole(path, rows, dtype)
        if there and not whole:
            self.say(f"{path}: damaged; its features are encoded anew.")
        return not devices.agreed(whole)

    def _save(self, path: pathlib.Path, features: np.ndarray) -> None:
        if devices.is_first():
            with atomic_path(path) as temporary:
                write_features(temporary, features)
        devices.wait_for_all(str(path))


def write_features(path: pathlib.Path, features: np.ndarray) -> None:
    """Writes an array as NumPy does, and behind it the digest that NumPy does not look at."""
    features = np.ascontiguousarray(features)
    with open(path, "wb") as file:
        np.save(file, features, allow_pickle=False)
        file.write(_digest(features))


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
    except Exception:  # a damaged header makes NumPy raise almost anything
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
