"""Numbers that a loss is told: Python's, NumPy's or JAX's, known while tracing or not."""

import math

import jax
import numpy as np
from jaxtyping import ScalarLike

from jax_brcd.runtime.errors import InputError


def known_number(value: ScalarLike) -> float | None:
    """A real number of whatever type as Python's own, which takes the type of what it meets; None while it is traced."""
    return None if isinstance(value, jax.core.Tracer) else float(np.asarray(value))


def checked_temperature(temperature: ScalarLike) -> ScalarLike:
    """`checked_positive` of a temperature."""
    return checked_positive(temperature, "temperature")


def checked_positive(value: ScalarLike, name: str) -> ScalarLike:
    """The value of the argument `name` as Python's float where it is known, else as it is.

    Raises:
        InputError: where it is known and no number above 0.
    """
    known = known_number(value)
    if known is None:
        return value
    if not (math.isfinite(known) and known > 0):
        raise InputError(f"no {name}; give a number above 0", field=name, value=known)
    return known
