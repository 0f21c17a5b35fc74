"""What teacher and student see: the size and the colours of their images, as told, or as they are meant for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from jax_brcd.data import ImageDataset
from jax_brcd.data.dataset import RESIZED, square_side
from jax_brcd.encoder import STUDENT, TEACHER, read_config
from jax_brcd.models import BACKBONES, Backbone, create_backbone
from jax_brcd.models.variants import Preprocessing
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path
from jax_brcd.stages.configuration import Config

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
    """What teacher and student see, by role. A student without a size of its own sees what the teacher sees.

    Raises:
        InputError: for a size that a model does not take, and for a folder of weights that is no encoder's.
    """
    name, told = config.teacher.teacher, config.teacher.teacher_size
    teacher = _sight(name, config.teacher.teacher_weights, told)
    backbone = _misfit(name, teacher.size)
    if backbone is not None:
        raise InputError(f"{name} takes {backbone.sizes}; give such a size", field="teacher_size", value=teacher.size)
    if not student:
        return {TEACHER: teacher, STUDENT: teacher}
    name, told = config.student.student, config.student.student_size
    seen = teacher if told is None else _sight(name, config.student.student_weights, told)
    backbone = _misfit(name, seen.size)
    if backbone is not None and told is not None:
        raise InputError(f"{name} takes {backbone.sizes}; give such a size", field="student_size", value=told)
    if backbone is not None:
        raise InputError(f"takes {backbone.sizes}, but {config.teacher.teacher} sees {seen.size}; give it a `student_size` of its "
                         "own, or name another student", field="student", value=name)
    return {TEACHER: teacher, STUDENT: seen}


def _sight(name: str, weights: str, told: int | None) -> Sight:
    encoder = brought_encoder(name, weights)
    meant = BACKBONES[name].preprocessing if encoder is None else Preprocessing.from_dict(encoder["preprocessing"])
    size = meant.size if told is None else told
    return Sight(size, meant, encoder is not None and size == meant.size)


def brought_encoder(name: str, weights: str) -> Mapping[str, Any] | None:
    """What the encoder's folder that the weights of a backbone lie in says of it; None where they lie in none.

    Raises:
        InputError: for a folder that is no encoder's.
    """
    named = weights in NO_FILES or weights in BACKBONES[name].weights
    return read_config(weights) if not named and as_path(weights).is_dir() else None


def decoded_side(config: Config, seen: Mapping[str, Sight], *, student: bool) -> int:
    """Pixels of the squares that image files become: the published ones unless sizes are told, then enough for the larger."""
    told = config.teacher.teacher_size is not None or (student and config.student.student_size is not None)
    return square_side(*(sight.size for sight in seen.values())) if told else RESIZED


def _misfit(name: str, size: int) -> Backbone | None:
    """The backbone of that name, without weights, where it does not take a size."""
    if size == BACKBONES[name].preprocessing.size:
        return None
    backbone = nnx.eval_shape(lambda: create_backbone(name))
    return None if backbone.fits(size) else backbone


def told_sizes(dataset: ImageDataset, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What a protocol says of pixels: `sizes`, by what sees them, where they differ, and that of the squares which image files were
    decoded to, where it is not the published one."""
    squares = {} if dataset.squares in (None, RESIZED) else {"squares": dataset.squares}
    return ({"sizes": dict(sizes)} if len(set(sizes.values())) > 1 else {}) | squares
