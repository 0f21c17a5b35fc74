"""Training images that do not fit the device: the rows of each step travel with it, the next ones read while it computes."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from jax_brcd.runtime import devices
from jax_brcd.views.batches import Batches

Tree = Any
STEPS_AHEAD = 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepImages:
    """The images of one step, indexed by their positions in the training set as if all of it were there.

    Without fields it holds the place of the images of a step that has not begun.
    """

    pixels: UInt8[Array, "rows height width 3"] | None = None
    positions: Int[Array, "rows"] | None = None

    def __getitem__(self, indices: Int[Array, "batch"]) -> UInt8[Array, "batch height width 3"]:
        """The images at positions that are among this step's; any of them for another position, which only padding has."""
        return self.pixels[jnp.argmax(indices[:, None] == self.positions, axis=1)]


@dataclasses.dataclass(frozen=True)
class Stream:
    """The images of a stage, on the host or memory-mapped; at most a few steps of them are in memory at once."""

    images: UInt8[np.ndarray, "images height width 3"]

    def steps(self, batches: Batches, first: int) -> Iterator[StepImages]:
        """The images of each step of an epoch from number `first` on. What a step gets depends on its batch alone."""

        import grain

        def gather(step: int) -> tuple[np.ndarray, np.ndarray]:
            return self.images[batches.indices[step]], batches.indices[step]

        steps = grain.MapDataset.range(first, len(batches.indices)).map(gather)
        iterator = iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=STEPS_AHEAD, prefetch_buffer_size=STEPS_AHEAD)))
        try:
            for step in iterator:
                yield StepImages(*(jax.device_put(step) if devices.count() == 1 else devices.replicate(step)))
        finally:
            iterator.close()


def with_images(constants: Tree, images: StepImages) -> Tree:
    """A stage's constants with the images of a step in every place that is held for them."""

    def held(part: Any) -> bool:
        return isinstance(part, StepImages)

    return jax.tree.map(lambda part: images if held(part) else part, constants, is_leaf=held)
