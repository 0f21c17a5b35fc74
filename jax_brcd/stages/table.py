"""A run's table of embeddings: what it allows, said before anything long, and its rows."""

from collections.abc import Mapping
from typing import Any

from jax_brcd.data import Embeddings, ImageDataset, read_embeddings
from jax_brcd.data.embeddings import tables_of
from jax_brcd.models.rows import EMBEDDINGS
from jax_brcd.runtime.errors import InputError
from jax_brcd.stages.configuration import Config
from jax_brcd.teachers.embeddings import check_method
from jax_brcd.teachers.objectives import OBJECTIVES, Sees, seen_by


def check_embeddings(config: Config, brought: Mapping[str, Any] | None, *, student: bool) -> None:
    """Raises InputError for what a table of embeddings as teacher does not allow, for a folder of tables that is not there, and
    for settings of one without it.

    Args:
        brought: what the encoder's folder that the teacher is brought along in says of it. student: whether one is taught.
    """
    teacher, name = config.teacher, config.teacher.teacher
    if name != EMBEDDINGS:
        if teacher.embeddings is not None:
            raise InputError(f"`teacher` {name} sees images; name `teacher` embeddings, or leave it out", field="embeddings",
                             value=teacher.embeddings)
        if brought is not None and brought["backbone"] == EMBEDDINGS:
            raise InputError(f"an encoder over embeddings, and {name} sees images; name `teacher` embeddings and the folder of its "
                             "`embeddings`", field="teacher_weights", value=teacher.teacher_weights)
        return
    if teacher.embeddings is None:
        raise InputError("name the folder of its tables with `embeddings`", field="teacher", value=name)
    tables_of(teacher.embeddings)
    if teacher.teacher_weights == "held-out":
        raise InputError("a table of embeddings is not pretrained; leave it out", field="teacher_weights", value="held-out")
    learns = teacher.teacher_weights == "random" or config.teacher_epochs(head_came=True) > 0
    if learns and seen_by(config.hashing) is Sees.TWO_VIEWS:
        able = ", ".join(other for other, kind in OBJECTIVES.items() if seen_by(kind) is not Sees.TWO_VIEWS)
        raise InputError("it contrasts two views of an image, and a table of embeddings has one row for all of them; name one of "
                         f"{able}", field="teacher_objective", value=teacher.teacher_objective)
    if student:
        check_method(config.method, config.run.method)


def read_table(config: Config, dataset: ImageDataset) -> Embeddings | None:
    """The rows of a data set's images where the teacher is a table of them.

    Raises:
        InputError: see `read_embeddings`.
    """
    return None if config.teacher.embeddings is None else read_embeddings(config.teacher.embeddings, dataset)
