"""The published views, an image at a time, by torchvision's transforms."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from jax_brcd.views.derivations import Derivation, Mixture, Rotation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ScaledBlur(v2.GaussianBlur):
    """The blur of a view that is rendered `unit` times larger than it is drawn for: of as large a variance in the picture."""

    def __init__(self, window: int, sigma: tuple[float, float], unit: float):
        super().__init__(window, sigma)
        self.window, self.unit = window, unit

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Blurs with the sigma that was drawn."""
        sides = [(place, math.exp(-0.5 * (place / params["sigma"][0]) ** 2)) for place in range(1, self.window // 2 + 1)]
        variance = self.unit**2 * 2 * sum(place**2 * side for place, side in sides) / (1 + 2 * sum(side for _, side in sides))
        if self.unit * (self.window // 2) > 1:
            reach = math.ceil(3 * self.unit * math.sqrt((self.window**2 - 1) / 12))
            size, sigma = 2 * min(reach, *(side - 1 for side in inpt.shape[-2:])) + 1, math.sqrt(variance)
        else:  # three weights, of which the outer are half the variance each
            size, sigma = 3, math.sqrt(-0.5 / math.log(variance / 2 / (1 - variance)))
        return v2.functional.gaussian_blur(inpt, [size, size], [sigma, sigma])


def blur_of(window: int, sigma: tuple[float, float], unit: float) -> v2.Transform:
    """torchvision's blur, or at another size than the one it is drawn for the scaled one."""
    return v2.GaussianBlur(window, sigma=sigma) if unit == 1 else ScaledBlur(window, sigma, unit)


def training_view(
    size: int, flip: bool, recipe: str = "brcd", *, mean=MEAN, std=STD, blur_unit: float = 1.0
) -> v2.Transform:
    """uint8 (3, H, W) -> float (3, size, size), normalised (docs/method.md, "Data as published", "CroVCA").

    What it draws from torch's generator does not depend on `size`. `blur_unit` is the size over that which it is drawn for.
    """
    operations = OPERATIONS[recipe](size, 0.5 if flip else 0.0, blur_unit)
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), *operations, v2.Normalize(mean, std)])


def published_operations(size: int, flip: float, blur_unit: float) -> list[v2.Transform]:
    """The views of BRCD."""
    return [
        v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True),
        v2.RandomHorizontalFlip(flip),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.7),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([blur_of(3, (0.1, 2.1), blur_unit)], p=0.5),
    ]


def crovca_operations(size: int, flip: float, blur_unit: float) -> list[v2.Transform]:
    """The views of CroVCA."""
    return [
        v2.RandomResizedCrop(size, scale=(0.4, 1.0), antialias=True),
        v2.RandomHorizontalFlip(flip),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.2)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([blur_of(9, (0.1, 2.0), blur_unit)], p=0.1),
        v2.RandomSolarize(0.5, p=0.1),
    ]


class Moved(v2.Transform):
    """A random crop of the image's size from the image amid zeros, an eighth of its side on each."""

    def make_params(self, flat_inputs: list) -> dict:
        """As torchvision's RandomCrop draws them, of images of any size."""
        height, width = flat_inputs[0].shape[-2:]
        most = round(height / 8), round(width / 8)
        return {"most": most, "top": int(torch.randint(2 * most[0] + 1, ())), "left": int(torch.randint(2 * most[1] + 1, ()))}

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Pads and crops."""
        (rows, columns), (height, width) = params["most"], inpt.shape[-2:]
        padded = v2.functional.pad(inpt, [columns, rows, columns, rows])
        return v2.functional.crop(padded, params["top"], params["left"], height, width)


def crop_flip_operations(size: int, flip: float, blur_unit: float) -> list[v2.Transform]:
    """The usual views of small images."""
    return [Moved(), v2.RandomHorizontalFlip(flip), v2.Resize((size, size), antialias=True)]


OPERATIONS = {"brcd": published_operations, "crovca": crovca_operations, "crop-flip": crop_flip_operations}


def evaluation_view(
    size: int, resize: int | None = None, *, mean=MEAN, std=STD, interpolation: str = "bilinear"
) -> v2.Transform:
    """uint8 (..., 3, H, W) -> float (..., 3, size, size), normalised: the whole image resized, or with `resize` the middle of
    it."""
    mode = v2.InterpolationMode(interpolation)
    fit = ([v2.Resize((size, size), mode, antialias=True)] if resize is None
           else [v2.Resize(resize, mode, antialias=True), v2.CenterCrop(size)])
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), *fit, v2.Normalize(mean, std)])


def random_views(images: Tensor, view: v2.Transform) -> Tensor:
    """One view of each image."""
    return torch.stack([view(image) for image in images])


def derive(
    derivation: Derivation, pixels: Tensor, indices: Tensor, draw: Callable[[Tensor], Tensor], partners: Tensor | None,
    seed: tuple[int, ...],
) -> Tensor:
    """What is derived of views: turned, or mixed with the view that `draw` gives of one of the image's partners."""
    if isinstance(derivation, Rotation):
        return torch.rot90(pixels, derivation.turns, dims=(2, 3))
    assert isinstance(derivation, Mixture), derivation
    random = np.random.default_rng((*seed, derivation.number))
    others = partners[indices, torch.from_numpy(random.integers(partners.shape[1], size=len(indices)))]
    weight = torch.from_numpy(random.random((len(indices), 1, 1, 1), np.float32))
    return weight * pixels + (1 - weight) * draw(others)


def nearest_others(codes: Tensor, count: int) -> Tensor:
    """Of each image the `count` others of the nearest codes (n, K), ties by position. (n, count)."""
    similarity = (codes @ codes.T).fill_diagonal_(-torch.inf)
    return similarity.argsort(dim=1, descending=True, stable=True)[:, : min(count, len(codes) - 1)]


def cosine_others(features: Tensor, count: int, among: Tensor | None = None) -> Tensor:
    """Of each image the `count` others, of all or of those at some positions, whose features (n, width) have the largest cosines
    with its own. (n, count)."""
    unit, own = nn.functional.normalize(features.double()), torch.arange(len(features))
    among = own if among is None else among
    nearest = [(unit[rows] @ unit[among].T).masked_fill(rows[:, None] == among, -torch.inf).topk(min(count, len(among) - 1)).indices
               for rows in own.split(1024)]
    return among[torch.cat(nearest)]
