"""The README's CIFAR-10 experiment at the published 400 epochs: seconds to the final mAP, jax_brcd and torch_ref.

Both totals are put together from parts that are timed in turns: a part's seconds times how often the experiment does
it. Without --quick, and with --data-dir and --weights-dir, jax_brcd's run is also made whole, into an empty cache, and its
own seconds stand in place of the projection. torch_ref's stay projected: it would run for hours.
"""

import dataclasses
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks import evaluate
from benchmarks.results import Row, Skipped, measure
from benchmarks.suite import Settings, Suite
from benchmarks.timing import Contender, Measurement
from benchmarks.training import (
    BATCH,
    BITS,
    PIXELS,
    STUDENT,
    TEACHER,
    TorchEpochs,
    jax_student,
    jax_teacher,
    random_images,
)
from jax_brcd.data import cifar10
from jax_brcd.models import HashModel, create_hash_model
from jax_brcd.models.kept import head_codes
from jax_brcd.retrieval import mean_average_precision
from jax_brcd.retrieval.searches import SEARCHES
from jax_brcd.runtime.files import read_json
from jax_brcd.settings.command_line import run_command
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.views.augmentation import random_views as jax_views
from jax_brcd.views.derivations import view_keys
from jax_brcd.views.encoding import ENCODING_BATCH, encode_batch
from torch_ref import retrieval as reference_retrieval
from torch_ref.augment import evaluation_view, random_views, training_view
from torch_ref.losses import cibhash_loss, hash_codes
from torch_ref.models import create_hash_model as create_torch_model
from torch_ref.models import head_name

