"""One query: decode a photo, make it ready, encode it, search a million codes, in every program that an encoder runs in."""

import dataclasses
import functools
import io
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from flax import nnx

from benchmarks import compiled, machine, tables
from benchmarks.encode import jax_call, torch_call
from benchmarks.results import Row, Skipped, measure
from benchmarks.signals import own_signal_stack
from benchmarks.suite import Settings, Suite
from benchmarks.timing import Contender
from jax_brcd.data import ImageDataset
from jax_brcd.encoder import STUDENT, TEACHER, HashEncoder, create_encoder, load
from jax_brcd.export import export
from jax_brcd.export.base import CONFIG, EXPORTS
from jax_brcd.export.onnx import ANY_SIZE, SQUARES
from jax_brcd.export.reference import reference_model
from jax_brcd.export.sessions import runner
from jax_brcd.export.trial import of_its_size, resized, squares
from jax_brcd.models import BACKBONES, create_hash_model
from jax_brcd.retrieval import HammingIndex, PackedCodes
from jax_brcd.runtime.files import read_json
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
FEW_BITS = 1  # of a code in which float32 programs may differ: PyTorch's resize has other roundings


@dataclasses.dataclass(frozen=True)
class Case:
    """An encoder that is measured, by what it is, and the data set of its run where its mAP can be told."""

    name: str
    encoder: HashEncoder
    dataset: ImageDataset | None = None


def random_case(role: str, backbone: str) -> Case:
    """An encoder with random weights, which is as fast as a trained one."""
    model = create_hash_model(backbone, BITS, rngs=nnx.Rngs(0))
    encoder = create_encoder(model, backbone, BACKBONES[backbone].preprocessing, bits=BITS, role=role)
    return Case(f"{role} {backbone}", encoder)


def cases_of(settings: Settings) -> Iterator[Case]:
    """Teacher and student of a run, where one is told; else the published backbones at 224 pixels."""
    if settings.run is None:
        yield random_case(TEACHER, "vit_b_16")
        yield random_case(STUDENT, "resnet18")
        if not settings.quick:
            yield random_case(STUDENT, "efficientnet_b0")
        return
    for folder in (TEACHER, "student_symmetric"):
        encoder = load(settings.run / folder)
        dataset, k = load_for_evaluation(create_config(**known_settings(encoder.provenance, None)), [encoder])
        yield Case(f"{encoder.role} {encoder.backbone}", encoder, dataclasses.replace(dataset, default_k=k))


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
        name: of the contender. codes: packed codes (1, bytes) of the pixels of any image. encode: does it with an image that is
            ready already. compiled: whether the first call compiles. numbers: "float32" or "int8".
    """

    name: str
    codes: Callable[[np.ndarray], np.ndarray]
    encode: Callable[[], Any]
    compiled: bool = False
    numbers: str = "float32"


def torch_program(case: Case, image: np.ndarray, *, compile: bool) -> Program:
    """An encoder in PyTorch at its best: channels last, inference mode, compiled or as it is."""
    seen = case.encoder.preprocessing
    model = reference_model(case.encoder).to(memory_format=torch.channels_last)
    if compile:
        model = compiled.compile(model)
    view = evaluation_view(seen.size, seen.resize, mean=seen.mean, std=seen.std, interpolation=seen.interpolation)

    def planes(pixels: np.ndarray) -> torch.Tensor:
        channels_first = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return view(channels_first)[None].contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def codes(pixels: np.ndarray) -> np.ndarray:
        return np.packbits(model(planes(pixels)).numpy() > 0, axis=1)

    return Program(COMPILED if compile else EAGER, codes, torch_call(model, planes(image)), compile)


def onnx_program(name: str, folder: pathlib.Path, square: np.ndarray, threads: int) -> Program:
    """The exported files of an encoder in ONNX Runtime; the folder's name says of which numbers."""
    any_size, squared = (runner(folder / file, threads=threads) for file in (ANY_SIZE, SQUARES))
    return Program(name, lambda pixels: any_size(pixels)[1], lambda: squared(square), numbers=folder.name)


def openvino_program(name: str, folder: pathlib.Path, square: np.ndarray, threads: int) -> Program:
    """The same in OpenVINO."""
    import openvino

    told = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}

    @own_signal_stack()
    def model_of(file: str) -> openvino.CompiledModel:
        return openvino.Core().compile_model(folder / file, "CPU", told)

    any_size, squared = map(model_of, (ANY_SIZE, SQUARES))
    return Program(name, lambda pixels: np.asarray(any_size(pixels)[1]), lambda: squared(square), numbers=folder.name)


