"""DINOv3's vision transformers (Siméoni et al., arXiv 2508.10104): positions are rotations of queries and keys.

The feature is the class token after the last norm.
"""

import functools
import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_brcd.models.layers import layer_norm
from jax_brcd.models.transformer import Block, PatchTransformer, Turn, Unused, patch_convolution, with_first
from jax_brcd.models.variants import Preprocessing, Variant, from_hub

BASE = 100.0  # of the periods of the rotations


class DINOv3(PatchTransformer):
    """A DINOv3 backbone. It has no position embedding, and so nothing to resample for images of other sizes.

    Args:
        image_size: pixels it is meant for. patch_size: pixels. layers, heads: how many. width: of a token. hidden: of the MLPs.
        registers: how many tokens there are beside the class token and those of patches.
    """

    name = "DINOv3"
    layout: str = "transformers"
    transformers_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^class_token", "embeddings.cls_token"),
        (r"^mask_token", "embeddings.mask_token"),
        (r"^registers", "embeddings.register_tokens"),
        (r"^conv_proj", "embeddings.patch_embeddings"),
        (r"^layers", "layer"),
        (r"^ln\.", "norm."),
        (r"\.ln_(\d)", r".norm\1"),
        (r"self_attention\.in_proj", "attention.{q_proj,k_proj,v_proj}"),
        (r"self_attention\.(q|v)_bias", r"attention.\1_proj.bias"),
        (r"self_attention\.out_proj", "attention.o_proj"),
        (r"scale_(\d)", r"layer_scale\1.lambda1"),
        (r"mlp\.linear_1", "mlp.up_proj"),
        (r"mlp\.linear_2", "mlp.down_proj"),
    )
    aliases: ClassVar[tuple[tuple[str, str], ...]] = ((r"^model\.layer\.", "layer."),)  # a model's in memory

    def __init__(
        self, image_size, patch_size, layers, heads, width, hidden, *, registers=4, dtype=jnp.float32, rngs: nnx.Rngs
    ):
        self.image_size, self.patch_size, self.features, self.dtype = image_size, patch_size, width, dtype
        self.head_width = width // heads
        self.class_token = nnx.Param(jnp.zeros((1, 1, width), jnp.float32))
        self.mask_token = Unused(jnp.zeros((1, 1, width), jnp.float32))
        self.registers = nnx.Param(jnp.zeros((1, registers, width), jnp.float32))
        self.conv_proj = patch_convolution(width, patch_size, dtype=dtype, rngs=rngs)
        norm = functools.partial(layer_norm, epsilon=1e-5)
        self.layers = nnx.List([Block(width, heads, hidden, norm=norm, scaled=True, key_bias=False, dtype=dtype, rngs=rngs)
                                for _ in range(layers)])
        self.ln = norm(width, dtype=dtype, rngs=rngs)

    def embed(self, patches: Float[Array, "batch height width channels"]) -> Float[Array, "batch tokens channels"]:
        """The class token, registers and patches."""
        return with_first(patches, self.class_token[...], self.registers[...])

    def turn(self, height: int, width: int) -> Turn:
        """Turns pairs of numbers of a patch by angles that grow with its place, which goes from -1 to 1 along either side."""
        angles = patch_angles(height, width, self.head_width)[:, None]
        cosines, sines = np.cos(angles), np.sin(angles)

        def turn(x: Float[Array, "batch tokens heads width"]) -> Float[Array, "batch tokens heads width"]:
            others, patches = x[:, : -len(angles)], x[:, -len(angles) :]
            low, high = jnp.split(patches, 2, axis=-1)
            across = jnp.concatenate([-high, low], axis=-1)
            return jnp.concatenate([others, patches * cosines.astype(x.dtype) + across * sines.astype(x.dtype)], axis=1)

        return turn

    def pool(self, tokens: Float[Array, "batch tokens width"]) -> Float[Array, "batch features"]:
        """The class token after the last norm."""
        return self.ln(tokens[:, 0])


def patch_angles(height: int, width: int, head_width: int) -> Float[np.ndarray, "patches head_width"]:
    """By what angle each number of a head is turned, float32; half of the angles are of a patch's row, half of its column."""
    centres = [2 * (np.arange(count) + 0.5) / count - 1 for count in (height, width)]
    places = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    frequencies = BASE ** -np.arange(0, 1, 4 / head_width)
    angles = (2 * math.pi * places * frequencies).reshape(len(places), -1)
    return np.tile(angles, 2).astype(np.float32)


def _variant(repository: str, *sizes: int) -> Variant:
    layers, heads, width, _ = sizes
    return Variant(functools.partial(DINOv3, 224, 16, *sizes), Preprocessing(224),
                   **from_hub(repository, ("dinov3_vit",), layers=layers, heads=heads, width=width, patch=16, activation="gelu",
                              epsilon=1e-5, rope_theta=BASE))


# layers, heads, width, hidden
VARIANTS = {
    "dinov3_vits16": _variant("facebook/dinov3-vits16-pretrain-lvd1689m", 12, 6, 384, 1536),
    "dinov3_vitb16": _variant("facebook/dinov3-vitb16-pretrain-lvd1689m", 12, 12, 768, 3072),
}
