"""Distillation methods: what the student minimises beside its own CIBHash objective; one file a method.

A method is a frozen dataclass of its settings that implements `Method` (see methods/base.py) and is registered in METHODS.
"""

from typing import Any

from jax_brcd.methods.base import BaseMethod, DistillationBatch, Method, Needs, TeacherKnowledge
from jax_brcd.methods.brcd import BRCD
from jax_brcd.methods.crcd import CRCD
from jax_brcd.methods.crd import CRD
from jax_brcd.methods.kl import KL
from jax_brcd.methods.none import NoDistillation
from jax_brcd.methods.packd import PACKD
from jax_brcd.methods.pkt import PKT
from jax_brcd.methods.rkd import RKD
from jax_brcd.methods.sp import SP
from jax_brcd.methods.sskd import SSKD
from jax_brcd.runtime.registry import Registry
from jax_brcd.settings import options

METHODS: Registry[type[Method]] = Registry("method")
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

__all__ = ["METHODS", "BaseMethod", "DistillationBatch", "Method", "Needs", "TeacherKnowledge", "create_method"]


def create_method(name: str, **settings: Any) -> Method:
    """The method `name` with `settings` in place of its defaults.

    Raises:
        InputError: for an unknown method, settings that are not its own, or settings out of bounds.
    """
    return options.create(METHODS, name, settings)
