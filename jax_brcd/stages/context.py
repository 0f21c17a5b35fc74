"""What every stage of a run needs to know: settings, data, views, and where stage folders lie."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_brcd.data import DATASETS, Embeddings, ImageDataset, load_dataset
from jax_brcd.data.dataset import RESIZED
from jax_brcd.encoder import STUDENT as STUDENT_ROLE
from jax_brcd.encoder import TEACHER as TEACHER_ROLE
from jax_brcd.encoder import HashEncoder
from jax_brcd.models import HashModel
from jax_brcd.models.variants import Preprocessing
from jax_brcd.runtime.digests import beyond_defaults
from jax_brcd.runtime.errors import InputError, TrainingDiverged
from jax_brcd.runtime.files import check_folder
from jax_brcd.runtime.progress import Progress, Say, silent, unheard
from jax_brcd.settings.recipes import RECIPES
from jax_brcd.stages.configuration import Config
from jax_brcd.stages.folder import StageFolder
from jax_brcd.stages.learning import check_images
from jax_brcd.stages.parts import KeptParts, PixelParts, measure_cost
from jax_brcd.stages.sight import decoded_side, sights, told_sizes
from jax_brcd.stages.table import read_table
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.loop import Fit, Stage, Standing, fit, start
from jax_brcd.training.schedule import Schedule
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.views.features import FeatureCache
from jax_brcd.views.plan import ViewPlan

# Each stage draws its heads and batches from a seed of its own
PRETRAINING, TEACHER, STUDENT, STAGE_SEEDS = 0, 1, 2, 3
ENCODED_PARTS = ("train", "database", "validation", "test")
# What a diverged training may be gone on with: settings that are lowered or raised
REMEDIES = {"student": {"lr": -1, "temperature": 1}, "teacher": {"teacher_lr": -1, "teacher_temperature": 1}}


class StageDiverged(TrainingDiverged):
    """The training of a stage diverged. `folder` keeps its last good state, if there was one."""

    def __init__(self, problem: str, folder: StageFolder):
        super().__init__(problem)
        self.folder = folder

    def __reduce__(self) -> tuple[type, tuple[str, StageFolder]]:
        """An error that a process cannot send back ends all the others of its pool."""
        return type(self), (self.problem, self.folder)


@dataclasses.dataclass(frozen=True)
class Context:
    """See above.

    Attributes:
        digests: of the data set's parts, and of their embeddings. table: these, where the teacher is a table.
        preprocessing, plan: what the teacher sees, of evaluated and of training images; what the student sees where the
            teacher is a table. student_preprocessing: what the student sees.
        continued: by stage, the folder of a diverged training that it goes on from.
        progress: told how far long work is. say: told what a reader should know at once.
    """

    config: Config
    dataset: ImageDataset
    digests: Mapping[str, str]
    preprocessing: Preprocessing
    student_preprocessing: Preprocessing
    plan: ViewPlan
    progress: Progress = silent
    say: Say = unheard
    continued: Mapping[str, str] = dataclasses.field(default_factory=dict)
    table: Embeddings | None = None

    @property
    def as_student(self) -> "Context":
        """The same, with what the student sees in place of what the teacher sees."""
        seen = self.student_preprocessing
        if seen == self.preprocessing:
            return self
        return dataclasses.replace(self, preprocessing=seen, plan=self.plan.rendered(seen.size, seen.mean, seen.std))

    @property
    def root(self) -> pathlib.Path:
        """Where stage folders lie, for every run to find them."""
        return self.config.data.cache_dir / "stages"

    @property
    def k(self) -> int:
        """Ranks that the measures look at."""
        return self.config.data.k or self.dataset.default_k

    def seed(self, stage: int) -> int:
        """The seed of a stage."""
        return self.config.run.seed * STAGE_SEEDS + stage

    def plan_of(self, images: np.ndarray) -> ViewPlan:
        """New published views each epoch of other images than those that train."""
        return dataclasses.replace(self.plan, images=images, kept=None, config=view_config(self.preprocessing, self.dataset))

    def parts(self) -> dict[str, np.ndarray]:
        """The images of each part that is encoded."""
        return {name: getattr(self.dataset, name).images for name in ENCODED_PARTS}

    def cache(self, name: str, model: HashModel) -> FeatureCache:
        """The kept features of a model's backbone."""
        return FeatureCache(self.config.data.cache_dir / "features", name, model.backbone, self.config.run.dtype, self.progress,
                            self.say)

    def kept_parts(self, cache: FeatureCache) -> KeptParts:
        """The features that a frozen backbone gives for every part."""
        return KeptParts({name: cache.evaluation(images, **view_of(self.preprocessing))
                          for name, images in self.parts().items()})

    def pixel_parts(self) -> PixelParts:
        """The pixels of every part, for a backbone that moves."""
        return PixelParts(self.parts(), view_of(self.preprocessing), self.progress)

    def measure(self, encoder: HashEncoder, images: np.ndarray) -> dict[str, int | float]:
        """What encoding images costs, as JSON holds it."""
        return dataclasses.asdict(measure_cost(encoder.model, images, **view_of(encoder.preprocessing)))

    def protocol(self) -> dict[str, Any]:
        """How figures of this run come about, as printed with them."""
        dataset, sizes = self.dataset, {TEACHER_ROLE: self.preprocessing.size, STUDENT_ROLE: self.student_preprocessing.size}
        return {"dataset": dataset.name, "split": dataset.split, "queries": len(dataset.test),
                "database": len(dataset.database), "training": len(dataset.train), "k": self.k, "ties": "stable",
                "bits": self.config.objective.bits, "seed": self.config.run.seed, **told_sizes(dataset, sizes)}

    def student_facts(self) -> dict[str, Any]:
        """What the student sees where its teacher does not say it, for the names of stages."""
        seen = self.student_preprocessing
        own = self.table is not None and self.config.student.student_size is not None
        return {"student sees": beyond_defaults(seen)} if own or seen != self.preprocessing else {}

    def data_facts(self, *parts: str) -> dict[str, str]:
        """The digests of some parts, for the names of stages; of images with those of their embeddings."""
        rows = (name.replace("images", "embeddings", 1) for name in parts if name.startswith("images"))
        return {name: self.digests[name] for name in (*parts, *rows) if name in parts or name in self.digests}

    def schedule(self, stage: int, epochs: int, **settings: Any) -> Schedule:
        """The schedule of a stage; `settings` are those of its fields that are this stage's own."""
        run = self.config.run
        usual = {"batch_size": run.batch_size, "checkpoint_seconds": run.checkpoint_seconds}
        return Schedule(epochs=epochs, seed=self.seed(stage), **usual | settings)

    def folder(self, stage: str, depends_on: Mapping[str, Any], epochs: int | None = None) -> StageFolder:
        """The folder of a stage, whose name also tells what a diverged training was gone on from."""
        facts = {"dtype": self.config.run.dtype, "seed": self.config.run.seed, **depends_on}
        if stage in self.continued:
            facts["continues"] = self.continued[stage]
        return StageFolder(self.root, stage, facts, epochs)

    def fit(self, folder: StageFolder, stage: Stage, parameters: Any, carry: Any) -> Fit:
        """Trains under the folder's checkpoints, going on where they end.

        Raises:
            StageDiverged: the folder keeps the last good state.
        """
        before = self.continued.get(folder.stage)
        folder.begin(None if before is None else self.root / before)
        checkpoints, name, began = Checkpoints(folder.checkpoints), stage.task.name.capitalize(), time.monotonic()

        def restored(standing: Standing) -> None:
            self.say(f"{name}: goes on from the checkpoint in {folder.checkpoints}, {described(standing)}.")

        try:
            fitted = fit(stage, start(stage, parameters, carry), checkpoints, progress=self.progress,
                         on_restored=restored)
            self.say(f"{name}: {len(fitted.history)} epochs, {time.monotonic() - began:.0f} s of them now.")
            return fitted
        except TrainingDiverged as error:
            raise StageDiverged(f"{error.problem}; {self._advice(folder.stage)}", folder) from error
        finally:
            checkpoints.close()

    def _advice(self, stage: str) -> str:
        if stage not in REMEDIES:
            return "its rate is fixed; give weights by `teacher_weights`, or another `seed` and another `out`"
        values, words = self.config.flat(), {-1: "a lower", 1: "a higher"}
        changed = " or ".join(f"{words[way]} `{name}` than {values[name]}" for name, way in REMEDIES[stage].items()
                              if way < 0 or name in self.config.temperatures)  # a rate helps whatever is learnt
        return f"give the same command {changed} to go on"


