"""A hash model as teacher: its backbone frozen, its head trained, solved, or brought along."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jax_brcd.encoder import HashEncoder
from jax_brcd.methods import Needs
from jax_brcd.models.kept import head_codes
from jax_brcd.teachers.base import Encoded, OfEncoder, Parts
from jax_brcd.views.features import FeatureCache
from jax_brcd.views.plan import ViewPlan
from jax_brcd.views.sources import KeptFeatures, KeptTeacher, LiveTeacher, TeacherSource

ONLY_CODES = ("codes",)


@dataclasses.dataclass(frozen=True)
class HashTeacher(OfEncoder):
    """See teachers.base.Teacher.

    Attributes:
        parts: the data set's, under a frozen backbone. cache: of that backbone's features.
        measure: gives what encoding images with a model costs.
    """

    encoder: HashEncoder
    parts: Parts
    cache: FeatureCache
    measure: Callable[[HashEncoder, np.ndarray], Mapping[str, int | float]]
    remarks: tuple[str, ...] = ()

    def codes(self, part: str) -> Float[np.ndarray, "images bits"]:
        """See Teacher."""
        return self.parts.codes(self.encoder.model, part)

    def outputs(self, part: str) -> Encoded:
        """See Teacher."""
        return self.parts.outputs(self.encoder.model, part)

    def source(
        self, plan: ViewPlan, needs: Needs, partners: Int[np.ndarray, "images neighbours"] | None = None
    ) -> TeacherSource:
        """See Teacher. Kept views give kept codes, and features only where the method asks for more than codes."""
        model = self.encoder.model
        if plan.kept is None:
            return LiveTeacher.of(model, plan.pixels(train=False, partners=partners).views)
        itself = plan.features(self.cache)
        derived = {derivation.name: plan.features(self.cache, derivation=derivation, partners=partners)
                   for derivation in needs.derivations}

        def codes(features: np.ndarray) -> jax.Array:
            return jnp.asarray(head_codes(model, features), jnp.int8)

        kept = KeptTeacher(codes(itself), {name: codes(features) for name, features in derived.items()})
        if needs.teacher == ONLY_CODES:
            return kept
        return kept.with_features(KeptFeatures(jnp.asarray(itself), jax.tree.map(jnp.asarray, derived)), model.head)

    def cost(self, images: np.ndarray) -> Mapping[str, int | float]:
        """See Teacher."""
        return self.measure(self.encoder, images)
