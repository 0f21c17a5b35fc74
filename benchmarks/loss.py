"""The student's whole objective (CIBHash and BRCD) and its gradient: time and peak memory over batch sizes and bits."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import compiled, published
from benchmarks.machine import memory_bytes
from benchmarks.memory import peaks_in_children
from benchmarks.results import Row, Skipped, measure
from benchmarks.suite import Settings, Suite
from benchmarks.timing import Contender
from jax_brcd import losses
from jax_brcd.losses.codes import hash_codes
from jax_brcd.settings.command_line import run_command
from torch_ref import losses as reference_losses

CLUSTERS = 10
OURS, COMPILED, EAGER = "jax_brcd", "PyTorch, matrix products, compiled", "PyTorch, matrix products"
REFERENCE, PUBLISHED = "torch_ref", "PyTorch, published style"
# Arrays of every pair's products (N, N, K) that are alive at once, measured at 256 and 1,024 images of 64 bits
PAIRS_KEPT = 8
RELATIVE_TOLERANCE = 1e-4  # float32 sums over up to 8,192 rows in another order

Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is swept, where peak memory is measured too, and which of the contenders take part."""

    cases: tuple[tuple[int, int], ...]  # (images, bits)
    memory: tuple[tuple[int, int], ...]
    contenders: tuple[str, ...] = (OURS, COMPILED, EAGER, REFERENCE, PUBLISHED)
    published_up_to: int = 1024  # images at which the published style is still timed; its memory is measured beyond


# torch_ref holds every pair's products as the published style does; quick runs leave it out
QUICK = Sizes(cases=((64, 64), (1024, 64)), memory=((1024, 64),), contenders=(OURS, COMPILED, EAGER, PUBLISHED),
              published_up_to=256)
FULL = Sizes(cases=tuple((batch, bits) for bits in (16, 64, 256) for batch in (64, 256, 1024, 4096)),
             memory=tuple((batch, 64) for batch in (64, 256, 1024, 4096)))


def batch_of(images: int, bits: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as training sees it: noisy codes of ten clusters, their means, masks that keep most bits."""
    draw = np.random.default_rng(seed)
    means = draw.choice((-1.0, 1.0), (CLUSTERS, bits))
    clusters = draw.integers(CLUSTERS, size=images)

    def noisy() -> np.ndarray:
        return (means[clusters] * draw.choice((-1.0, 1.0), (images, bits), p=(0.2, 0.8))).astype(np.float32)

    return {"logits_i": (noisy() + draw.normal(size=(images, bits))).astype(np.float32),
            "logits_j": (noisy() + draw.normal(size=(images, bits))).astype(np.float32),
            "teacher_i": noisy(), "teacher_j": noisy(), "clusters": clusters.astype(np.int32),
            # Uneven, as means are: where two centers are as near, the frameworks may differ in which comes first
            "centers": (means * draw.uniform(0.4, 0.8, means.shape)).astype(np.float32),
            "mask": (draw.random((CLUSTERS, bits)) < 0.8).astype(np.float32)}


def objective(logits_i, logits_j, teacher_i, teacher_j, clusters, centers, mask) -> jax.Array:
    """The objective in jax_brcd."""
    return losses.cibhash_loss(logits_i, logits_j) + losses.brcd_distillation_loss(
        hash_codes(logits_i), teacher_i, teacher_j, clusters, centers, mask)


def reference_objective(logits_i, logits_j, teacher_i, teacher_j, clusters, centers, mask) -> torch.Tensor:
    """The objective in torch_ref."""
    return reference_losses.cibhash_loss(logits_i, logits_j) + reference_losses.brcd_distillation_loss(
        reference_losses.hash_codes(logits_i), teacher_i, teacher_j, clusters, centers, mask)


def jax_call(batch: dict[str, np.ndarray]) -> Call:
    """A call that gives the loss and both gradients, from arrays that lie on the device."""
    step = jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))
    arrays = [jnp.asarray(value) for value in batch.values()]
    return lambda: jax.block_until_ready(step(*arrays))


def torch_call(batch: dict[str, np.ndarray], function: Callable[..., torch.Tensor]) -> Call:
    """The same of a PyTorch objective."""
    tensors = [torch.from_numpy(value) for value in batch.values()]
    tensors[4] = tensors[4].long()
    inputs = [tensor.requires_grad_() for tensor in tensors[:2]]

    def call() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        value = function(*tensors)
        return value.detach(), torch.autograd.grad(value, inputs)

    return call


BUILDERS: dict[str, Callable[[dict[str, np.ndarray]], Call]] = {
    OURS: jax_call,
    COMPILED: lambda batch: torch_call(batch, compiled.compile(compiled.objective)),
    EAGER: lambda batch: torch_call(batch, compiled.objective),
    REFERENCE: lambda batch: torch_call(batch, reference_objective),
    PUBLISHED: lambda batch: torch_call(batch, published.objective),
}


def able(sizes: Sizes, images: int, bits: int) -> tuple[list[str], list[Skipped]]:
    """Who can take part at a size, and why the others cannot."""
    need = PAIRS_KEPT * (2 * images) ** 2 * bits * 4
    too_large = f"would need about {need / 2**30:.0f} GiB" if need > memory_bytes() / 2 else None
    reasons = {COMPILED: compiled.why_not(), REFERENCE: too_large, PUBLISHED: too_large}
    unable = {name: reasons[name] for name in sizes.contenders if reasons.get(name)}
    return ([name for name in sizes.contenders if name not in unable],
            [Skipped(f"{name}, {case_name(images, bits)}", reason) for name, reason in unable.items()])


def case_name(images: int, bits: int) -> str:
    """What a size is called."""
    return f"{images:,} images, {bits} bits"


def measure_loss(settings: Settings, sizes: Sizes | None = None) -> Iterator[Row | Skipped]:
    """Every size in turn."""
    sizes = sizes or (QUICK if settings.quick else FULL)
    for images, bits in sizes.cases:
        names, skipped = able(sizes, images, bits)
        yield from skipped
        batch = batch_of(images, bits)
        timed = [name for name in names if name != PUBLISHED or images <= sizes.published_up_to]
        calls = {name: BUILDERS[name](batch) for name in timed}
        contenders = [Contender(name, call, compiled=name in (OURS, COMPILED)) for name, call in calls.items()]
        measured = names if (images, bits) in sizes.memory else ()
        peaks, skipped = peaks_in_children("loss", measured, case_name(images, bits), images, bits)
        yield from skipped
        rows = measure(case_name(images, bits), contenders, unit="steps", peaks=peaks,
                       sweep=(f"{bits} bits", "images", images), samples=settings.samples, budget=settings.case_seconds)
        check_agreement(calls)
        yield from rows
        yield from (Row(rows[0].case, name, unit="steps", peak_bytes=peaks[name], sweep=rows[0].sweep)
                    for name in names if name not in timed and peaks.get(name))


def check_agreement(calls: dict[str, Call]) -> None:
    """Raises ArithmeticError where contenders do not compute the same loss: their times would not compare."""
    values = {name: float(call()[0]) for name, call in calls.items()}
    if not np.allclose(list(values.values()), values[OURS], rtol=RELATIVE_TOLERANCE):
        raise ArithmeticError(f"the contenders give different losses: {values}")


def memory_call(name: str, images: str, bits: str) -> Call:
    """What the child process that measures memory runs."""
    return BUILDERS[name](batch_of(int(images), int(bits)))


SUITE = Suite("loss", __doc__, measure_loss)

if __name__ == "__main__":
    run_command(SUITE.main)
