"""One query: decode a photo, make it ready, encode it, search a million codes, in every program that an encoder runs in.

Published backbones have random weights, which are as fast as others. A run's encoders have the mAP of each program's bits.
"""

import contextlib
import dataclasses
import functools
import io
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from flax import nnx

from benchmarks import browser, compiled, machine, tables
from benchmarks.encode import jax_call, torch_call
from benchmarks.results import Row, Skipped, measure
from benchmarks.signals import own_signal_stack
from benchmarks.suite import Settings, Suite
from benchmarks.timing import Contender
from jax_brcd.data import ImageDataset
from jax_brcd.encoder import STUDENT, TEACHER, HashEncoder, create_encoder, load
from jax_brcd.export import export
from jax_brcd.export.onnx import ANY_SIZE, SQUARES
from jax_brcd.export.reference import reference_model
from jax_brcd.export.sessions import runner
from jax_brcd.export.trial import of_its_size, resized, squares
from jax_brcd.models import BACKBONES, create_hash_model
from jax_brcd.retrieval import HammingIndex, PackedCodes, mean_average_precision
from jax_brcd.runtime.workers import cores
from jax_brcd.settings.command_line import run_command
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.evaluation import load_for_evaluation
from jax_brcd.stages.provenance import known_settings
from jax_brcd.views.fitting import fitted_view
from torch_ref.augment import evaluation_view

BITS, K, CODES = 64, 10, 1_000_000
PHOTO = (375, 500)  # height and width of the query
CALIBRATION = 64  # images
FLOAT, EAGER, COMPILED = "jax_brcd", "PyTorch, eager", "PyTorch, compiled"
ONNX, INT8, OPENVINO, OPENVINO_INT8 = "ONNX Runtime fp32", "ONNX Runtime int8", "OpenVINO fp32", "OpenVINO int8"
BROWSER, BROWSER_INT8 = "browser fp32", "browser int8"
QUERIES, DATABASE, BATCH = 250, 1_250, 50  # images by which each program's mAP is measured, at most
FEW_BITS = 1  # of a code in which float32 programs may differ: PyTorch's resize has other roundings


@dataclasses.dataclass(frozen=True)
class Case:
    """An encoder that is measured, by what it is, and the data set of its run where it is of one."""

    name: str
    encoder: HashEncoder
    dataset: ImageDataset | None = None


def random_case(role: str, backbone: str) -> Case:
    """An encoder with random weights, which is as fast as a trained one."""
    model = create_hash_model(backbone, BITS, rngs=nnx.Rngs(0))
    encoder = create_encoder(model, backbone, BACKBONES[backbone].preprocessing, bits=BITS, role=role)
    return Case(f"{role} {backbone}", encoder)


def cases_of(settings: Settings) -> Iterator[Case]:
    """The published backbones at 224 pixels, and teacher and student of a run where one is told."""
    yield random_case(TEACHER, "vit_b_16")
    yield random_case(STUDENT, "resnet18")
    if not settings.quick:
        yield random_case(STUDENT, "efficientnet_b0")
    for folder in (TEACHER, "student_symmetric") if settings.run else ():
        encoder = load(settings.run / folder)
        dataset, k = load_for_evaluation(create_config(**known_settings(encoder.provenance, None)), [encoder])
        yield Case(f"{encoder.role} {encoder.backbone} of {dataset.name}", encoder, dataclasses.replace(dataset, default_k=k))


def photo(height: int, width: int, seed: int = 0) -> bytes:
    """A file of JPEG, as a camera's in size: blots under noise."""
    from PIL import Image

    draw = np.random.default_rng(seed)
    blots = resized(draw.integers(256, size=(9, 12, 3), dtype=np.uint8), height, width)
    noisy = np.clip(blots + draw.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)
    held = io.BytesIO()
    Image.fromarray(noisy).save(held, "JPEG", quality=90)
    return held.getvalue()


def decode(file: bytes) -> np.ndarray:
    """The pixels of a file, (height, width, 3)."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def database(bits: int, count: int) -> HammingIndex:
    """Random codes, laid out for searching once."""
    return HammingIndex(PackedCodes(np.random.default_rng(0).integers(256, size=(count, -(-bits // 8)), dtype=np.uint8)
                                    & mask(bits), bits))


def mask(bits: int) -> np.ndarray:
    """The bits of a packed code that count."""
    return np.packbits(np.ones(bits, np.uint8))


@dataclasses.dataclass(frozen=True)
class Program:
    """An encoder in one program.

    Attributes:
        name: of the contender. code: the packed code (1, bytes) of a photo's file. codes: packed codes (n, bytes) of uint8
            squares (n, size, size, 3). encode: does it with an image that is ready already. compiled: whether the first call
            compiles. numbers: "float32" or "int8". page: where it is in a browser, which has a clock of its own.
    """

    name: str
    code: Callable[[bytes], np.ndarray]
    codes: Callable[[np.ndarray], np.ndarray]
    encode: Callable[[], Any]
    compiled: bool = False
    numbers: str = "float32"
    page: browser.EncoderPage | None = None

    def query(self, file: bytes, index: HammingIndex) -> float:
        """Finds the codes nearest to a photo's; returns the seconds, in a browser those of the page and of the search."""
        began = time.perf_counter()
        code = PackedCodes(self.code(file), index.bits)
        coded = time.perf_counter()
        index.search(code, K)
        searched = time.perf_counter()
        return searched - coded + (self.page.seconds if self.page else coded - began)


