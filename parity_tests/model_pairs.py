"""Pairs of a torchvision model and ours with the same random weights, for the model tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchvision
from flax import nnx
from torch import nn
from torchvision.models import VisionTransformer
from torchvision.models.resnet import BasicBlock

from jax_brcd.models import Backbone, create_backbone, load_torchvision_state


class ResNet8(nn.Module):
    """He et al. 2016 section 4.2 with n = 1, from torchvision's blocks; a 1x1 convolution where a shortcut changes shape."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(BasicBlock(16, 16))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2, self.shortcut(16, 32)))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2, self.shortcut(32, 64)))
        self.fc = nn.Linear(64, 10)

    @staticmethod
    def shortcut(inputs, outputs):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images):
        x = torch.relu(self.bn1(self.conv1(images)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


OWN = {
    "resnet8": ResNet8,
    "vit_lite_7_4": functools.partial(VisionTransformer, 32, 4, 7, 4, 256, 512),
    "vit_lite_4_8": functools.partial(VisionTransformer, 32, 8, 4, 4, 128, 256),
}
HEADS = {"resnet": "fc", "vit": "heads"}
# one layer of 24 or 32 has all their widths and head counts, and takes seconds
SHORTENED = ("vit_l_16", "vit_l_32", "vit_h_14")


def head_name(name: str) -> str:
    """The attribute that torchvision's model of that name keeps its classifier in."""
    return next(head for family, head in HEADS.items() if name.startswith(family))


def torch_model(name: str, *, device: str = "cpu") -> nn.Module:
    """A model with its classifier, in evaluation mode; on the device "meta" it has shapes only."""
    with torch.device(device):
        return OWN.get(name, functools.partial(torchvision.models.get_model, name))().eval()


def without_head(model: nn.Module, name: str) -> nn.Module:
    """The model with its classifier replaced by nothing: it gives features."""
    setattr(model, head_name(name), nn.Identity())
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
    return model


@functools.cache
def _abstract(name: str, dtype) -> Backbone:
    return nnx.eval_shape(lambda: create_backbone(name, dtype=dtype))


def abstract_backbone(name: str, dtype=jnp.float32) -> Backbone:
    """Our backbone with shapes for weights: quick to make, and loading fills it."""
    return nnx.clone(_abstract(name, dtype))


def make_pair(name: str) -> tuple[nn.Module, Backbone]:
    """torchvision's headless model and ours, with the same random weights; the largest ViTs have one layer."""
    theirs, ours = without_head(torch_model(name, device="meta"), name), abstract_backbone(name)
    if name in SHORTENED:
        theirs.encoder.layers, ours.encoder.layers = theirs.encoder.layers[:1], nnx.List(ours.encoder.layers[:1])
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
