"""Published views with parameters drawn for each image: images a second, from 32 and 256 pixels, to 32 and 224."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.results import Row, measure
from benchmarks.suite import Settings, Suite
from benchmarks.timing import Contender
from benchmarks.views import ViewedImages
from jax_brcd.runtime.workers import cores
from jax_brcd.settings.command_line import run_command
from jax_brcd.views.augmentation import ViewConfig, random_views
from torch_ref import augment as reference

OURS, WORKERS, THREADS, ONE = ("jax_brcd", "torchvision v2, workers", "torchvision v2, threads",
                               "torchvision v2, published style")


@dataclasses.dataclass(frozen=True)
class Size:
    """One case: square images of `source` pixels to views of `target`, `images` of them a call."""

    source: int
    target: int
    images: int
    worker_batch: int = 16  # images that a worker hands over at once

    @property
    def name(self) -> str:
        """What the results call it."""
        return f"{self.source} to {self.target} pixels"


QUICK = (Size(32, 32, 1024, 64), Size(32, 224, 128), Size(256, 224, 128))
FULL = (Size(32, 32, 4096, 64), Size(32, 224, 512), Size(256, 224, 512))


@contextlib.contextmanager
def contenders_of(size: Size) -> Iterator[list[Contender]]:
    """The contenders of a case; worker processes and threads end with the block."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (size.images, size.source, size.source, 3), dtype=np.uint8)
    tensors = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    view = reference.training_view(size.target, True)
    loader = DataLoader(ViewedImages(tensors, size.target), batch_size=size.worker_batch, num_workers=cores(),
                        persistent_workers=True, multiprocessing_context="spawn")
    pool = ThreadPoolExecutor(cores())
    with pool:
        yield [
            Contender(OURS, jax_call(images, size.target), compiled=True),
            Contender(WORKERS, lambda: [batch.shape for batch in loader], note="a DataLoader worker for each core"),
            Contender(THREADS, one_thread_each(lambda: torch.stack(list(pool.map(view, tensors))))),
            Contender(ONE, lambda: reference.random_views(tensors, view)),
        ]
    del loader  # ends the workers


def jax_call(images: np.ndarray, target: int) -> Callable[[], jax.Array]:
    """A call that gives views of images that lie on the device."""
    keys, on_device = jax.random.split(jax.random.key(0), len(images)), jnp.asarray(images)
    views = jax.jit(lambda keys, images: random_views(keys, images, ViewConfig(size=target)))
    return lambda: jax.block_until_ready(views(keys, on_device))


def one_thread_each(call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """`call` with PyTorch's operations on a thread each, as many views are under way at once."""
    def alone() -> torch.Tensor:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return call()
        finally:
            torch.set_num_threads(threads)

    return alone


def measure_augment(settings: Settings, sizes: tuple[Size, ...] | None = None) -> Iterator[Row]:
    """Every size in turn."""
    for size in sizes or (QUICK if settings.quick else FULL):
        with contenders_of(size) as contenders:
            yield from measure(size.name, contenders, items=size.images, unit="images",
                               samples=settings.samples, budget=settings.case_seconds)


SUITE = Suite("augment", __doc__, measure_augment)

if __name__ == "__main__":
    run_command(SUITE.main)
