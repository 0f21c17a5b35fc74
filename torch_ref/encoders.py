"""Whole encoders in PyTorch: the models of this package with weights of jax_brcd's, and what makes pixels ready for them."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models import list_models

from torch_ref import models
from torch_ref.foundation import Foundation

LEVELS = 255.0  # of a pixel


def has_model(name: str) -> bool:
    """Whether a backbone of this name is known here."""
    return name in models.BUILDERS or name in list_models()


def model_at(name: str, bits: int, form: str | None, size: int) -> nn.Module:
    """A hash model whose position embedding is for images of `size` pixels squared: nothing is resampled as it runs."""
    model = models.create_hash_model(name, bits, form, size=size)
    if isinstance(model, Foundation):
        config = copy.deepcopy(model.tower.config)
        config.image_size = size
        model.tower = type(model.tower)(config)
    return model


def filled(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A model with these weights, in evaluation mode and not to be trained."""
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def powers(bits: int) -> Tensor:
    """What each bit of a code is worth in its byte, (bits, bytes): the first is the highest, as np.packbits has it."""
    worth = torch.zeros(bits, -(-bits // 8))
    for bit in range(bits):
        worth[bit, bit // 8] = 128 >> bit % 8
    return worth


class Coded(nn.Module):
    """A hash model of rows that also gives its codes as bytes."""

    def __init__(self, model: nn.Module, bits: int):
        super().__init__()
        self.model = model
        self.register_buffer("powers", powers(bits), persistent=False)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, bits) and codes, uint8 (batch, bytes)."""
        logits = self.model(rows)
        return logits, ((logits > 0).float() @ self.powers).to(torch.uint8)


class CodedPixels(Coded):
    """The same of a model of images: uint8 (batch, size, size, 3), as `mean` and `std` normalise them."""

    def __init__(self, model: nn.Module, bits: int, *, mean: Sequence[float], std: Sequence[float]):
        super().__init__(model, bits)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See Coded."""
        planes = images.permute(0, 3, 1, 2).float() / LEVELS
        return super().forward((planes - self.mean) / self.std)