def programs_of(case: Case, image: np.ndarray, place: pathlib.Path, threads: int) -> Iterator[Program | Skipped]:
    """The encoder, which is exported to `place`, in every program that is installed."""
    encoder, square = case.encoder, squares(case.encoder, [image])
    view = np.asarray(fitted_view(square[0], **vars(of_its_size(encoder).preprocessing)))
    yield Program(FLOAT, lambda pixels: encoder.encode(pixels).packed, jax_call(encoder.model, view), compiled=True)
    yield torch_program(case, image, compile=False)
    if (reason := compiled.why_not()) is None:
        yield torch_program(case, image, compile=True)
    else:
        yield Skipped(f"{case.name}, compiled PyTorch", reason)
    yield onnx_program(ONNX, place / "float32", square, threads)
    yield onnx_program(INT8, place / "int8", square, threads)
    if machine.installed("openvino"):
        yield openvino_program(OPENVINO, place / "float32", square, threads)
        yield openvino_program(OPENVINO_INT8, place / "int8", square, threads)
    else:
        yield Skipped(f"{case.name}, OpenVINO", "openvino is not installed")


def export_both(case: Case, place: pathlib.Path) -> dict[str, float]:
    """Writes the encoder in float32 and in int8; returns the mAP of either kind of numbers, where there are labels."""
    height, width = PHOTO
    images = (list(case.dataset.train.images[:CALIBRATION]) if case.dataset else
              [decode(photo(height, width, seed)) for seed in range(CALIBRATION)])
    export(case.encoder, "onnx", place / "float32", images=images[:4])
    export(case.encoder, "onnx", place / "int8", images=images[:4], quantize="int8", calibration=images, dataset=case.dataset)
    return read_json(place / "int8" / CONFIG)[EXPORTS]["onnx"]["quantized"].get("map", {})


def measure_latency(
    settings: Settings, cases: Sequence[Case] | None = None, *, codes: int = CODES
) -> Iterator[Row | Skipped]:
    """Every encoder's query, and its encoding alone, in turns of all programs."""
    threads = machine.cores()
    torch.set_num_threads(threads)
    file = photo(*PHOTO)
    for case in cases or cases_of(settings):
        with tempfile.TemporaryDirectory(prefix="latency-") as temporary:
            maps = export_both(case, pathlib.Path(temporary))
            found = list(programs_of(case, decode(file), pathlib.Path(temporary), threads))
            yield from (each for each in found if isinstance(each, Skipped))
            programs = [each for each in found if isinstance(each, Program)]
            check_agreement(case, programs, decode(file))
            index = database(case.encoder.bits, codes)

            def query(program: Program, index: HammingIndex = index, bits: int = case.encoder.bits) -> Any:
                return index.search(PackedCodes(program.codes(decode(file)), bits), K)

            timing = {"samples": settings.samples, "budget": settings.case_seconds, "sample_seconds": 0.0}
            for what, calls in ((f"query of {codes:,} codes", {each.name: functools.partial(query, each) for each in programs}),
                                ("encode", {each.name: each.encode for each in programs})):
                contenders = [Contender(each.name, calls[each.name], compiled=each.compiled) for each in programs]
                rows = measure(f"{case.name}, {what}", contenders, items=1, unit="queries", **timing)
                yield from (with_tail(row, maps.get(program.numbers)) for row, program in zip(rows, programs, strict=True))
        yield Skipped(f"{case.name}, in the browser", "measured by the page of the service itself")


def with_tail(row: Row, mean_average_precision: float | None) -> Row:
    """The row with its slow end, and the mAP beside it where it is known."""
    told = [f"p95 {tables.duration(float(np.quantile(row.seconds.samples, 0.95)))}"]
    if mean_average_precision is not None:
        told.append(f"mAP {mean_average_precision:.4f}")
    return dataclasses.replace(row, note=f"{row.contender}: {', '.join(told)}")


def check_agreement(case: Case, programs: Sequence[Program], image: np.ndarray) -> None:
    """Raises ArithmeticError where float32 programs give other codes: their times would not compare."""
    codes = {program.name: program.codes(image) for program in programs if program.numbers == "float32"}
    apart = {name: int(np.bitwise_count(code ^ codes[FLOAT]).sum()) for name, code in codes.items()}
    far = {name: bits for name, bits in apart.items() if bits > FEW_BITS}
    if far:
        raise ArithmeticError(f"{case.name}: bits that differ from {FLOAT}'s: {far}")


SUITE = Suite("latency", __doc__, measure_latency)

if __name__ == "__main__":
    run_command(SUITE.main)
