"""The training images nearest to each by the teacher's features, for a student who learns of them together."""

import numpy as np
import safetensors.numpy
from jaxtyping import Int

from jax_brcd.retrieval import candidates, cosine_neighbours
from jax_brcd.runtime import devices
from jax_brcd.runtime.files import atomic_path
from jax_brcd.stages.context import Context
from jax_brcd.teachers.base import Teacher

NEIGHBOURS = "neighbours.safetensors"


def neighbours_of(context: Context, teacher: Teacher) -> Int[np.ndarray, "images neighbours"] | None:
    """As many as the student's `teacher_neighbours` asks for, nearest first, found here or in an earlier run."""
    count, seed = context.config.learning.teacher_neighbours, context.config.run.seed
    if not count:
        return None
    among = candidates(len(context.dataset.train), seed)
    facts = {} if among is None else {"candidates": len(among), "seed": seed}
    folder = context.folder("neighbours", {"space": teacher.identity, "count": count, **facts, **context.data_facts("images of train")})
    with folder.held(context.say):
        if not folder.finished:
            if devices.is_first():
                found = cosine_neighbours(teacher.outputs("train").features, count, context.progress, among=among)
                with atomic_path(folder.path / NEIGHBOURS) as temporary:
                    safetensors.numpy.save_file({"neighbours": found}, temporary)
            folder.finish()
    with folder.reading():
        return safetensors.numpy.load_file(folder.path / NEIGHBOURS)["neighbours"]
