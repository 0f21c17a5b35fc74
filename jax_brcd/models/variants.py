"""What a backbone family offers by name: how to build it, what its images look like, where its weights lie."""

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from flax import nnx

from jax_brcd.hub.names import HubName
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.registry import Registry, unknown_name
from jax_brcd.views.augmentation import IMAGENET_MEAN, IMAGENET_STD, check_interpolation

TORCHVISION_URL = "https://download.pytorch.org/models/"
LARGEST = 4096  # pixels of a side that a model sees, or that an image is resized to: beyond it one view takes gigabytes
SMALLEST_STD, LARGEST_COLOUR = 1e-6, 1e6  # beyond these, normalised pixels are no longer numbers that a model can add
DIGEST = re.compile(r"-([0-9a-f]{8,64})$")  # what torchvision's file names end in


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image is made ready for a model: the fields are those of `evaluation_views`.

    Raises:
        InputError: for a size below 1, a resize below the size, sizes beyond LARGEST, a deviation that is not positive, numbers
            that are not three of a usable size, an unknown interpolation.
    """

    size: int  # pixels of the square that the model sees
    resize: int | None = None  # pixels of the shorter side before that square is cut out; None: the whole image is resized
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of red, green and blue in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"  # or "bicubic"; a training view is bilinear

    def __post_init__(self):
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three_numbers(name, getattr(self, name)))
        if not all(deviation >= SMALLEST_STD for deviation in self.std):
            raise InputError(f"pixels are divided by it; give numbers above 0, {SMALLEST_STD} or more", field="std",
                             value=self.std)
        if not _whole(self.size) or not 1 <= self.size <= LARGEST:
            raise InputError(f"not a number of pixels; give a whole number from 1 to {LARGEST}", field="size", value=self.size)
        if self.resize is not None and (not _whole(self.resize) or not self.size <= self.resize <= LARGEST):
            raise InputError(f"a square of {self.size} pixels cannot be cut from it; give {self.size} to {LARGEST}, or none",
                             field="resize", value=self.resize)
        check_interpolation(self.interpolation)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """What `to_dict` gave.

        Raises:
            InputError: for fields that are unknown, absent or out of bounds.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        foreign = [name for name in fields if name not in known]
        if foreign:
            raise InputError(f"{unknown_name('field of a preprocessing', str(foreign[0]), known)}")
        if "size" not in fields:
            raise InputError("a preprocessing needs `size`, the pixels of the square that the model sees")
        colours = {name: _three_numbers(name, fields[name]) for name in ("mean", "std") if name in fields}
        return cls(**{**fields, **colours})


def _whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _three_numbers(name: str, values: Any) -> tuple[float, float, float]:
    try:
        numbers = () if isinstance(values, str) else tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != 3 or not all(abs(number) <= LARGEST_COLOUR for number in numbers):
        raise InputError("give three numbers, of red, green and blue in [0, 1]", field=name, value=values)
    return numbers


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that can be fetched. `digest` is how the file's sha256 begins; `layout` is how its tensors are named."""

    url: str
    digest: str
    layout: str

    @property
    def file_name(self) -> str:
        """What the file is called."""
        return self.url.rsplit("/", 1)[-1]


@dataclasses.dataclass(frozen=True)
class HubWeights:
    """Weights on the main branch of a repository of the Hugging Face hub, user/name. `layout` is how tensors are named."""

    repository: str
    layout: str

    @property
    def name(self) -> HubName:
        """What the hub is asked for."""
        return HubName(self.repository)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One member of a backbone family.

    Attributes:
        build: called with `dtype` and `rngs`, as far as it takes them, for a backbone with random weights: a Backbone, or any
            nnx.Module that maps normalised images (batch, height, width, 3) to features (batch, width).
        preprocessing: what its images look like. weights: by tag, such as "imagenet".
        config: what the config.json of its weights in Hugging Face's layout says, where it says it: `model_type`, or a tuple of
            possible ones, and sizes, which of a model with towers are those of its `vision_config`.
    """

    build: Callable[..., nnx.Module]
    preprocessing: Preprocessing
    weights: Mapping[str, Weights | HubWeights] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("weights", "config"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))


def from_hub(
    repository: str, kinds: tuple[str, ...], *, layers: int, heads: int, width: int, patch: int, activation: str, epsilon: float,
    **others: int | float,
) -> dict[str, Any]:
    """What a variant says of its weights on the Hugging Face hub, under the tag "pretrained" and in the layout of `transformers`.

    Args:
        repository: user/name. kinds: what its config.json may call the model. activation, epsilon: of its MLPs and of its norms,
            which no shape of a tensor tells, as heads. others: further entries there.
    """
    config = {"model_type": kinds, "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": width,
              "patch_size": patch, "hidden_act": activation, "layer_norm_eps": epsilon, **others}
    return {"weights": {"pretrained": HubWeights(repository, "transformers")}, "config": config}


BACKBONES: Registry[Variant] = Registry("backbone")


def tags_of(name: str) -> Mapping[str, Weights | HubWeights]:
    """The weights of a backbone by tag; none of what is no backbone."""
    return BACKBONES[name].weights if name in BACKBONES else {}


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of backbones that a shell pattern matches, sorted: `list_backbones("resnet*")`."""
    return sorted(fnmatch.filter(BACKBONES, pattern))


def torchvision_weights(file: str) -> Weights:
    """Weights from torchvision's server, whose file names end in the beginning of their sha256."""
    return Weights(TORCHVISION_URL + file, DIGEST.search(file.rsplit(".", 1)[0])[1], "torchvision")


def imagenet(
    build: Callable[..., nnx.Module], file: str, size: int = 224, resize: int = 256, interpolation: str = "bilinear"
) -> Variant:
    """A variant with torchvision's ImageNet weights under the tag "imagenet"."""
    return Variant(build, Preprocessing(size, resize, interpolation=interpolation), {"imagenet": torchvision_weights(file)})
