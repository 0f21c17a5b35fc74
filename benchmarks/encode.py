"""Encoding normalised images with a backbone and a hash head, in float32 and bfloat16: images a second."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import compiled, machine
from benchmarks.results import Row, Skipped, measure
from benchmarks.suite import Settings, Suite
from benchmarks.timing import Contender, interleaved
from jax_brcd.models import BACKBONES, HashModel, create_hash_model, load_torchvision_state
from jax_brcd.settings.command_line import run_command
from torch_ref.models import create_hash_model as create_torch_model

BITS = 64
SMALL, LARGE = 128, 16  # images a batch, at 32 pixels and at 224
FLOAT, HALF, PUBLISHED = "jax_brcd fp32", "jax_brcd bf16", "PyTorch fp32, published style"
RELATIVE_TOLERANCE = 2e-3  # of the largest logit, float32 through up to 150 layers in another order


@dataclasses.dataclass(frozen=True)
class Case:
    """A backbone at a size; resnet18 also serves images of 32 pixels."""

    backbone: str
    pixels: int
    images: int

    @property
    def name(self) -> str:
        """The backbone's name, with the size where that is not its own."""
        own = native_size(self.backbone) == self.pixels
        return self.backbone if own else f"{self.backbone} at {self.pixels} pixels"


def native_size(backbone: str) -> int:
    """Pixels of the square that a backbone is meant for."""
    return BACKBONES[backbone].preprocessing.size


QUICK = (Case("vit_lite_7_4", 32, SMALL), Case("resnet18", 32, SMALL), Case("vit_b_16", 224, 8),
         Case("resnet18", 224, LARGE))


def full() -> tuple[Case, ...]:
    """Every backbone of torchvision's families at its own size, and resnet18 at 32 pixels."""
    own = {name: native_size(name) for name in BACKBONES
           if nnx.eval_shape(lambda name=name: create_hash_model(name, BITS)).backbone.layout == "torchvision"}
    return (Case("resnet18", 32, SMALL),
            *(Case(name, pixels, SMALL if pixels == 32 else LARGE) for name, pixels in own.items()))


def jax_call(model: HashModel, images: np.ndarray) -> Callable[[], jax.Array]:
    """A call that gives logits of images that lie on the device."""
    graph, state = nnx.split(model)
    forward = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
    on_device = jnp.asarray(images)
    return lambda: jax.block_until_ready(forward(state, on_device))


def torch_call(
    model: Callable, images: torch.Tensor, *, half: bool = False, math_attention: bool = False
) -> Callable[[], torch.Tensor]:
    """The same of a PyTorch model. `half` computes in bfloat16 under autocast."""
    @torch.inference_mode()
    def call() -> torch.Tensor:
        with contextlib.ExitStack() as stack:
            if math_attention:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if half:
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            return model(images)

    return call


def measure_case(case: Case, settings: Settings) -> Iterator[Row | Skipped]:
    """All contenders of a case, on the same weights and images."""
    theirs = create_torch_model(case.backbone, BITS).eval()
    state = theirs.state_dict()
    draw = np.random.default_rng(0)
    images = draw.normal(size=(case.images, case.pixels, case.pixels, 3)).astype(np.float32)
    planes = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    channels_last = planes.contiguous(memory_format=torch.channels_last)
    contenders = [
        Contender(FLOAT, jax_call(hash_model(case.backbone, state, jnp.float32), images), compiled=True),
        Contender(PUBLISHED, torch_call(theirs, planes)),
    ]
    best = create_torch_model(case.backbone, BITS).eval()
    best.load_state_dict(state)
    best = best.to(memory_format=torch.channels_last)
    attention = {"math_attention": hasattr(best, "encoder") and math_is_faster(best, channels_last)}
    words = ", MATH attention" if attention["math_attention"] else ""
    reason = compiled.why_not()
    if reason is None:
        program = compiled.compile(best)
        contenders.append(Contender("PyTorch fp32, compiled", torch_call(program, channels_last, **attention), compiled=True,
                                    note=f"PyTorch compiled: channels_last, inference_mode{words}"))
    else:
        yield Skipped(f"{case.name}, compiled PyTorch", reason)
        program = best
    contenders.append(Contender(HALF, jax_call(hash_model(case.backbone, state, jnp.bfloat16), images), compiled=True))
    if settings.quick and not machine.has_bfloat16():
        yield Skipped(f"{case.name}, PyTorch bf16 autocast",
                      "this processor has no bfloat16 instructions; measured without --quick")
    else:
        contenders.append(Contender(f"PyTorch bf16 autocast{', compiled' if reason is None else ''}",
                                    torch_call(program, channels_last, half=True, **attention), compiled=reason is None))
    yield from measure(case.name, contenders, items=case.images, unit="images", samples=settings.samples,
                       budget=settings.case_seconds)
    check_agreement(contenders)


def hash_model(name: str, state: dict[str, Any], dtype: Any) -> HashModel:
    """jax_brcd's model with PyTorch's weights."""
    return load_torchvision_state(create_hash_model(name, BITS, dtype=dtype), state)


def math_is_faster(model: torch.nn.Module, images: torch.Tensor) -> bool:
    """Whether attention written out (SDPBackend.MATH) beats the fused kernel."""
    taken = interleaved([Contender("math", torch_call(model, images, math_attention=True)),
                         Contender("fused", torch_call(model, images))], samples=3, budget=3.0)
    return taken["math"].median < taken["fused"].median


def check_agreement(contenders: list[Contender]) -> None:
    """Raises ArithmeticError where float32 contenders do not give the same logits: their times would not compare."""
    ours, *others = (np.asarray(each.call()) for each in contenders if "fp32" in each.name)
    worst = max(np.abs(ours - other).max() for other in others) / np.abs(ours).max()
    if worst > RELATIVE_TOLERANCE:
        raise ArithmeticError(f"logits differ by {worst:.1e} of the largest")


def measure_encode(settings: Settings, cases: tuple[Case, ...] | None = None) -> Iterator[Row | Skipped]:
    """Every case in turn."""
    for case in cases or (QUICK if settings.quick else full()):
        yield from measure_case(case, settings)


SUITE = Suite("encode", __doc__, measure_encode)

if __name__ == "__main__":
    run_command(SUITE.main)
