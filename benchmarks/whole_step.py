"""Steps of students that are trained whole under the recipe of docs/training.md: one cheap view, the teacher's logits, AdamW.

Their time, and on the CPU the memory that steps need beyond images, weights and moments.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import compiled
from benchmarks.machine import has_bfloat16
from benchmarks.memory import peaks_in_children
from benchmarks.results import Row, Skipped, measure
from benchmarks.suite import Settings, Suite
from benchmarks.timing import Contender
from benchmarks.training import BITS, JaxEpochs, noisy_codes
from jax_brcd.methods import TeacherKnowledge, create_method
from jax_brcd.models import create_hash_model
from jax_brcd.settings.command_line import run_command
from jax_brcd.settings.presets import PRESETS
from jax_brcd.settings.recipes import RECIPES
from jax_brcd.settings.stages import LearningConfig
from jax_brcd.stages.student import student_stage
from jax_brcd.training.loop import backbone_scans
from jax_brcd.training.schedule import Schedule
from jax_brcd.views.augmentation import IMAGENET_MEAN, IMAGENET_STD, ViewConfig
from jax_brcd.views.batches import epoch_batches
from jax_brcd.views.source import Source
from jax_brcd.views.sources import PixelViews, StillTeacher
from torch_ref.models import create_hash_model as create_torch_model

OURS, OURS_BF16 = "jax_brcd fp32", "jax_brcd bf16"
EAGER, COMPILED, COMPILED_BF16 = "PyTorch fp32, eager", "PyTorch fp32, compiled", "PyTorch bf16, compiled"
PRESET = PRESETS["cifar10-32-whole"]
RATE = PRESET["lr"]
LEARNING = LearningConfig(**{field.name: PRESET[field.name] for field in dataclasses.fields(LearningConfig)
                             if field.name in PRESET})


@dataclasses.dataclass(frozen=True)
class Case:
    """A student, its images, and the steps of an epoch, which is one call."""

    student: str
    pixels: int
    batch: int
    steps: int

    @property
    def name(self) -> str:
        """What the results call it."""
        return f"{self.student} at {self.pixels} pixels"

    @property
    def images(self) -> int:
        """Images of an epoch."""
        return self.batch * self.steps

    def pixels_of_images(self) -> np.ndarray:
        """Random images, uint8."""
        return np.random.default_rng(0).integers(0, 256, (self.images, self.pixels, self.pixels, 3), dtype=np.uint8)

    def targets(self) -> np.ndarray:
        """Logits of a teacher."""
        return noisy_codes(self.images, BITS) * np.random.default_rng(3).random((self.images, BITS), np.float32)


QUICK = (Case("resnet18", 32, 256, 2),)
FULL = (Case("resnet18", 32, 256, 8), Case("resnet18", 224, 32, 2), Case("efficientnet_b0", 224, 32, 2))
ON_ACCELERATOR = (Case("resnet18", 32, 256, 96), Case("resnet18", 224, 256, 16), Case("efficientnet_b0", 224, 256, 16))


def jax_epochs(case: Case, dtype: str) -> JaxEpochs:
    """The recipe's stage as a run makes it."""
    student = create_hash_model(case.student, BITS, dtype=jnp.dtype(dtype))
    method, targets = create_method(PRESET["method"]), case.targets()
    views = PixelViews(jnp.asarray(case.pixels_of_images()), jax.random.key(0),
                       ViewConfig(size=case.pixels, **RECIPES[PRESET["view_recipe"]]), True)
    teacher = StillTeacher(jnp.asarray(np.sign(targets), jnp.int8), jnp.asarray(targets))
    return JaxEpochs(*student_stage(
        student, teacher, method, TeacherKnowledge.of(np.sign(targets), method.needs, seed=0),
        source=Source(views, case.images, None), schedule=Schedule(case.batch, PRESET["epochs"], 0, scan=backbone_scans()),
        train_backbone=True, learning_rate=RATE, temperature=0.3, kl_weight=0.0, method_seed=0, learning=LEARNING))


