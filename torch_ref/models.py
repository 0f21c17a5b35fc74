"""torchvision's models with a hash layer in place of the classifier."""

import functools
import pathlib

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from jax_brcd.models.weights import imagenet_weights, read_weights

IMAGE_SIZE = {"vit_lite_7_4": 32, "vit_lite_4_8": 32, "resnet8": 32}


class ResNet8(nn.Module):
    """He et al. (2016), section 4.2 with n = 1, named as torchvision names its ResNets."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(BasicBlock(16, 16))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2, self._shortcut(16, 32)))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2, self._shortcut(32, 64)))
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _shortcut(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


BUILDERS = {
    "vit_lite_7_4": functools.partial(models.VisionTransformer, image_size=32, patch_size=4, num_layers=7, num_heads=4,
                                      hidden_dim=256, mlp_dim=512),
    "vit_lite_4_8": functools.partial(models.VisionTransformer, image_size=32, patch_size=8, num_layers=4, num_heads=4,
                                      hidden_dim=128, mlp_dim=256),
    "resnet8": ResNet8,
}


def head_name(model: nn.Module) -> str:
    """Where a torchvision model keeps its classifier."""
    return "heads" if isinstance(model, models.VisionTransformer) else "fc"


def create_hash_model(name: str, bits: int) -> nn.Module:
    """A torchvision model whose classifier is a linear hash layer of `bits` outputs."""
    model = BUILDERS[name]() if name in BUILDERS else models.get_model(name, weights=None)
    features = model.hidden_dim if isinstance(model, models.VisionTransformer) else model.fc.in_features
    setattr(model, head_name(model), nn.Linear(features, bits))
    return model


def load_backbone(model: nn.Module, name: str, weights: str, cache_dir: pathlib.Path) -> None:
    """Loads all but the head from a weight file or torchvision's ImageNet weights; "random" loads nothing."""
    if weights == "random":
        return
    path = imagenet_weights(name, cache_dir / "weights") if weights == "imagenet" else pathlib.Path(weights).expanduser()
    head = head_name(model) + "."
    tensors = {key: torch.from_numpy(value) for key, value in read_weights(path).items() if not key.startswith(head)}
    own = {key: value for key, value in model.state_dict().items() if key.startswith(head)}
    model.load_state_dict({**tensors, **own})


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """What the backbone gives to the hash layer."""
    head = getattr(model, head_name(model))
    setattr(model, head_name(model), nn.Identity())
    try:
        return model(images)
    finally:
        setattr(model, head_name(model), head)
