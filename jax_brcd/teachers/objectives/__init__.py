"""Hashing objectives of the teacher: how its head learns codes without labels; one file an objective.

An objective is a frozen dataclass of its settings that implements `LearntObjective` or `ClosedFormObjective` (see
objectives/base.py) and is registered in OBJECTIVES. What a teacher learnt makes no difference to the student.
"""

from typing import Any

from jax_brcd.runtime.registry import Registry
from jax_brcd.settings import options, stages  # noqa: F401 - the stages' settings have their names first
from jax_brcd.teachers.objectives.base import (
    ClosedFormObjective,
    HashingBatch,
    LearntObjective,
    Sees,
    brings_optimizer,
    head_of,
    optimizer_of,
    proposals,
    seen_by,
)
from jax_brcd.teachers.objectives.bihalf import BiHalf
from jax_brcd.teachers.objectives.cibhash import CIBHash
from jax_brcd.teachers.objectives.crovca import CroVCA
from jax_brcd.teachers.objectives.greedyhash import GreedyHash
from jax_brcd.teachers.objectives.itq import ITQ

Objective = LearntObjective | ClosedFormObjective
OBJECTIVES: Registry[type[Objective]] = Registry("teacher objective", check=options.claiming("a teacher objective"))
OBJECTIVES.register("cibhash")(CIBHash)
OBJECTIVES.register("bihalf")(BiHalf)
OBJECTIVES.register("greedyhash")(GreedyHash)
OBJECTIVES.register("itq")(ITQ)
OBJECTIVES.register("crovca")(CroVCA)

__all__ = ["OBJECTIVES", "ClosedFormObjective", "HashingBatch", "LearntObjective", "Objective", "Sees", "brings_optimizer",
           "create_objective", "head_of", "optimizer_of", "proposals", "seen_by"]


def create_objective(name: str, **settings: Any) -> Objective:
    """The objective `name` with `settings` in place of its defaults.

    Raises:
        InputError: for an unknown objective, settings that are not its own, or settings out of bounds.
    """
    return options.create(OBJECTIVES, name, settings)
