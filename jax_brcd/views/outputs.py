"""What an encoder says of a view, and the names of the views that a step may ask for."""

from typing import NamedTuple

from jaxtyping import Array, Float

from jax_brcd.losses.codes import hash_codes

VIEW_I, VIEW_J = "i", "j"  # the two random views that each image of a batch shows


class Outputs(NamedTuple):
    """An encoder's answers for one view of a batch; None where nobody asked, or where they were not kept."""

    features: Float[Array, "batch features"] | None = None  # of the backbone
    logits: Float[Array, "batch bits"] | None = None  # of the hash head
    codes: Float[Array, "batch bits"] | None = None  # sign(sigmoid(logits) - 0.5), straight-through

    def only(self, names: tuple[str, ...]) -> "Outputs":
        """The named entries; the others are None.

        Raises:
            ValueError: for a name that is none of the entries', and for an entry that is asked for and absent.
        """
        absent = [name for name in names if getattr(self, name, None) is None]
        if absent:
            held = ", ".join(name for name in self._fields if getattr(self, name) is not None)
            raise ValueError(f"outputs '{absent[0]}' are asked for, and this encoder gives {held}")
        return Outputs(**{name: getattr(self, name) for name in names})


def outputs_of(head, features: Float[Array, "batch features"]) -> Outputs:
    """Features with the logits that a head gives of them, and their codes."""
    logits = head(features)
    return Outputs(features, logits, hash_codes(logits))
