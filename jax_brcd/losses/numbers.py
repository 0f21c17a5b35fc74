"""Numbers that a loss is told: Python's, NumPy's or JAX's, known while tracing or not."""

import math

import jax
import numpy as np
from jaxtyping import ScalarLike

from jax_brcd.runtime.errors import InputError


def checked_temperature(temperature: ScalarLike) -> ScalarLike:
    """`checked_positive` of a temperature."""
    return checked_positive(temperature, "temperature")


def checked_positive(value: ScalarLike, name: str) -> ScalarLike:
    """The value of the argument `name`, of whatever type, as Python's float, which takes the type of what it meets; as it is
    while it is traced.

    Raises:
        InputError: where it is known and no number above 0.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    known = float(np.asarray(value))
    if not (math.isfinite(known) and known > 0):
        raise InputError(f"no {name}; give a number above 0", field=name, value=known)
    return known
