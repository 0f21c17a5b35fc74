"""The published views, an image at a time, by torchvision's transforms."""

import torch
from torch import Tensor
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def training_view(size: int, flip: bool) -> v2.Transform:
    """uint8 (3, H, W) -> float (3, size, size), normalised (method.md, "Data as published")."""
    return v2.Compose([
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True),
        v2.RandomHorizontalFlip(0.5 if flip else 0.0),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.7),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(3, sigma=(0.1, 2.1))], p=0.5),
        v2.Normalize(MEAN, STD),
    ])


def evaluation_view(size: int) -> v2.Transform:
    """uint8 (..., 3, H, W) -> float (..., 3, size, size), resized and normalised."""
    return v2.Compose([
        v2.ToDtype(torch.float32, scale=True), v2.Resize((size, size), antialias=True), v2.Normalize(MEAN, STD),
    ])


def random_views(images: Tensor, view: v2.Transform) -> Tensor:
    """One view of each image."""
    return torch.stack([view(image) for image in images])
