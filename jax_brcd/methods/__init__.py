"""Distillation methods: what the student minimises beside its own CIBHash objective, or in its place; one file a method.

A method is a frozen dataclass of its settings that implements `Method` (see methods/base.py) and is registered in METHODS.
Names joined by + are a sum of methods (see methods/sums.py).
"""

import fnmatch
from collections.abc import Iterable
from typing import Any

from jax_brcd.methods.base import BaseMethod, DistillationBatch, Method, Needs, TeacherKnowledge
from jax_brcd.methods.bits import Bits
from jax_brcd.methods.brcd import BRCD
from jax_brcd.methods.crcd import CRCD
from jax_brcd.methods.crd import CRD
from jax_brcd.methods.crovca import CroVCA
from jax_brcd.methods.kl import KL
from jax_brcd.methods.mse import MSE
from jax_brcd.methods.none import NoDistillation
from jax_brcd.methods.packd import PACKD
from jax_brcd.methods.pkt import PKT
from jax_brcd.methods.rkd import RKD
from jax_brcd.methods.sp import SP
from jax_brcd.methods.sskd import SSKD
from jax_brcd.methods.sums import PLUS, create_sum, in_sum
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.registry import Registry
from jax_brcd.settings import options, stages  # noqa: F401 - the stages' settings have their names first

METHODS: Registry[type[Method]] = Registry("method", check=options.claiming("a method", in_sum))
METHODS.register("brcd")(BRCD)
METHODS.register("none")(NoDistillation)
METHODS.register("kl")(KL)
METHODS.register("rkd")(RKD)
METHODS.register("pkt")(PKT)
METHODS.register("sp")(SP)
METHODS.register("crd")(CRD)
METHODS.register("sskd")(SSKD)
METHODS.register("crcd")(CRCD)
METHODS.register("packd")(PACKD)
METHODS.register("mse")(MSE)
METHODS.register("bits")(Bits)
METHODS.register("crovca")(CroVCA)

__all__ = ["METHODS", "BaseMethod", "DistillationBatch", "Method", "Needs", "TeacherKnowledge", "create_method",
           "list_methods"]


def list_methods(pattern: str = "*") -> list[str]:
    """Names of methods that a shell pattern matches, sorted: `list_methods("*kd")`. Any of them may be joined by +."""
    return sorted(fnmatch.filter(METHODS, pattern))


def create_method(name: str, *, method_weights: str | Iterable[float | int] | None = None, **settings: Any) -> Method:
    """The method `name` with `settings` in place of its defaults, or the sum of methods of a name like "brcd+rkd".

    Args:
        method_weights: of the parts of a sum, numbers or text like "1,0.5"; None for 1 each. In a sum a setting that several
            parts have is given as `part_setting`; one that a single part has may also be given by its own name.

    Raises:
        InputError: for an unknown method, settings that are not its own, settings out of bounds, and wrong weights.
    """
    if PLUS in name and name not in METHODS:
        return create_sum(name, METHODS, settings, method_weights)
    if method_weights is not None:
        raise InputError(f"method '{name}' is no sum of methods, which alone has weights", field="method_weights",
                         value=method_weights)
    return options.create(METHODS, name, settings)