OURS, THEIRS = "jax_brcd", "torch_ref, published style"
CASE = "CIFAR-10, 400 epochs"
WEIGHTS = {"teacher": "vit_lite_7_4.safetensors", "student": "resnet18_32.safetensors"}
TRAIN, DATABASE, QUERIES, KEPT_VIEWS, K = 5_000, 50_000, 5_000, 16, 1_000
TEACHER_EPOCHS, EPOCHS, INTERVAL = 60, 400, 10
STEPS, VALIDATIONS = -(-TRAIN // BATCH), EPOCHS // INTERVAL
STILL = TRAIN + DATABASE + 2 * QUERIES  # images that each encoder of ours sees un-augmented, once


@dataclasses.dataclass(frozen=True)
class Part:
    """Work that the experiment does again and again.

    Attributes:
        call: does `items` of it. total: how many the experiment does.
    """

    name: str
    contender: str
    call: Callable[[], object]
    items: int
    total: int
    unit: str
    compiled: bool = False


def our_parts(steps: int, queries: int) -> list[Part]:
    """What the run with kept views consists of."""
    teacher, student = create_hash_model(TEACHER, BITS), create_hash_model(STUDENT, BITS)
    images, rows = random_images(ENCODING_BATCH), np.arange(ENCODING_BATCH, dtype=np.int32)
    features = np.random.default_rng(0).normal(size=(DATABASE, student.backbone.features)).astype(np.float32)
    parts = []
    for role, model in (("teacher", teacher), ("student", student)):
        parts += [
            Part(f"encode with the {role}", OURS, still_call(model, images), len(images), STILL, "images", True),
            Part(f"encode views with the {role}", OURS, views_call(model, images, rows), len(images), KEPT_VIEWS * TRAIN,
                 "images", True)]
    return [*parts,
            Part("train the teacher's head", OURS, jax_teacher(steps * BATCH), steps, TEACHER_EPOCHS * STEPS, "steps", True),
            Part("train the student's head", OURS, jax_student(steps * BATCH), steps, EPOCHS * STEPS, "steps", True),
            Part("codes of kept features", OURS, lambda: head_codes(student, features), len(features),
                 VALIDATIONS * (DATABASE + QUERIES) + 3 * (DATABASE + QUERIES), "images", True),
            Part("mAP", OURS, search_call(mean_average_precision, queries), queries, searches() * QUERIES, "queries")]


def their_parts(steps: int, images: int, queries: int) -> list[Part]:
    """What torch_ref's run consists of: new views each epoch, both encoders run for each of them."""
    teacher, student = create_torch_model(TEACHER, BITS).eval(), create_torch_model(STUDENT, BITS).eval()
    pixels = torch.from_numpy(np.ascontiguousarray(random_images(images).transpose(0, 3, 1, 2)))
    return [
        Part("train the teacher's head", THEIRS, torch_teacher(steps), steps, TEACHER_EPOCHS * STEPS, "steps"),
        Part("train the student's head", THEIRS, TorchEpochs(steps * BATCH, best=False, fresh=True), steps, EPOCHS * STEPS,
             "steps"),
        Part("encode with the teacher", THEIRS, torch_still_call(teacher, pixels), images, TRAIN + 2 * DATABASE + QUERIES,
             "images"),
        Part("encode with the student", THEIRS, torch_still_call(student, pixels), images,
             (VALIDATIONS + 1) * (DATABASE + QUERIES) + QUERIES, "images"),
        Part("mAP", THEIRS, search_call(reference_retrieval.mean_average_precision, queries), queries, searches() * QUERIES,
             "queries")]


def searches() -> int:
    """Searches of the database by 5,000 queries: two a validation, three at the end."""
    return 2 * VALIDATIONS + 3


def still_call(model: HashModel, images: np.ndarray) -> Callable[[], object]:
    """Features of un-augmented images."""
    graph, state = nnx.split(model.backbone)
    return lambda: np.asarray(encode_batch(graph, state, images, size=PIXELS))


def views_call(model: HashModel, images: np.ndarray, rows: np.ndarray) -> Callable[[], object]:
    """Features of one view of each image."""
    graph, state = nnx.split(model.backbone)
    keys = view_keys(jax.random.key(0), jnp.asarray(rows), jnp.zeros(len(rows), jnp.int32))
    encode = jax.jit(lambda state, images: nnx.merge(graph, state)(jax_views(keys, images, ViewConfig(size=PIXELS))))
    return lambda: np.asarray(encode(state, images))


def torch_still_call(model: torch.nn.Module, pixels: torch.Tensor) -> Callable[[], object]:
    """Codes of un-augmented images."""
    view = evaluation_view(PIXELS)
    return torch.inference_mode()(lambda: hash_codes(model(view(pixels))))


def torch_teacher(steps: int) -> Callable[[], object]:
    """Steps of torch_ref's teacher: two new views of 64 images, the frozen backbone, CIBHash on the hash head."""
    model = create_torch_model(TEACHER, BITS).eval().requires_grad_(False)
    head = getattr(model, head_name(model)).requires_grad_(True)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-4)
    view = training_view(PIXELS, True)
    images = torch.from_numpy(np.ascontiguousarray(random_images(BATCH).transpose(0, 3, 1, 2)))

    def call() -> None:
        for _ in range(steps):
            loss = cibhash_loss(model(random_views(images, view)), model(random_views(images, view)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return call


def search_call(function: Callable[..., float], queries: int) -> Callable[[], object]:
    """mAP@1000 of some queries in the whole database."""
    query_codes, codes, query_labels, labels = evaluate.search_of(queries, DATABASE)
    return lambda: function(query_codes, codes, query_labels, labels, K)


def measure_parts(parts: list[Part], settings: Settings) -> Iterator[Row]:
    """A row a part; parts of one name are timed in turns."""
    for name in dict.fromkeys(part.name for part in parts):
        shared = [part for part in parts if part.name == name]
        # Contenders of a part do different amounts of it, so a call's seconds are brought to the larger amount
        most = max(part.items for part in shared)
        contenders = [Contender(part.contender, part.call, part.compiled, share=part.items / most) for part in shared]
        yield from measure(f"part: {name}", contenders, items=most, unit=shared[0].unit, samples=settings.samples,
                           budget=settings.case_seconds)


def project(parts: list[Part], rows: list[Row], contender: str, *, note: str) -> Row:
    """The experiment's seconds from those of its parts, compilation once each."""
    measured = {(row.case, row.contender): row for row in rows}

    def total(quantile: str) -> float:
        seconds = 0.0
        for part in parts:
            row = measured[f"part: {part.name}", part.contender]
            if part.contender == contender:
                seconds += getattr(row.seconds, quantile) * part.total / row.items + (row.compile_seconds or 0.0)
        return seconds

    seconds = Measurement((total("low"), total("median"), total("high")), total("median"))
    return Row(CASE, contender, seconds, unit="runs", note=note)


def whole_run(settings: Settings) -> Row | Skipped:
    """jax_brcd's run from its start to its report, in a process of its own, into an empty cache."""
    missing = what_is_missing(settings)
    if missing:
        return Skipped(f"{CASE}, jax_brcd's whole run", missing)
    with tempfile.TemporaryDirectory(prefix="end-to-end-") as folder:
        out = pathlib.Path(folder) / "run"
        command = [sys.executable, "-m", "jax_brcd.distill", "--dataset", "cifar10", "--data-dir", settings.data_dir,
                   "--teacher", TEACHER, "--teacher-weights", settings.weights_dir / WEIGHTS["teacher"],
                   "--student", STUDENT, "--student-weights", settings.weights_dir / WEIGHTS["student"],
                   "--bits", BITS, "--views", KEPT_VIEWS, "--epochs", EPOCHS, "--patience", EPOCHS,
                   "--out", out, "--cache-dir", f"{folder}/cache"]
        began = time.perf_counter()
        run = subprocess.run([str(word) for word in command], stdout=subprocess.DEVNULL, check=False)
        seconds = time.perf_counter() - began
        if run.returncode:
            return Skipped(f"{CASE}, jax_brcd's whole run", f"failed with status {run.returncode}")
        student = read_json(out / "metrics.json")["student"]
    scores = ", ".join(f"{search} mAP@{K} {student[search]['map']:.4f}" for search in SEARCHES)
    return Row(CASE, OURS, Measurement((seconds,), seconds), unit="runs", note=f"jax_brcd's run was made whole, {scores}")


def what_is_missing(settings: Settings) -> str | None:
    """Why the whole run cannot be made."""
    if settings.data_dir is None:
        return "needs --data-dir with CIFAR-10 in its binary layout"
    folder = settings.data_dir.expanduser()
    if not any((place / cifar10.NAMES_FILE).is_file() for place in (folder, folder / cifar10.FOLDER)):
        return f"{folder} does not hold CIFAR-10 in its binary layout"
    absent = [name for name in WEIGHTS.values() if not (settings.weights_dir / name).is_file()]
    return f"{settings.weights_dir} does not hold {', '.join(absent)}" if absent else None


def measure_end_to_end(settings: Settings, *, steps: int = STEPS, torch_steps: int = 2, images: int = 256,
                       queries: int = 100) -> Iterator[Row | Skipped]:
    """The parts, then both totals."""
    parts = [*our_parts(steps, 10 * queries), *their_parts(torch_steps, images, queries)]
    rows = list(measure_parts(parts, settings))
    yield from rows
    if settings.quick:
        ours = Skipped(f"{CASE}, jax_brcd's whole run", "takes longer than a quick run may")
    else:
        ours = whole_run(settings)
    if isinstance(ours, Skipped):
        yield ours
        ours = project(parts, rows, OURS, note="jax_brcd projected from its own parts, views kept, caches empty")
    yield ours
    yield project(parts, rows, THEIRS, note=f"torch_ref projected from its own measured steps ({torch_steps} a sample), "
                  "encodings and searches, new views each epoch")


SUITE = Suite("end_to_end", __doc__, measure_end_to_end)

if __name__ == "__main__":
    run_command(SUITE.main)
