"""Training steps of both frameworks on the same shapes, as calls to be timed, with the models of the README's experiment."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from benchmarks import compiled, published
from jax_brcd.methods import TeacherKnowledge, create_method
from jax_brcd.models import HashModel, create_hash_model
from jax_brcd.runtime.workers import cores
from jax_brcd.stages.student import student_stage
from jax_brcd.stages.teacher import teacher_stage
from jax_brcd.training.loop import Stage, backbone_scans, start, stepped_epoch, train_epoch
from jax_brcd.training.schedule import Schedule
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.views.batches import epoch_batches
from jax_brcd.views.source import Source
from jax_brcd.views.sources import KeptFeatures, KeptTeacher, LiveTeacher, PixelViews
from torch_ref.augment import random_views, training_view
from torch_ref.losses import hash_codes
from torch_ref.models import create_hash_model as create_torch_model
from torch_ref.models import head_name

TEACHER, STUDENT, PIXELS, BITS, BATCH, VIEWS, CLUSTERS = "vit_lite_7_4", "resnet18", 32, 64, 64, 16, 10
TEMPERATURE, KL_WEIGHT, LEARNING_RATE = 0.3, 0.001, 1e-3


def random_images(count: int) -> np.ndarray:
    """Images of 32 pixels, uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, PIXELS, PIXELS, 3), dtype=np.uint8)


def noisy_codes(*shape: int) -> np.ndarray:
    """Codes of ten clusters with a fifth of the bits wrong; the cluster goes by the second axis from the end."""
    draw = np.random.default_rng(1)
    means = draw.choice((-1.0, 1.0), (CLUSTERS, BITS))[np.arange(shape[-2]) % CLUSTERS]
    return (means * draw.choice((-1.0, 1.0), shape, p=(0.2, 0.8))).astype(np.float32)


class JaxEpochs:
    """Epochs of a stage, one a call, each going on from the state that the last one left."""

    def __init__(self, stage: Stage, parameters: Any, carry: Any):
        self.stage, self.state, self.epoch = stage, start(stage, parameters, carry), 0

    def __call__(self) -> Any:
        """Runs an epoch to its end; returns its metrics."""
        stage = self.stage
        source, schedule = stage.source, stage.schedule
        batches = epoch_batches(source.n_images, schedule.batch_size, epoch=self.epoch, seed=schedule.seed,
                                views=source.kept_views)
        run = train_epoch if schedule.scan else stepped_epoch
        self.state, metrics = run(stage.task.loss, stage.task.optimizer, self.state, stage.task.constants, batches,
                                  jax.random.fold_in(jax.random.key(0), self.epoch))
        self.epoch += 1
        return jax.device_get(metrics)


def kept_features(model: HashModel, images: int) -> KeptFeatures:
    """Random features in place of those of kept views; the work is the same."""
    features = np.random.default_rng(2).normal(size=(VIEWS, images, model.backbone.features)).astype(ml_dtypes.bfloat16)
    return KeptFeatures(jnp.asarray(features))


def stage_settings() -> dict[str, Any]:
    """What the stages have in common."""
    return {"learning_rate": LEARNING_RATE, "temperature": TEMPERATURE, "kl_weight": KL_WEIGHT}


def jax_teacher(images: int) -> JaxEpochs:
    """The teacher's hash head on kept views."""
    teacher = create_hash_model(TEACHER, BITS)
    return JaxEpochs(*teacher_stage(teacher, Source(kept_features(teacher, images), images, VIEWS), Schedule(BATCH, 1, 0),
                                    **stage_settings()))


