"""The trial of an export: what its files give is compared with what the encoder gives, bit by bit."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jax_brcd.encoder import HashEncoder
from jax_brcd.runtime.errors import InputError

# By what an encoder computes in, how near to 0 a logit may have either sign: other programs add numbers in another order
NEAR = {"float32": 1e-4, "bfloat16": 5e-2}
RELATIVE = frozenset({"bfloat16"})  # whose rounding outgrows that where logits are large
MADE_UP = 64  # images
SHAPES = ((48, 64), (61, 45), (200, 301))  # height and width of further images for a graph that takes any
ANY_SIZE = 16  # images that are tried as they come
Outputs = tuple[np.ndarray, np.ndarray]  # logits (n, bits) and packed codes (n, bytes)
Inputs = Sequence[Any] | np.ndarray  # uint8 images (height, width, 3) of any sizes, or rows (width,)


def inputs_for(encoder: HashEncoder, images: Inputs | None) -> Inputs:
    """The images, or rows, that an export is tried with; pictures of blots, or normal numbers, where none are given."""
    if images is not None and len(images):
        return images[:MADE_UP]
    draw = np.random.default_rng(0)
    if encoder.over_embeddings:
        return list(draw.normal(size=(MADE_UP, encoder.preprocessing.width)).astype(np.float32))
    side = encoder.preprocessing.size
    return [resized(draw.integers(256, size=(*draw.integers(2, 9, size=2), 3), dtype=np.uint8), side, side)
            for _ in range(MADE_UP)]


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image of another size, somehow: what matters is that all encode the same pixels."""
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(np.asarray(image)).resize((width, height), Image.Resampling.BICUBIC))


def squares(encoder: HashEncoder, images: Inputs) -> np.ndarray:
    """Images as squares of the size that the model sees, (n, size, size, 3)."""
    return np.stack([resized(image, encoder.preprocessing.size, encoder.preprocessing.size) for image in images])


def of_its_size(encoder: HashEncoder) -> HashEncoder:
    """The same encoder of images that are its squares already: nothing is resized or cut."""
    return dataclasses.replace(encoder, preprocessing=dataclasses.replace(encoder.preprocessing, resize=None))


def try_batches(encoder: HashEncoder, run: Callable[[np.ndarray], Outputs], images: Inputs) -> dict[str, Any]:
    """The trial of a program of many squares, or rows, in batches of several sizes."""
    if encoder.over_embeddings:
        batch, expected = np.stack(images), encoder.logits(np.stack(images))
    else:
        batch = squares(encoder, images)
        expected = of_its_size(encoder).logits(batch)
    parts = [batch[:1], batch[1:4], batch[4:]]
    return compare(expected, [run(part) for part in parts if len(part)], near=near_zero(encoder.dtype, expected))


def try_any_size(encoder: HashEncoder, run: Callable[[np.ndarray], Outputs], images: Inputs) -> dict[str, Any]:
    """The trial of a program of one image of any size: with some as they come, and with some made narrow, high, and large."""
    shaped = itertools.chain(images[:ANY_SIZE], (resized(image, *shape) for image, shape in zip(images, SHAPES, strict=False)))
    expected, found = zip(*((encoder.logits(image), run(image)) for image in shaped), strict=True)  # which holds one at a time
    expected = np.concatenate(expected)
    return compare(expected, found, near=near_zero(encoder.dtype, expected))


def near_zero(dtype: str, expected: np.ndarray) -> float:
    """How near to 0 a logit may have either sign, by what an encoder computes in and by the logits (n, bits) that it gives."""
    return NEAR[dtype] * (max(1.0, float(expected.std())) if dtype in RELATIVE else 1.0)


def compare(expected: np.ndarray, found: Sequence[Outputs], *, near: float) -> dict[str, Any]:
    """How near the outputs of a program come to an encoder's logits: figures for `config.json`.

    Raises:
        InputError: where a bit differs whose logit is not within `near` of 0, and where codes are not the signs of logits.
    """
    logits, codes = (np.concatenate(part) for part in zip(*found, strict=True))
    if logits.shape != expected.shape or not np.array_equal(codes, np.packbits(logits > 0, axis=1)):
        raise InputError("the exported program does not give logits and their signs as bits; nothing is written")
    different = (logits > 0) != (expected > 0)
    wrong = different & (np.abs(expected) >= near)
    largest = float(np.abs(logits - expected).max())
    if wrong.any() or not np.isfinite(logits).all():
        raise InputError(f"the exported program gives {int(wrong.sum())} of {wrong.size} bits otherwise, of logits up to "
                         f"{np.abs(expected[wrong]).max(initial=0.0):.1e} (logits differ by up to {largest:.1e}); nothing is "
                         "written")
    return {"images": len(logits), "bits": int(logits.size), "different_bits": int(different.sum()),
            "bits_near_zero": int((np.abs(expected) < near).sum()), "near_zero": near, "largest_difference": largest}
