"""Training steps of 64 images and 64 bits: hash heads on kept views, on fresh views, and a whole student."""

import dataclasses
from collections.abc import Callable, Iterator

from benchmarks import compiled
from benchmarks.results import Row, Skipped, measure
from benchmarks.suite import Settings, Suite
from benchmarks.timing import Contender
from benchmarks.training import BATCH, JaxEpochs, TorchEpochs, jax_student
from jax_brcd.settings.command_line import run_command

OURS, BEST, PUBLISHED = "jax_brcd", "PyTorch, best", "PyTorch, published style"


@dataclasses.dataclass(frozen=True)
class Case:
    """What learns from what; an epoch, which is one call, has `steps` steps."""

    name: str
    steps: int
    fresh: bool = False
    train_backbone: bool = False


# Quick runs leave out the whole student, whose gradient PyTorch compiles for minutes
QUICK = (Case("heads, kept views", 79), Case("heads, fresh views at 32 pixels", 2, fresh=True))
FULL = (Case("heads, kept views", 79), Case("heads, fresh views at 32 pixels", 8, fresh=True),
        Case("whole student at 32 pixels", 8, train_backbone=True))


def contenders_of(case: Case) -> list[Contender]:
    """The contenders of a case."""
    images, kind = case.steps * BATCH, {"fresh": case.fresh, "train_backbone": case.train_backbone}
    views = " and views on a thread for each core" if case.fresh or case.train_backbone else ""
    theirs = "loss and encoders" if case.fresh or case.train_backbone else "loss and head"
    calls: list[tuple[str, Callable[[], JaxEpochs | TorchEpochs], bool, str]] = [
        (OURS, lambda: jax_student(images, **kind), True, ""),
        (BEST, lambda: TorchEpochs(images, best=True, **kind), compiled.why_not() is None,
         f"PyTorch best: {theirs} compiled{views}"),
        (PUBLISHED, lambda: TorchEpochs(images, best=False, **kind), False, ""),
    ]
    return [Contender(name, build(), is_compiled, note=note) for name, build, is_compiled, note in calls]


def measure_train_step(settings: Settings, cases: tuple[Case, ...] | None = None) -> Iterator[Row | Skipped]:
    """Every case in turn."""
    if compiled.why_not():
        yield Skipped("compiled PyTorch", compiled.why_not())
    for case in cases or (QUICK if settings.quick else FULL):
        yield from measure(case.name, contenders_of(case), items=case.steps * BATCH, unit="images",
                           samples=settings.samples, budget=settings.case_seconds)


SUITE = Suite("train_step", __doc__, measure_train_step)

if __name__ == "__main__":
    run_command(SUITE.main)
