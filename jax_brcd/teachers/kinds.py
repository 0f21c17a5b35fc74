"""Teachers by name that are no backbone of the registry of backbones, and what their names imply."""

from collections.abc import Mapping
from typing import Any

from jax_brcd.models.rows import EMBEDDINGS
from jax_brcd.runtime.registry import Registry

# The settings that such a teacher has in place of the defaults and of a preset: a head over a table begins at random
TEACHERS: Registry[Mapping[str, Any]] = Registry("teacher")
TEACHERS.register(EMBEDDINGS)({"teacher_weights": "random"})