def jax_program(case: Case, square: np.ndarray) -> Program:
    """The encoder itself."""
    of_squares = of_its_size(case.encoder)
    view = np.asarray(fitted_view(square[0], **vars(of_squares.preprocessing)))
    return Program(FLOAT, lambda file: case.encoder.encode(decode(file)).packed,
                   lambda images: of_squares.encode(images).packed, jax_call(case.encoder.model, view), compiled=True)


def torch_program(case: Case, square: np.ndarray, *, compile: bool) -> Program:
    """An encoder in PyTorch at its best: channels last, inference mode, compiled or as it is."""
    seen = case.encoder.preprocessing
    model = reference_model(case.encoder).to(memory_format=torch.channels_last)
    if compile:
        model = compiled.compile(model)

    def planes(pixels: Sequence[np.ndarray], resize: int | None) -> torch.Tensor:
        view = evaluation_view(seen.size, resize, mean=seen.mean, std=seen.std, interpolation=seen.interpolation)
        views = [view(torch.from_numpy(image.transpose(2, 0, 1).copy())) for image in pixels]
        return torch.stack(views).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def codes(images: torch.Tensor) -> np.ndarray:
        return np.packbits(model(images).numpy() > 0, axis=1)

    return Program(COMPILED if compile else EAGER, lambda file: codes(planes([decode(file)], seen.resize)),
                   lambda images: codes(planes(images, None)), torch_call(model, planes(square, None)), compile)


def onnx_program(name: str, folder: pathlib.Path, square: np.ndarray, threads: int) -> Program:
    """The exported files of an encoder in ONNX Runtime; the folder's name says of which numbers."""
    any_size, squared = (runner(folder / file, threads=threads) for file in (ANY_SIZE, SQUARES))
    return Program(name, lambda file: any_size(decode(file))[1], lambda images: squared(images)[1], lambda: squared(square),
                   numbers=folder.name)


def openvino_program(name: str, folder: pathlib.Path, square: np.ndarray, threads: int) -> Program:
    """The same in OpenVINO."""
    import openvino

    told = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}

    @own_signal_stack()
    def model_of(file: str) -> openvino.CompiledModel:
        return openvino.Core().compile_model(folder / file, "CPU", told)

    any_size, squared = map(model_of, (ANY_SIZE, SQUARES))
    return Program(name, lambda file: np.asarray(any_size(decode(file))[1]), lambda images: np.array(squared(images)[1]),
                   lambda: squared(square), numbers=folder.name)


def browser_program(name: str, page: browser.EncoderPage, square: np.ndarray, numbers: str) -> Program:
    """The same in a page, which has the photo's file already."""
    page.codes(square)
    return Program(name, lambda _: page.query(), page.codes, page.encode, numbers=numbers, page=page)


def programs_of(
    case: Case, file: bytes, place: pathlib.Path, threads: int, opened: contextlib.ExitStack, runtime: pathlib.Path | None
) -> Iterator[Program | Skipped]:
    """The encoder, which is exported to `place`, in every program that is installed; pages stay for as long as `opened`."""
    square = squares(case.encoder, [decode(file)])
    yield jax_program(case, square)
    yield torch_program(case, square, compile=False)
    if (reason := compiled.why_not()) is None:
        yield torch_program(case, square, compile=True)
    else:
        yield Skipped(f"{case.name}, compiled PyTorch", reason)
    yield onnx_program(ONNX, place / "float32", square, threads)
    yield onnx_program(INT8, place / "int8", square, threads)
    if machine.installed("openvino"):
        yield openvino_program(OPENVINO, place / "float32", square, threads)
        yield openvino_program(OPENVINO_INT8, place / "int8", square, threads)
    else:
        yield Skipped(f"{case.name}, OpenVINO", "openvino is not installed")
    if (reason := browser.why_not(runtime)) is None:
        chromium = opened.enter_context(browser.chromium())
        for name, numbers in ((BROWSER, "float32"), (BROWSER_INT8, "int8")):
            page = browser.encoder_page(chromium, place / numbers, runtime, file, square.shape[1], threads)
            yield browser_program(name, opened.enter_context(page), square, numbers)
    else:
        yield Skipped(f"{case.name}, in the browser", reason)