def jax_student(images: int, *, fresh: bool = False, train_backbone: bool = False) -> JaxEpochs:
    """The student under BRCD: its head on kept views, its head on `fresh` views of both encoders, or the whole of it."""
    teacher, student = create_hash_model(TEACHER, BITS), create_hash_model(STUDENT, BITS)
    pixels = jnp.asarray(random_images(images)) if fresh or train_backbone else None

    def pixel_views(train: bool) -> PixelViews:
        return PixelViews(pixels, jax.random.key(0), ViewConfig(size=PIXELS), train)

    student_views = kept_features(student, images) if pixels is None else pixel_views(True)
    source = (LiveTeacher.of(teacher, pixel_views(False)) if fresh
              else KeptTeacher(jnp.asarray(noisy_codes(VIEWS, images, BITS), jnp.int8)))
    method = create_method("brcd", clusters=CLUSTERS, cluster_restarts=1)
    return JaxEpochs(*student_stage(
        student, source, method, TeacherKnowledge.of(noisy_codes(images, BITS), method.needs, seed=0),
        source=Source(student_views, images, None if fresh else VIEWS),
        schedule=Schedule(BATCH, 1, 0, scan=backbone_scans() or not (fresh or train_backbone)), train_backbone=train_backbone,
        method_seed=0, **stage_settings()))


class TorchEpochs:
    """The same epochs in PyTorch.

    Args:
        images: in an epoch. best: matrix products, channels_last, compiled where that works, views on all cores; else the
            published style. fresh, train_backbone: as `jax_student`.
    """

    def __init__(self, images: int, *, best: bool, fresh: bool = False, train_backbone: bool = False):
        self.images, self.fresh, self.pixels_needed = images, fresh, fresh or train_backbone
        self.teacher = create_torch_model(TEACHER, BITS).eval().requires_grad_(False)
        self.student = create_torch_model(STUDENT, BITS).train().requires_grad_(train_backbone)
        head = getattr(self.student, head_name(self.student)).requires_grad_(True)
        learning = self.student if train_backbone else head
        self.optimizer = torch.optim.Adam(learning.parameters(), lr=LEARNING_RATE)
        self.encode, self.encode_teacher, self.objective = self.student, self.teacher, published.objective
        self.view, self.views_of = training_view(PIXELS, True), random_views
        if best:
            self._use_best(head)
        elif not self.pixels_needed:
            self.encode = head
        self.pixels = torch.from_numpy(np.ascontiguousarray(random_images(images).transpose(0, 3, 1, 2)))
        draw = torch.Generator().manual_seed(0)
        self.features = torch.randn(VIEWS, images, head.in_features, generator=draw)
        self.codes = torch.from_numpy(noisy_codes(VIEWS, images, BITS))
        self.clusters = torch.arange(images) % CLUSTERS
        self.centers = torch.from_numpy(0.6 * noisy_codes(CLUSTERS, BITS))
        self.mask = torch.ones(CLUSTERS, BITS)
        self.epoch = 0

    def _use_best(self, head: torch.nn.Module) -> None:
        if self.pixels_needed:
            self.student.to(memory_format=torch.channels_last)
            pool = ThreadPoolExecutor(cores())
            self.views_of = lambda images, view: torch.stack(list(pool.map(view, images)))
        self.objective, encode = compiled.objective, self.student if self.pixels_needed else head
        self.encode = encode
        if compiled.why_not() is None:
            self.objective, self.encode = compiled.compile(compiled.objective), torch.compile(encode, dynamic=False)
            self.encode_teacher = torch.compile(self.teacher, dynamic=False)

    def _logits(self, indices: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's logits of a view."""
        if not self.pixels_needed:
            return self.encode(self.features[numbers, indices]), self.codes[numbers, indices]
        pixels = self.views_of(self.pixels[indices], self.view)
        if not self.fresh:
            return self.encode(pixels), self.codes[numbers, indices]
        with torch.no_grad():
            teacher = self.encode_teacher(pixels)
        return self.encode(pixels), teacher

    def __call__(self) -> list[float]:
        """Runs an epoch to its end; returns the loss of every step."""
        batches = epoch_batches(self.images, BATCH, epoch=self.epoch, seed=0, views=VIEWS)
        self.epoch += 1
        losses = []
        for step in range(len(batches.indices)):
            indices, views_i, views_j = (torch.from_numpy(part[step]).long()
                                         for part in (batches.indices, batches.views_i, batches.views_j))
            (student_i, teacher_i), (student_j, teacher_j) = self._logits(indices, views_i), self._logits(indices, views_j)
            loss = self.objective(student_i, student_j, hash_codes(teacher_i), hash_codes(teacher_j), self.clusters[indices],
                                  self.centers, self.mask, temperature=TEMPERATURE, kl_weight=KL_WEIGHT)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
        return losses


