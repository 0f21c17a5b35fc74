"""torchvision's models and those of `foundation`, with a hash head."""

import functools
import pathlib

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.ops import StochasticDepth

from jax_brcd.models.weights import download_weights, read_weight_file, read_weights
from jax_brcd.runtime.errors import InputError
from torch_ref import foundation

# The published students whose hash head stands on the 1000 logits of the whole classifier
ON_LOGITS = ("mobilenet_v2", *(f"efficientnet_b{number}" for number in range(8)))


class SmallResNet(nn.Module):
    """He et al. (2016), section 4.2, of 6n + 2 layers, named as torchvision names its ResNets."""

    def __init__(self, n: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._layer(n, 16, 16)
        self.layer2 = self._layer(n, 16, 32)
        self.layer3 = self._layer(n, 32, 64)
        self.fc = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _layer(n: int, inputs: int, outputs: int) -> nn.Module:
        stride, shortcut = 1, None
        if inputs != outputs:
            stride, shortcut = 2, nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))
        first = BasicBlock(inputs, outputs, stride, shortcut)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(n - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


def first_stages(name: str, count: int) -> nn.Module:
    """The first stages of one of torchvision's ResNets with basic blocks, under its names."""
    model = models.get_model(name)
    for number in range(count + 1, 5):
        setattr(model, f"layer{number}", nn.Identity())
    model.fc = nn.Linear(model.get_submodule(f"layer{count}")[-1].conv2.out_channels, 1000)
    return model


BUILDERS = {
    "resnet18_layer2": functools.partial(first_stages, "resnet18", 2),
    "vit_lite_7_4": functools.partial(models.VisionTransformer, image_size=32, patch_size=4, num_layers=7, num_heads=4,
                                      hidden_dim=256, mlp_dim=512),
    "vit_lite_4_8": functools.partial(models.VisionTransformer, image_size=32, patch_size=8, num_layers=4, num_heads=4,
                                      hidden_dim=128, mlp_dim=256),
    **{f"resnet{6 * n + 2}": functools.partial(SmallResNet, n) for n in (1, 3, 9)},
    **foundation.BUILDERS,
}


def head_name(model: nn.Module) -> str:
    """Where a hash model of `create_hash_model` keeps its head: where it says, at "heads", "fc" or the last place of
    "classifier"."""
    if hasattr(model, "head_place"):
        return model.head_place
    if hasattr(model, "classifier"):
        return f"classifier.{len(model.classifier) - 1}"
    return "heads" if hasattr(model, "heads") else "fc"


def get_head(model: nn.Module) -> nn.Module:
    """The head of a hash model."""
    return model.get_submodule(head_name(model))


def set_head(model: nn.Module, head: nn.Module) -> None:
    """Puts `head` in place of a hash model's head."""
    model.set_submodule(head_name(model), head)


def new_head(name: str, features: int, outputs: int, form: str | None = None) -> nn.Module:
    """An untrained head: of a `form` of HASHCODERS, or a linear layer; two with a ReLU between them where it stands on a
    classifier's logits."""
    if form is not None:
        return HASHCODERS[form](features, outputs)
    last = nn.Linear(features, outputs)
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), last) if name in ON_LOGITS else last


def hashcoder(*layers: nn.Module) -> nn.Sequential:
    """CroVCA's head: its linear layers begin as truncated normal numbers, their biases at 0."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def small_hashcoder(d: int, bits: int) -> nn.Sequential:
    """Features (B, d) to logits (B, bits)."""
    return hashcoder(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, bits), nn.BatchNorm1d(bits))


def large_hashcoder(d: int, bits: int) -> nn.Sequential:
    """Features (B, d) to logits (B, bits)."""
    h = max(2 * d, 2048)
    return hashcoder(nn.Linear(d, h), nn.GELU(), nn.Linear(h, h), nn.GELU(), nn.Linear(h, bits), nn.BatchNorm1d(bits))


HASHCODERS = {"hashcoder_small": small_hashcoder, "hashcoder_large": large_hashcoder}


def create_hash_model(name: str, bits: int, form: str | None = None, *, size: int | None = None) -> nn.Module:
    """A model with a hash head of `bits` outputs after its classifier, or in place of its last layer; it knows the head's
    `form`, None for its own. One of torchvision's ViTs is for images of `size` pixels; others take any."""
    told = {"image_size": size} if size is not None and name.startswith("vit_") else {}
    model = BUILDERS[name](**told) if name in BUILDERS else models.get_model(name, weights=None, **told)
    classifier = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    if name in ON_LOGITS:
        model.classifier.append(new_head(name, classifier.out_features, bits, form))
    else:
        set_head(model, new_head(name, classifier.in_features, bits, form))
    model.form = form
    return model


def train(model: nn.Module, *, whole: bool) -> None:
    """Training mode; a model that is not trained as a whole drops nothing, unlike in the published script."""
    for module in model.train().modules():
        if not whole and isinstance(module, (nn.Dropout, StochasticDepth)):
            module.eval()


def form_of(weights: str) -> str | None:
    """The form of the head that a file of weights says it has; None for the backbone's own, and where it says nothing."""
    path = pathlib.Path(weights).expanduser()
    return read_weight_file(path).metadata.get("head") if path.exists() else None


def load_weights(model: nn.Module, name: str, weights: str, cache_dir: pathlib.Path) -> bool:
    """Loads a weight file or torchvision's ImageNet weights; "random" loads nothing. Returns whether a hash head came with
    them: one of another form is left out, and so is ImageNet's classifier."""
    if weights == "random":
        return False
    path = download_weights(name, "imagenet", cache_dir / "weights") if weights == "imagenet" else weights
    tensors = {key: torch.from_numpy(value) for key, value in read_weights(path).items()}
    absent = tuple(f"{place}." for place, module in model.named_children() if isinstance(module, nn.Identity))
    tensors = {key: value for key, value in tensors.items() if not key.startswith(absent)}
    if isinstance(model, models.VisionTransformer) and "encoder.pos_embedding" in tensors:
        tensors = interpolate_embeddings(model.image_size, model.patch_size, tensors)
    prefix = head_name(model) + "."
    own = {key: value for key, value in model.state_dict().items() if key.startswith(prefix)}
    came = weights != "imagenet" and {key: value.shape for key, value in tensors.items() if key.startswith(prefix)} == {
        key: value.shape for key, value in own.items()}
    try:
        model.load_state_dict(tensors if came else {**{key: value for key, value in tensors.items() if not key.startswith(prefix)},
                                                    **own})
    except RuntimeError as error:  # PyTorch's, of a line for each tensor
        said = " ".join(str(error).partition(":")[2].split())
        raise InputError(f"{path}: does not fit {name} ({said[:200]}); give weights of it") from None
    return came


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """What the backbone gives to the hash layer."""
    head = get_head(model)
    set_head(model, nn.Identity())
    try:
        return model(images)
    finally:
        set_head(model, head)
