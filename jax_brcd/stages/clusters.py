"""Clusters of the teacher's codes, for the methods that need them (docs/method.md, "What the student sees before training")."""

import numpy as np
import safetensors.numpy

from jax_brcd.clusters.choice import ClusterChoice, published_range
from jax_brcd.methods import TeacherKnowledge
from jax_brcd.runtime import devices
from jax_brcd.runtime.digests import beyond_defaults
from jax_brcd.runtime.files import atomic_path
from jax_brcd.stages.context import STUDENT, Context
from jax_brcd.stages.folder import StageFolder
from jax_brcd.teachers.base import Teacher

CLUSTERS = "clusters.safetensors"


def know(context: Context, teacher: Teacher) -> tuple[TeacherKnowledge, StageFolder | None]:
    """What the method is to know of the teacher before the training, and the folder of the clusters if it needs any."""
    needs, codes = context.config.method.needs, teacher.codes("train")
    if needs.clusters is None:
        return TeacherKnowledge(codes), None
    between = published_range(context.dataset.name)
    folder = context.folder("clusters", {"space": teacher.identity, "needs": beyond_defaults(needs.clusters),
                                         "range": list(between), **context.data_facts("images of train")})
    with folder.held(context.say):
        if not folder.finished:
            made = TeacherKnowledge.of(codes, needs, seed=context.seed(STUDENT), cluster_range=between,
                                       progress=context.progress)
            if devices.is_first():
                arrays = {name: np.array(array, order="C") for name, array in made.clustering.arrays().items()}
                with atomic_path(folder.path / CLUSTERS) as temporary:
                    safetensors.numpy.save_file(arrays, temporary)
            folder.finish()
    with folder.reading():
        choice = ClusterChoice.from_arrays(safetensors.numpy.load_file(folder.path / CLUSTERS))
    return TeacherKnowledge(codes, choice), folder