def export_both(case: Case, place: pathlib.Path) -> None:
    """Writes the encoder in float32 and in int8."""
    height, width = PHOTO
    images = (list(case.dataset.train.images[:CALIBRATION]) if case.dataset else
              [decode(photo(height, width, seed)) for seed in range(CALIBRATION)])
    export(case.encoder, "onnx", place / "float32", images=images[:4])
    export(case.encoder, "onnx", place / "int8", images=images[:4], quantize="int8", calibration=images)


def measured_maps(case: Case, programs: Sequence[Program]) -> dict[str, str]:
    """By program, the mAP of its own bits of queries among its own bits of a database; nothing where there are no labels.

    Of a part of the database, the first k count in proportion.
    """
    if case.dataset is None or not case.dataset.labelled:
        return {}
    test, database = (some_of(part, most) for part, most in ((case.dataset.test, QUERIES), (case.dataset.database, DATABASE)))
    k = max(1, round(case.dataset.default_k * len(database[0]) / len(case.dataset.database)))
    size = f"{len(test[0])} queries in {len(database[0]):,} codes"

    def codes(program: Program, images: Sequence[Any]) -> PackedCodes:
        pixels = squares(case.encoder, [*images, *images[:1] * (-len(images) % BATCH)])  # whole batches: one shape to compile
        parts = [program.codes(pixels[begin : begin + BATCH]) for begin in range(0, len(pixels), BATCH)]
        return PackedCodes(np.concatenate(parts)[: len(images)], case.encoder.bits)

    def score(program: Program) -> float:
        found = (codes(program, images) for images, _ in (test, database))
        return mean_average_precision(*found, test[1], database[1], k)

    return {program.name: f"mAP@{k} {score(program):.4f} of {size}" for program in programs}


def some_of(part: Any, most: int) -> tuple[list[Any], np.ndarray]:
    """Images of a part of a data set and their labels: all, or so many that are drawn."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(part))[:most])
    return [part.images[place] for place in chosen], part.labels[chosen]


def measure_latency(
    settings: Settings, cases: Sequence[Case] | None = None, *, codes: int = CODES
) -> Iterator[Row | Skipped]:
    """Every encoder's query, and its encoding alone, in turns of all programs."""
    threads = cores()
    torch.set_num_threads(threads)
    file = photo(*PHOTO)
    for case in cases or cases_of(settings):
        with tempfile.TemporaryDirectory(prefix="latency-") as temporary, contextlib.ExitStack() as opened:
            place = pathlib.Path(temporary)
            export_both(case, place)
            found = list(programs_of(case, file, place, threads, opened, settings.browser_runtime))
            yield from (each for each in found if isinstance(each, Skipped))
            programs = [each for each in found if isinstance(each, Program)]
            index = database(case.encoder.bits, codes)
            timing = {"samples": settings.samples, "budget": settings.case_seconds, "sample_seconds": 0.0}
            queries = [functools.partial(each.query, file, index) for each in programs]
            measured = []
            for what, calls in ((f"query of {codes:,} codes", queries), ("encode", [each.encode for each in programs])):
                contenders = [Contender(each.name, call, compiled=each.compiled, own_clock=each.page is not None)
                              for each, call in zip(programs, calls, strict=True)]
                measured += measure(f"{case.name}, {what}", contenders, items=1, unit="queries", **timing)
            check_agreement(case, programs, file)  # afterwards: it calls them, and a first call is to be timed
            maps = measured_maps(case, programs)
            yield from (with_note(row, maps.get(row.contender)) for row in measured)


def with_note(row: Row, quality: str | None) -> Row:
    """The row with its slow end, and the mAP beside it where it is known."""
    told = [f"p95 {tables.duration(float(np.quantile(row.seconds.samples, 0.95)))}", *filter(None, [quality])]
    return dataclasses.replace(row, note=f"{row.contender}: {', '.join(told)}")


def check_agreement(case: Case, programs: Sequence[Program], file: bytes) -> None:
    """Raises ArithmeticError where float32 programs give other codes: their times would not compare."""
    codes = {program.name: program.code(file) for program in programs if program.numbers == "float32"}
    apart = {name: int(np.bitwise_count(code ^ codes[FLOAT]).sum()) for name, code in codes.items()}
    far = {name: bits for name, bits in apart.items() if bits > FEW_BITS}
    if far:
        raise ArithmeticError(f"{case.name}: bits that differ from {FLOAT}'s: {far}")


SUITE = Suite("latency", __doc__, measure_latency)

if __name__ == "__main__":
    run_command(SUITE.main)
