"""What the methods with a memory start from: linear embeddings and banks of unit rows."""

import numpy as np
from jaxtyping import Float


def linear(draw: np.random.Generator, inputs: int, outputs: int) -> dict[str, Float[np.ndarray, "..."]]:
    """A linear layer drawn as PyTorch draws it, uniform within 1 / sqrt(inputs): kernel (inputs, outputs) and bias."""
    bound = 1.0 / np.sqrt(inputs)
    return {name: draw.uniform(-bound, bound, shape).astype(np.float32)
            for name, shape in (("kernel", (inputs, outputs)), ("bias", (outputs,)))}


def bank(draw: np.random.Generator, images: int, width: int) -> Float[np.ndarray, "images width"]:
    """Random unit rows, one an image; their directions are those of a uniform cube, as published."""
    rows = draw.uniform(-1.0, 1.0, (images, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
