"""The targets of the project's speed, and what a machine's results say of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results import Row, rows_of


@dataclasses.dataclass(frozen=True)
class Target:
    """A ratio that is to be reached.

    Attributes:
        what, against: the two sides in words. suite: where both are measured.
        ours: (case, contender). theirs: (case, contenders); the best of those that were measured counts.
        least: the ratio. quantity: "speed" (items a second, ours over theirs) or "memory" (peak bytes, theirs over ours).
    """

    what: str
    against: str
    suite: str
    ours: tuple[str, str]
    theirs: tuple[str, tuple[str, ...]]
    least: float
    quantity: str = "speed"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A target beside what was measured; `ratio` is None where a side is missing, and `note` then says why.

    `low` and `high` are the ratio between the quartiles of both sides, the unfavourable and the favourable way round.
    """

    target: Target
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    ours: Row | None = None
    theirs: Row | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where it was not measured."""
        return None if self.ratio is None else self.ratio >= self.target.least


JAX = "jax_brcd"
PUBLISHED = "PyTorch, published style"
COMPILED_LOSS = ("PyTorch, matrix products, compiled",)
COMPILED_FP32 = ("PyTorch fp32, compiled",)
EAGER_OR_COMPILED = ("PyTorch, eager", "PyTorch, compiled")
PER_IMAGE = ("torchvision v2, workers", "torchvision v2, threads", "torchvision v2, published style")

TARGETS = (
    Target("BRCD loss + gradient, 64 images, 64 bits", "published style in PyTorch", "loss",
           ("64 images, 64 bits", JAX), ("64 images, 64 bits", (PUBLISHED,)), 10),
    Target("BRCD loss + gradient, 1,024 images, 64 bits", "PyTorch as matrix products, compiled", "loss",
           ("1,024 images, 64 bits", JAX), ("1,024 images, 64 bits", COMPILED_LOSS), 1.5),
    Target("its peak memory, 1,024 images, 64 bits", "published style in PyTorch", "loss",
           ("1,024 images, 64 bits", JAX), ("1,024 images, 64 bits", (PUBLISHED,)), 20, quantity="memory"),
    *(Target(f"augmentation, {case}", "torchvision v2, per image, at its best", "augment", (case, JAX), (case, PER_IMAGE), 2)
      for case in ("32 to 32 pixels", "32 to 224 pixels", "256 to 224 pixels")),
    Target("frozen-backbone training from kept views", "the same run with fresh views", "train_step",
           ("heads, kept views", JAX), ("heads, fresh views at 32 pixels", (JAX,)), 200),
    Target("whole student under BRCD, published views, 32 pixels", "PyTorch at its best", "train_step",
           ("whole student at 32 pixels", JAX), ("whole student at 32 pixels", ("PyTorch, best", PUBLISHED)), 2.5),
    Target("whole student, resnet18 at 32 pixels, one cheap view", "the same in eager PyTorch", "whole_step",
           ("resnet18 at 32 pixels", "jax_brcd fp32"), ("resnet18 at 32 pixels", ("PyTorch fp32, eager",)), 1),
    *(Target(f"whole student, {student} at 224 pixels, float32", "PyTorch float32 at its best", "whole_step",
             (f"{student} at 224 pixels", "jax_brcd fp32"),
             (f"{student} at 224 pixels", ("PyTorch fp32, eager", "PyTorch fp32, compiled")), 0.8)
      for student in ("resnet18", "efficientnet_b0")),
    Target("CIFAR-10 experiment, 400 epochs, to the final mAP", "torch_ref, published style", "end_to_end",
           ("CIFAR-10, 400 epochs", JAX), ("CIFAR-10, 400 epochs", ("torch_ref, published style",)), 20),
    Target("encode vit_b_16, float32", "compiled PyTorch float32", "encode",
           ("vit_b_16", "jax_brcd fp32"), ("vit_b_16", COMPILED_FP32), 0.9),
    Target("encode resnet18 at 224 pixels, float32", "compiled PyTorch float32", "encode",
           ("resnet18", "jax_brcd fp32"), ("resnet18", COMPILED_FP32), 0.7),
    *(Target(f"exact search, {case}, 1,000,000 codes of 64 bits", "faiss IndexBinaryFlat, one thread", "search",
             (f"{case}, 1,000,000 codes", JAX), (f"{case}, 1,000,000 codes", ("faiss, one thread",)), least)
      for case, least in (("1 query", 2 / 3), ("1,000 queries", 1))),
    *(Target(f"exact search in 10,000 clusters, {queries}, 10,000,000 codes of 64 bits", "the flat scan", "multi_index",
             (f"{case}, k 10: 10,000 clusters, 10% flipped, 10,000,000 codes", "jax_brcd, multi_index"),
             (f"{case}, k 10: 10,000 clusters, 10% flipped, 10,000,000 codes", ("flat scan, NumPy or XLA",)), 5)
      for queries, case in (("1 query", "one at a time"), ("1,000 queries", "1,000 at once"))),
    Target("mAP@1000, 5,000 queries, 50,000 codes of 64 bits", "published NumPy loop", "evaluate",
           ("5,000 queries, 50,000 codes", JAX), ("5,000 queries, 50,000 codes", ("NumPy, published style",)), 6),
    *(Target(f"encode one image, {student}, ONNX Runtime", "PyTorch at its best", "latency",
             (f"student {student}, encode", "ONNX Runtime fp32"), (f"student {student}, encode", EAGER_OR_COMPILED), 1.1)
      for student in ("resnet18", "efficientnet_b0")),
    Target("encode one image, resnet18 in int8", "the teacher vit_b_16, PyTorch at its best", "latency",
           ("student resnet18, encode", "ONNX Runtime int8"), ("teacher vit_b_16, encode", EAGER_OR_COMPILED), 15),
)


def verdicts(results: Mapping[str, Any], targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """What a machine's results say of each target."""
    return [judge(target, rows_of(results, target.suite), missing_note(results, target)) for target in targets]


def judge(target: Target, rows: Sequence[Row], missing: str = "not measured") -> Verdict:
    """The verdict on one target from the rows of its suite; `missing` is the note where a side is not among them."""
    value = SIDES[target.quantity]
    measured = {(row.case, row.contender): row for row in rows if value(row) is not None}
    ours = measured.get(target.ours)
    case, names = target.theirs
    theirs = [measured[case, name] for name in names if (case, name) in measured]
    if ours is None or not theirs:
        return Verdict(target, note=missing)
    best = min(theirs, key=value)
    note = "; ".join(dict.fromkeys(row.note for row in (ours, best) if row.note))
    low, high = (value(best, a) / value(ours, b) for a, b in (("low", "high"), ("high", "low")))
    return Verdict(target, value(best) / value(ours), low, high, ours, best, note)


def _seconds_an_item(row: Row, quantile: str = "median") -> float | None:
    return row.seconds and getattr(row.seconds, quantile) / (row.items or 1)


def _peak(row: Row, quantile: str = "median") -> float | None:
    return row.peak_bytes and float(row.peak_bytes)


SIDES = {"speed": _seconds_an_item, "memory": _peak}  # less is better on both


def missing_note(results: Mapping[str, Any], target: Target) -> str:
    """Why a target's suite lacks one of its sides."""
    if target.suite not in results["suites"]:
        return "not measured"
    reasons = [f"{skip['case']}: {skip['reason']}" for skip in results["suites"][target.suite]["skipped"]]
    return "; ".join(reasons) or "not among the sizes that were measured"
