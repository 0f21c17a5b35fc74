"""Rows of embeddings in place of images: the rows are the features, and a hash head over them is all there is to learn."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jax_brcd.models.heads import HashModel, linear_head
from jax_brcd.models.layers import Backbone
from jax_brcd.runtime.errors import InputError

EMBEDDINGS = "embeddings"  # what stands where a backbone's name would


class RowBackbone(Backbone):
    """Rows (batch, features) as float32 features: nothing is computed.

    Args:
        width: numbers a row.
    """

    layout = "plain"
    head_key = "hash_head"
    head = staticmethod(linear_head)
    name = EMBEDDINGS
    image_size = 0  # pixels: it sees none

    def __init__(self, width: int):
        self.features = width

    def __call__(
        self,
        rows: Float[Array, "batch features"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch features"]:
        """The rows; the arguments are as in Backbone, and nothing depends on them."""
        return rows.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """What an encoder over embeddings takes, in place of a preprocessing of images.

    Raises:
        InputError: for a width below 1.
    """

    width: int  # numbers a row

    def __post_init__(self):
        if not isinstance(self.width, int) or isinstance(self.width, bool) or self.width < 1:
            raise InputError("not a number of features; give a whole number, 1 or more", field="width", value=self.width)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "RowFormat":
        """What `to_dict` gave.

        Raises:
            InputError: for other fields.
        """
        if set(fields) != {"width"}:
            raise InputError(f"rows of embeddings have a `width` and nothing else, not {', '.join(map(str, fields)) or 'nothing'}")
        return cls(**fields)


def create_row_model(width: int, bits: int, *, rngs: nnx.Rngs | None = None, form: str | None = None) -> HashModel:
    """A hash head over rows of `width` numbers, as a hash model that maps rows to logits (batch, bits).

    Args:
        form: of the head, a name in HEADS; None for a linear one.

    Raises:
        InputError: for bits < 1, and an unknown form.
    """
    if bits < 1:
        raise InputError("a code needs at least one bit; give 1 or more", field="bits", value=bits)
    return HashModel(RowBackbone(width), bits, rngs=rngs or nnx.Rngs(0), form=form)
