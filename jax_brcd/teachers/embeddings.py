"""A table of embeddings as teacher: a hash head over rows that some model gave once, one row for all views of an image."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jax_brcd.data.embeddings import Embeddings
from jax_brcd.encoder import HashEncoder
from jax_brcd.methods import Method, Needs
from jax_brcd.models.kept import HEAD_ROWS, head_codes, head_logits
from jax_brcd.runtime.errors import InputError
from jax_brcd.teachers.base import Encoded, OfEncoder
from jax_brcd.views.plan import ViewPlan
from jax_brcd.views.sources import TeacherSource

REMARK = "The teacher is a table of embeddings: all views of an image have one row, and its cost is that of the hash head alone."


@dataclasses.dataclass(frozen=True)
class EmbeddingsTeacher(OfEncoder):
    """See teachers.base.Teacher.

    Attributes:
        encoder: over embeddings. table: the rows of every part. measure: gives what encoding rows with a model costs.
    """

    encoder: HashEncoder
    table: Embeddings
    measure: Callable[[HashEncoder, np.ndarray], Mapping[str, int | float]]
    remarks: tuple[str, ...] = ()

    def outputs(self, part: str) -> Encoded:
        """See Teacher. The features are the rows."""
        rows = self.table.parts[part][:]
        return Encoded.of(rows, head_logits(self.encoder.model, rows))

    def codes(self, part: str) -> Float[np.ndarray, "images bits"]:
        """See Teacher."""
        return np.concatenate([head_codes(self.encoder.model, rows) for rows in self.table.parts[part].slabs(HEAD_ROWS)])

    def source(
        self, plan: ViewPlan, needs: Needs, partners: Int[np.ndarray, "images neighbours"] | None = None
    ) -> TeacherSource:
        """See Teacher. The plan's views make no difference."""
        return self.still_source(needs)

    def cost(self, images: np.ndarray) -> Mapping[str, int | float]:
        """See Teacher: that of the head, of a row."""
        return self.measure(self.encoder, self.table.parts["test"][: len(images)])


def training_rows(table: Embeddings) -> Float[jax.Array, "images features"]:
    """The training images' rows, on the device."""
    return jnp.asarray(table.parts["train"][:])


def check_method(method: Method, name: str) -> None:
    """Raises InputError for a method that asks for a teacher's outputs of what is made of views; `name` is the method's."""
    needs = method.needs
    if needs.derivations and needs.teacher:
        made = ", ".join(derivation.name for derivation in needs.derivations)
        raise InputError(f"it compares the teacher's outputs of what is made of views ({made}), and a table of embeddings has one "
                         "row for all views of an image; name a method without these, or a `teacher` that sees images",
                         field="method", value=name)