def described(standing: Standing) -> str:
    """after 3 epochs and 2 steps; best validation so far: symmetric mAP 0.5312 (epoch 2)"""
    steps = f" and {standing.steps} steps" if standing.steps else ""
    best = ", ".join(f"{search} mAP {score:.4f} (epoch {epoch})" for search, (score, epoch) in standing.best.items())
    return f"after {standing.epochs} epochs{steps}" + (f"; best validation so far: {best}" if best else "")


def view_of(preprocessing: Preprocessing) -> dict[str, Any]:
    """How images are prepared, as `encode` is told: only what differs from its defaults, which kept features are named by."""
    return beyond_defaults(preprocessing)


def load_images(config: Config, *, square_side: int = RESIZED, progress: Progress = silent, say: Say = unheard) -> ImageDataset:
    """The data set of a configuration, image files as squares of `square_side` pixels.

    Raises:
        InputError: for data that is absent or broken, and ranks that its database does not have.
    """
    data = config.data
    check_folder(data.cache_dir, field="cache_dir")
    dataset = load_dataset(data.dataset, data_dir=data.data_dir, cache_dir=data.cache_dir, split=data.split,
                           train_images=data.train_images, seed=config.run.seed, max_bad_images=data.max_bad_images,
                           decode_workers=data.decode_workers, label_format=data.label_format, square_side=square_side,
                           progress=progress, say=say)
    k = data.k or dataset.default_k
    if k > len(dataset.database):
        raise InputError(f"the database of {data.dataset} holds {len(dataset.database)} images; give that or less", field="k", value=k)
    return dataset


