"""The interface between the student's stage and a distillation method: state in, state out."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_brcd.clusters.choice import DEFAULT_RANGE, ClusterChoice, ClusterNeeds, make_clusters
from jax_brcd.methods.sections import Section
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.progress import Progress, silent
from jax_brcd.views.derivations import Derivation
from jax_brcd.views.outputs import VIEW_I, VIEW_J, Outputs

Tree = Any
Metrics = dict[str, Array]
View = str | Derivation  # "i", "j", or what is made of view i


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a method sees; nothing else is computed for it."""

    views: tuple[View, ...] = (VIEW_I,)  # seen by student and teacher
    unseen: tuple[str, ...] = ()  # of these, "i" or "j" that the teacher alone sees
    student: tuple[str, ...] = ("codes",)  # entries of Outputs
    teacher: tuple[str, ...] = ("codes",)
    negatives: int = 0  # other training images drawn for each image of a batch
    neighbours: int = 0  # nearest training images by the teacher's codes that mixtures draw from
    clusters: ClusterNeeds | None = None  # of the teacher's codes of the training images

    def __post_init__(self):
        if not set(self.unseen) <= {VIEW_I, VIEW_J} & set(self.views):
            raise ValueError(f"unseen {self.unseen}: name those of the random views among {self.views} that the teacher alone "
                             "sees")

    @property
    def shown(self) -> tuple[View, ...]:
        """The views that the student sees."""
        return tuple(view for view in self.views if view not in self.unseen)

    @property
    def derivations(self) -> tuple[Derivation, ...]:
        """The views that are made of view i, in order."""
        return tuple(view for view in self.views if not isinstance(view, str))


class TeacherKnowledge(NamedTuple):
    """What is known before the student's training starts."""

    codes: Float[np.ndarray, "images bits"]  # the teacher's, of the un-augmented training images
    clustering: ClusterChoice | None = None  # of the codes, where `Needs.clusters` asks for one
    student_features: int | None = None  # widths of the encoders' features, which the stage fills in
    teacher_features: int | None = None

    @classmethod
    def of(
        cls, codes: Float[np.ndarray, "images bits"], needs: Needs, *, seed: int,
        cluster_range: tuple[int, int] = DEFAULT_RANGE, progress: Progress = silent,
    ) -> "TeacherKnowledge":
        """The codes with what `needs` asks for of them; arguments as in `make_clusters`."""
        clustering = None if needs.clusters is None else make_clusters(
            codes, needs.clusters, cluster_range=cluster_range, seed=seed, progress=progress)
        return cls(codes, clustering)


class DistillationBatch(NamedTuple):
    """One batch as a method sees it; rows that are not `valid` are padding."""

    indices: Int[Array, "batch"]  # positions in the training set
    valid: Bool[Array, "batch"]
    student: Mapping[str, Outputs]  # by the name of the view: "i", "j" and each derivation's
    teacher: Mapping[str, Outputs]
    key: Key[Array, ""]
    temperature: float  # of the student's own contrastive objective
    negatives: Int[Array, "batch negatives"] | None = None  # positions in the training set
    step: Int[Array, ""] | int = 0  # number of the step in the whole training, from 0
    steps: int = 1  # how many there will be at most


def view_name(view: View) -> str:
    """The name under which a batch holds the outputs of a view."""
    return view if isinstance(view, str) else view.name


def stacked_codes(outputs: Mapping[str, Outputs], needs: Needs) -> Float[Array, "views batch bits"]:
    """The codes of all views of `needs`, in their order."""
    return jnp.stack([outputs[view_name(view)].codes for view in needs.views])


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of settings; `BaseMethod` has what most methods share.

    `init` runs once, on the host. What it returns is checkpointed and resumed: `parameters` are moved by the student's
    optimizer, `memory` is whatever else the method carries from step to step.
    """

    @property
    def needs(self) -> Needs:
        """What the method sees."""

    @property
    def replaces_objective(self) -> bool:
        """Whether the method's loss stands in place of the student's own objective, instead of being added to it."""

    @property
    def meets_teacher(self) -> bool:
        """Whether the student learns the teacher's own bits, so that its codes may be compared with the teacher's."""

    @property
    def reads_temperature(self) -> bool:
        """Whether the loss looks at the temperature of the student's own objective."""

    @property
    def counts_steps(self) -> bool:
        """Whether the loss looks at how many steps there will be: a training of another number is then another training."""

    def check_settings(self) -> None:
        """Raises InputError for settings that cannot be together, whatever the images are; asked of new runs alone, so that
        directories of earlier versions, which allowed them, can still be opened."""

    def check(self, *, images: int, streamed: bool) -> None:
        """Raises InputError where the method cannot learn from so many training images, or from images that travel with a
        step (`streamed`); called before anything long starts."""

    def init(self, knowledge: TeacherKnowledge, *, seed: int) -> tuple[Tree, Tree]:
        """Returns (parameters, memory), pytrees of arrays."""

    def loss(self, parameters: Tree, memory: Tree, batch: DistillationBatch) -> tuple[Float[Array, ""], Tree, Metrics]:
        """Returns (loss, the memory after the step, scalars for the history by names of the method's own)."""

    def report(self, memory: Tree) -> list[Section]:
        """What the report shows of the memory at the end of the training."""


class BaseMethod:
    """A method that sees the codes of view i, learns nothing of its own, remembers nothing and shows nothing.

    Other methods override what is different with them.
    """

    needs = Needs()
    replaces_objective = False
    meets_teacher = False
    reads_temperature = False
    counts_steps = False

    def check_settings(self) -> None:
        """Nothing is refused."""

    def check(self, *, images: int, streamed: bool) -> None:
        """See Method: what follows from the needs."""
        check_needs(self.needs, images=images, streamed=streamed)

    def init(self, knowledge: TeacherKnowledge, *, seed: int) -> tuple[Tree, Tree]:
        """No parameters and no memory."""
        return {}, {}

    def report(self, memory: Tree) -> list[Section]:
        """Nothing."""
        return []


def check_needs(needs: Needs, *, images: int, streamed: bool) -> None:
    """Raises InputError for needs that so many training images, or images that travel with a step, cannot meet."""
    if needs.clusters is not None:
        needs.clusters.check(images)
    if needs.negatives and images < 2:
        raise InputError(f"there are none among {images} training images; give 2 or more images", field="negatives",
                         value=needs.negatives)
    if needs.neighbours >= max(images, 1):
        raise InputError(f"each of the {images} training images has {images - 1} others; give that or fewer",
                         field="neighbours", value=needs.neighbours)
    if needs.neighbours and streamed:
        raise InputError("an image is mixed with its neighbours, which do not travel with a step; give a larger "
                         "`resident_mib`, or a method without mixtures", field="neighbours", value=needs.neighbours)
