"""Numbers of 32 bits whatever JAX_ENABLE_X64 says, so that a program that needs 64 elsewhere gets the same results here."""

from collections.abc import Callable
from typing import TypeVar

import jax

Function = TypeVar("Function", bound=Callable)


def in_32_bits(function: Function) -> Function:
    """Decorates what a host calls, not what is traced: all that JAX makes in it has 32 bits where no type is named."""
    return jax.enable_x64(False)(function)
