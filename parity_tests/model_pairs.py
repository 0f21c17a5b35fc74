"""Pairs of a torchvision model and ours with the same random weights, for the model tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

from jax_brcd.models import (
    BACKBONES,
    Backbone,
    convnext,
    create_backbone,
    efficientnet,
    load_torchvision_state,
    mobilenet,
    resnet,
    vit,
)
from jax_brcd.models.adapt import adapted
from jax_brcd.models.convnext import ConvNeXt
from jax_brcd.models.initial import abstract
from jax_brcd.models.resnet import ResNet
from jax_brcd.models.transformer import PatchTransformer
from torch_ref.models import create_hash_model, set_head, train

# one layer of 24 or 32 has all their widths and head counts, and takes seconds
SHORTENED = ("vit_l_16", "vit_l_32", "vit_h_14")
# of each stage the first two blocks, of which the others are repetitions
SHORT_STAGES = ("efficientnet_v2_s", *(f"efficientnet_b{number}" for number in range(1, 8)), "resnet101", "resnet152")
# the families that torchvision has, and the variants of ours in its layout
TORCHVISION = [name for family in (vit, resnet, efficientnet, mobilenet, convnext) for name in family.VARIANTS]


def torch_model(name: str, bits: int = 1000, *, device: str = "cpu") -> nn.Module:
    """torchvision's model with a hash head, in evaluation mode; on the device "meta" it has shapes only."""
    with torch.device(device):
        return create_hash_model(name, bits).eval()


def without_head(model: nn.Module) -> nn.Module:
    """The model with its head replaced by nothing: it gives features."""
    set_head(model, nn.Identity())
    return model


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics at which activations keep their order of magnitude from layer to layer."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.random_(1, 1000, generator=draw)
            elif name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
                tensor.uniform_(0.5, 1.5, generator=draw)
                if name.endswith("bn3.weight"):
                    # small residual branches, as in trained networks: with large ones 50 blocks of batch statistics amplify
                    # rounding until PyTorch itself is 8e-4 from its own answer in float64
                    tensor.mul_(0.3)
            elif name.endswith("weight") and tensor.ndim > 1:
                tensor.normal_(0, tensor[0].numel() ** -0.5, generator=draw)
            else:
                tensor.normal_(0, 0.2, generator=draw)
    settle(model, draw)
    return model


@torch.no_grad()
def settle(model: nn.Module, draw: torch.Generator) -> None:
    """Puts the running statistics near those of random images, as in trained networks.

    With others the activations of a deep network soon hardly depend on the image, and a comparison would be of constants.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    train(model, whole=False)
    model(torch.randn((4, 3, 64, 64), generator=draw))
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn(norm.running_mean.shape, generator=draw)
        # not below their mean: channels that were nearly constant over these images would explode with others
        norm.running_var.clamp_(min=float(norm.running_var.mean()))
        norm.running_var *= 0.5 + torch.rand(norm.running_var.shape, generator=draw)


@functools.cache
def _abstract(name: str, dtype) -> Backbone:
    return abstract(lambda rngs: create_backbone(name, rngs=rngs, dtype=dtype))


def abstract_backbone(name: str, dtype=jnp.float32) -> Backbone:
    """Our backbone with shapes for weights: quick to make, and loading fills it."""
    return nnx.clone(_abstract(name, dtype))


def _shortened(build: functools.partial) -> functools.partial:
    """A family's builder with at most two blocks a stage, or one layer of a transformer."""
    first, second, *others = build.args if len(build.args) > 1 else (*build.args, None)
    if issubclass(build.func, PatchTransformer):
        return functools.partial(build.func, first, second, 1, *others[1:], **build.keywords)
    if build.func in (ResNet, ConvNeXt):
        return functools.partial(build.func, first, tuple(min(depth, 2) for depth in second), *others, **build.keywords)
    return functools.partial(build.func, [stage._replace(depth=min(stage.depth, 2)) for stage in first], **build.keywords)


@functools.cache
def _short(name: str) -> Backbone:
    build = BACKBONES[name].build
    build = _shortened(build) if isinstance(build, functools.partial) else build
    return abstract(lambda rngs: adapted(build(dtype=jnp.float32, rngs=rngs), name=name, image_size=0))


def short_backbone(name: str) -> Backbone:
    """Our backbone with shapes for weights and without most repetitions, of which the largest consist."""
    return nnx.clone(_short(name))


def few_pixels(backbone: Backbone, most: int) -> int:
    """A small size that a backbone takes: at most `most` pixels, or one patch."""
    if backbone.fixed_size:
        return backbone.image_size
    return max(most // backbone.patch_size, 1) * backbone.patch_size


def stages_of(model: nn.Module) -> list[tuple[dict[str, nn.Module] | nn.Sequential, str | int]]:
    """Where the stages of torchvision's ResNets and EfficientNets stand: in what, and under which name or number."""
    if hasattr(model, "features"):
        return [(model.features, number) for number in range(1, len(model.features) - 1)]
    return [(model._modules, f"layer{number}") for number in range(1, 5)]


def make_pair(name: str) -> tuple[nn.Module, Backbone]:
    """torchvision's headless model and ours, with the same random weights; of the largest not every repetition."""
    theirs = without_head(torch_model(name, device="meta"))
    ours = short_backbone(name) if name in (*SHORTENED, *SHORT_STAGES) else abstract_backbone(name)
    if name in SHORTENED:
        theirs.encoder.layers = theirs.encoder.layers[:1]
    if name in SHORT_STAGES:
        for stages, number in stages_of(theirs):
            stages[number] = stages[number][:2]
    theirs = randomise(theirs.to_empty(device="cpu"))
    return theirs, load_torchvision_state(ours, theirs.state_dict())


def random_images(count: int, size: int, seed: int = 0) -> jax.Array:
    """Images as after normalisation, float32 (count, size, size, 3)."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, size, size, 3)), jnp.float32)


def as_torch(images: jax.Array) -> torch.Tensor:
    """The same images in PyTorch's layout."""
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2)))


def as_numpy(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A state_dict as NumPy copies."""
    return {name: tensor.detach().numpy().copy() for name, tensor in state.items()}
