"""What an encoder says of a view."""

from typing import NamedTuple

from torch import Tensor, nn

from torch_ref.losses import hash_codes


class Outputs(NamedTuple):
    """Features (B, D) of the backbone, logits (B, K) of the hash head, and codes (B, K), straight-through."""

    features: Tensor | None = None
    logits: Tensor | None = None
    codes: Tensor | None = None


def outputs_of(head: nn.Module, features: Tensor) -> Outputs:
    """Features with the logits that a head gives of them, and their codes."""
    logits = head(features)
    return Outputs(features, logits, hash_codes(logits))