class TorchEpochs:
    """The same epochs as one would write them in PyTorch; `best` is compiled and channels_last, and in bfloat16 if `half`."""

    def __init__(self, case: Case, *, best: bool, half: bool = False):
        self.case, self.half, self.epoch = case, half, 0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = create_torch_model(case.student, BITS).train().to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, fused=best)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, RATE, total_steps=10**6)
        self.images = torch.from_numpy(case.pixels_of_images().transpose(0, 3, 1, 2).copy()).to(self.device)
        self.targets = torch.from_numpy(case.targets()).to(self.device)
        self.mean, self.std = (torch.tensor(each, device=self.device)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
        self.encode: Callable[[Tensor], Tensor] = self.model
        if best:
            self.model.to(memory_format=torch.channels_last)
            self.encode = torch.compile(self.model, dynamic=False)

    def views(self, images: Tensor) -> Tensor:
        """A zero-padded random crop of each image, flipped by chance, as a batch that is channels last."""
        count, _, side, _ = images.shape
        padding = side // 8
        padded = F.pad(images, (padding, padding, padding, padding))
        rows, columns = (torch.randint(0, 2 * padding + 1, (count, 1), device=self.device)
                         + torch.arange(side, device=self.device) for _ in range(2))
        columns = torch.where(torch.rand(count, 1, device=self.device) < 0.5, columns.flip(1), columns)
        first = torch.arange(count, device=self.device)[:, None, None]
        cropped = padded.permute(0, 2, 3, 1)[first, rows[:, :, None], columns[:, None, :]]
        return (cropped.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std

    def __call__(self) -> list[float]:
        """Runs an epoch to its end; returns the loss of every step."""
        batches = epoch_batches(self.case.images, self.case.batch, epoch=self.epoch, seed=0, views=None)
        self.epoch += 1
        losses = []
        for indices in batches.indices:
            chosen = torch.from_numpy(np.asarray(indices)).long().to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                logits = self.encode(self.views(self.images[chosen]))
            loss = F.mse_loss(logits.float(), self.targets[chosen])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()


Epochs = JaxEpochs | TorchEpochs
BUILDERS: dict[str, Callable[[Case], Epochs]] = {
    OURS: lambda case: jax_epochs(case, "float32"),
    OURS_BF16: lambda case: jax_epochs(case, "bfloat16"),
    EAGER: lambda case: TorchEpochs(case, best=False),
    COMPILED: lambda case: TorchEpochs(case, best=True),
    COMPILED_BF16: lambda case: TorchEpochs(case, best=True, half=True),
}


def able() -> list[str]:
    """Who can take part here: in half precision where the machine computes in it, compiled PyTorch where it compiles."""
    unable = set() if has_bfloat16() or torch.cuda.is_available() else {OURS_BF16, COMPILED_BF16}
    unable |= {COMPILED, COMPILED_BF16} if compiled.why_not() else set()
    return [name for name in BUILDERS if name not in unable]


def memory_call(name: str, *case: str) -> Epochs:
    """What the child process that measures memory runs."""
    student, *sizes = case
    return BUILDERS[name](Case(student, *map(int, sizes)))


def measure_whole_step(settings: Settings, cases: tuple[Case, ...] | None = None) -> Iterator[Row | Skipped]:
    """Every case in turn."""
    if compiled.why_not():
        yield Skipped("compiled PyTorch", compiled.why_not())
    on_accelerator = torch.cuda.is_available() and jax.default_backend() != "cpu"
    for case in cases or (QUICK if settings.quick else ON_ACCELERATOR if on_accelerator else FULL):
        measured = () if settings.quick or on_accelerator else able()
        peaks, skipped = peaks_in_children("whole_step", measured, case.name, *dataclasses.astuple(case))
        yield from skipped
        contenders = [Contender(name, BUILDERS[name](case), name != EAGER) for name in able()]
        yield from measure(case.name, contenders, items=case.images, unit="images", peaks=peaks, samples=settings.samples,
                           budget=settings.case_seconds)


SUITE = Suite("whole_step", __doc__, measure_whole_step)

if __name__ == "__main__":
    run_command(SUITE.main)
