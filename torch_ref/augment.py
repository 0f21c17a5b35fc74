"""The published views, an image at a time, by torchvision's transforms."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from jax_brcd.views.derivations import Derivation, Mixture, Rotation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def training_view(size: int, flip: bool, recipe: str = "brcd", *, mean=MEAN, std=STD) -> v2.Transform:
    """uint8 (3, H, W) -> float (3, size, size), normalised (docs/method.md, "Data as published", "CroVCA")."""
    return v2.Compose([
        v2.ToDtype(torch.float32, scale=True), *OPERATIONS[recipe](size, 0.5 if flip else 0.0), v2.Normalize(mean, std)])


def published_operations(size: int, flip: float) -> list[v2.Transform]:
    """The views of BRCD."""
    return [
        v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True),
        v2.RandomHorizontalFlip(flip),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.7),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(3, sigma=(0.1, 2.1))], p=0.5),
    ]


def crovca_operations(size: int, flip: float) -> list[v2.Transform]:
    """The views of CroVCA."""
    return [
        v2.RandomResizedCrop(size, scale=(0.4, 1.0), antialias=True),
        v2.RandomHorizontalFlip(flip),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.2)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(9, sigma=(0.1, 2.0))], p=0.1),
        v2.RandomSolarize(0.5, p=0.1),
    ]


OPERATIONS = {"brcd": published_operations, "crovca": crovca_operations}


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
