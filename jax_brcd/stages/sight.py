"""What teacher and student see: the size and the colours of their images, as told, or as they are meant for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax_brcd.data import ImageDataset
from jax_brcd.data.dataset import RESIZED, square_side
from jax_brcd.encoder import STUDENT, TEACHER, holds_encoder, preprocessing_of, read_config
from jax_brcd.models import BACKBONES, Backbone, create_backbone, tags_of
from jax_brcd.models.initial import abstract
from jax_brcd.models.variants import Preprocessing
from jax_brcd.runtime.errors import InputError, of_setting
from jax_brcd.runtime.files import as_path
from jax_brcd.stages.configuration import Config
from jax_brcd.teachers.kinds import TEACHERS

NO_FILES = ("random", "held-out")  # what stands in place of weights that a file or a tag gives


@dataclasses.dataclass(frozen=True)
class Sight:
    """What a model sees.

    Attributes:
        size: pixels. meant: what it is meant for, in the encoder that it comes from or else by its backbone.
        kept: whether `meant` holds as it is, because the encoder's codes depend on it.
    """

    size: int
    meant: Preprocessing
    kept: bool

    def of(self, dataset: ImageDataset) -> Preprocessing:
        """Its preprocessing: of what it does not keep, how much of an image is seen is for the data set's protocol to say."""
        if self.kept:
            return self.meant
        return dataclasses.replace(self.meant, size=self.size, resize=dataset.evaluation_resize(self.size))


def sights(config: Config, *, student: bool) -> dict[str, Sight]:
    """What teacher and student see, by role. A student without a size of its own sees what the teacher sees; a teacher that sees
    no images is given what its student sees.

    Raises:
        InputError: for a size that a model does not take, and for a folder of weights that is no encoder's.
    """
    if config.teacher.teacher in TEACHERS:
        return _of_student_alone(config)
    name = config.teacher.teacher
    teacher = _sight(config, name, "teacher_weights", config.teacher.teacher_size)
    backbone = _misfit(name, teacher.size)
    if backbone is not None:
        raise InputError(f"{name} takes {backbone.sizes}; give such a size", field="teacher_size", value=teacher.size)
    if not student:
        return {TEACHER: teacher, STUDENT: teacher}
    if config.student.student_size is not None:
        return {TEACHER: teacher, STUDENT: _own_sight(config)}
    name = config.student.student
    backbone = _misfit(name, teacher.size)
    if backbone is not None:
        raise InputError(f"takes {backbone.sizes}, but {config.teacher.teacher} sees {teacher.size}; give it a `student_size` of "
                         "its own, or name another student", field="student", value=name)
    return {TEACHER: teacher, STUDENT: teacher}


def _of_student_alone(config: Config) -> dict[str, Sight]:
    if config.teacher.teacher_size is not None:
        raise InputError(f"`teacher` {config.teacher.teacher} sees no images; leave it out, or give `student_size`",
                         field="teacher_size", value=config.teacher.teacher_size)
    if config.student.student_size is not None:
        seen = _own_sight(config)
    else:
        meant = BACKBONES[config.viewer].preprocessing
        seen = Sight(meant.size, meant, False)
    return {TEACHER: seen, STUDENT: seen}


def _own_sight(config: Config) -> Sight:
    """What a student sees that is told its size."""
    name, told = config.student.student, config.student.student_size
    backbone = _misfit(name, told)
    if backbone is not None:
        raise InputError(f"{name} takes {backbone.sizes}; give such a size", field="student_size", value=told)
    return _sight(config, name, "student_weights", told)


def _sight(config: Config, name: str, setting: str, told: int | None) -> Sight:
    encoder, kept = brought_encoder(config, setting), None
    if encoder is not None and encoder["backbone"] not in TEACHERS:  # such a one is refused where the model is built
        with of_setting(setting, config.flat()[setting]):
            kept = preprocessing_of(encoder)
    meant = kept or BACKBONES[name].preprocessing
    size = meant.size if told is None else told
    return Sight(size, meant, kept is not None and size == meant.size)


def brought_encoder(config: Config, setting: str) -> Mapping[str, Any] | None:
    """What the encoder's folder that `teacher_weights` or `student_weights` names says of it; None where that is a folder of
    weights, or none.

    Raises:
        InputError: for a folder of something else.
    """
    told = config.flat()[setting]
    name = config.teacher.teacher if setting == "teacher_weights" else config.student.student
    with of_setting(setting, told):
        folder = as_path(config.weights(setting))
        if told in NO_FILES or told in tags_of(name) or not folder.is_dir():
            return None
        return read_config(folder) if holds_encoder(folder) else None


def decoded_side(config: Config, seen: Mapping[str, Sight], *, student: bool) -> int:
    """Pixels of the squares that image files become: the published ones unless sizes are told, then enough for the larger."""
    told = config.teacher.teacher_size is not None or (student and config.student.student_size is not None)
    return square_side(*(sight.size for sight in seen.values())) if told else RESIZED


def _misfit(name: str, size: int) -> Backbone | None:
    """The backbone of that name, without weights, where it does not take a size."""
    if size == BACKBONES[name].preprocessing.size:
        return None
    backbone = abstract(lambda rngs: create_backbone(name, rngs=rngs))
    return None if backbone.fits(size) else backbone


def told_sizes(dataset: ImageDataset, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What a protocol says of pixels: `sizes`, by what sees them, where they differ, and that of the squares which image files were
    decoded to, where it is not the published one."""
    squares = {} if dataset.squares in (None, RESIZED) else {"squares": dataset.squares}
    return ({"sizes": dict(sizes)} if len(set(sizes.values())) > 1 else {}) | squares