def load_to_train(config: Config, *, square_side: int, progress: Progress = silent, say: Say = unheard) -> ImageDataset:
    """`load_images` for a run, whose teacher may be pretrained on labelled images that the data set holds out.

    Raises:
        InputError: as `load_images`, and where there are no such images: before any is loaded, where the data set never has them.
    """
    _check_held_out(config, may_be=DATASETS[config.data.dataset].held_out)
    dataset = load_images(config, square_side=square_side, progress=progress, say=say)
    _check_held_out(config, may_be=dataset.pretraining is not None)
    return dataset


def _check_held_out(config: Config, *, may_be: bool) -> None:
    if config.teacher.teacher_weights == "held-out" and not may_be:
        raise InputError(f"{config.data.dataset} holds no labelled images out; give a weight file", field="teacher_weights",
                         value="held-out")


def load_context(config: Config, *, student: bool = True, progress: Progress = silent, say: Say = unheard) -> Context:
    """Loads the data and checks it against the configuration before anything long starts.

    A teacher that is brought along in an encoder's folder keeps its preprocessing, which its codes depend on, unless it is given
    another size. Image files are decoded to squares of the published size, or where sizes are given to what the larger one needs.

    Args:
        student: whether one is to be taught, and not the teacher made alone.

    Raises:
        InputError: for data that is absent or broken, for settings that it does not allow, and for sizes that a model does not
            take.
    """
    seen = sights(config, student=student)
    data = config.data
    dataset = load_to_train(config, square_side=decoded_side(config, seen, student=student), progress=progress, say=say)
    table = read_table(config, dataset)
    preprocessing, of_student = seen[TEACHER_ROLE].of(dataset), seen[STUDENT_ROLE].of(dataset)
    view = view_config(preprocessing, dataset, data.view_recipe)
    plan = ViewPlan(dataset.train.images, view, config.run.seed, None if data.fresh_views else data.views,
                    data.resident_mib * 2**20)
    digests = dataset.digests() | ({} if table is None else table.digests())
    context = Context(config, dataset, digests, preprocessing, of_student, plan, progress, say, table=table)
    if student:
        check_images(config, images=len(dataset.train))
        config.method.check(images=len(dataset.train), streamed=live(context) and plan.stream is not None)
    return context


def view_config(preprocessing: Preprocessing, dataset: ImageDataset, recipe: str = "brcd") -> ViewConfig:
    """The training views of a data set under a recipe; they are flipped where that leaves an image what it is."""
    flip = {} if dataset.flip else {"flip": 0.0}
    return ViewConfig(size=preprocessing.size, mean=preprocessing.mean, std=preprocessing.std, **{**RECIPES[recipe], **flip})


def live(context: Context) -> bool:
    """Whether the student encodes the views of each step anew."""
    return context.config.student.train_backbone or context.plan.kept is None
