"""CLIP's vision tower (Radford et al., ICML 2021) with its projection.

The feature is the projected class token, which CLIP compares with texts (`image_embeds` in `transformers`), not normalised.
"""

import functools
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_brcd.models.layers import layer_norm
from jax_brcd.models.transformer import (
    CLIP_BLOCKS,
    MLP,
    Block,
    PatchTransformer,
    learnt_positions,
    linear,
    patch_convolution,
    quick_gelu,
    with_first,
)
from jax_brcd.models.variants import Preprocessing, Variant, from_hub

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class CLIP(PatchTransformer):
    """CLIP's vision tower.

    Args:
        image_size: pixels that the position embedding is for. patch_size: pixels. layers, heads: how many. width: of a token.
        hidden: of the MLPs. features: width of the projection.
    """

    name = "CLIP"
    layout: str = "transformers"
    transformers_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^class_token", "vision_model.embeddings.class_embedding"),
        (r"^pos_embedding", "vision_model.embeddings.position_embedding.weight"),
        (r"^conv_proj", "vision_model.embeddings.patch_embedding"),
        (r"^ln_before", "vision_model.pre_layrnorm"),
        (r"^ln_after", "vision_model.post_layernorm"),
        (r"^projection", "visual_projection"),
        *CLIP_BLOCKS,
    )
    aliases: ClassVar[tuple[tuple[str, str], ...]] = (  # a vision tower's file
        (r"^(embeddings|encoder|pre_layrnorm|post_layernorm)\.", r"vision_model.\1."),)
    beside: ClassVar[str] = r"(^|\.)(text_model\.|text_projection\.|logit_scale$)"

    def __init__(
        self, image_size, patch_size, layers, heads, width, hidden, features, *, dtype=jnp.float32, rngs: nnx.Rngs
    ):
        self.image_size = self.own_size = image_size
        self.patch_size, self.features, self.dtype = patch_size, features, dtype
        self.class_token = nnx.Param(jnp.zeros(width, jnp.float32))
        self.conv_proj = patch_convolution(width, patch_size, bias=False, dtype=dtype, rngs=rngs)
        self.pos_embedding = nnx.Param(learnt_positions((image_size // patch_size) ** 2 + 1, width, rngs=rngs)[0])
        norm = functools.partial(layer_norm, epsilon=1e-5)
        self.ln_before, self.ln_after = (norm(width, dtype=dtype, rngs=rngs) for _ in range(2))
        self.layers = nnx.List([Block(width, heads, hidden, mlp=functools.partial(MLP, activation=quick_gelu), norm=norm,
                                      dtype=dtype, rngs=rngs) for _ in range(layers)])
        self.projection = linear(width, features, use_bias=False, dtype=dtype, rngs=rngs)

    def embed(self, patches: Float[Array, "batch height width channels"]) -> Float[Array, "batch tokens channels"]:
        """The class token and the patches, each with its position, after a norm."""
        tokens = with_first(patches, self.class_token[...])
        return self.ln_before(tokens + self.positions(*patches.shape[1:3]).astype(tokens.dtype))

    def pool(self, tokens: Float[Array, "batch tokens width"]) -> Float[Array, "batch features"]:
        """The class token, after a norm, projected."""
        return self.projection(self.ln_after(tokens[:, 0]))


def _variant(repository: str, size: int, *sizes: int) -> Variant:
    patch, layers, heads, width, *_ = sizes
    return Variant(functools.partial(CLIP, size, *sizes), Preprocessing(size, size, MEAN, STD, "bicubic"),
                   **from_hub(repository, ("clip", "clip_vision_model"), layers=layers, heads=heads, width=width, patch=patch,
                              activation="quick_gelu", epsilon=1e-5, image_size=size))


# pixels of an image and of a patch, layers, heads, width, hidden, features
VARIANTS = {
    "clip_vit_b_32": _variant("openai/clip-vit-base-patch32", 224, 32, 12, 12, 768, 3072, 512),
    "clip_vit_b_16": _variant("openai/clip-vit-base-patch16", 224, 16, 12, 12, 768, 3072, 512),
    "clip_vit_l_14": _variant("openai/clip-vit-large-patch14", 224, 14, 24, 16, 1024, 4096, 768),
    "clip_vit_l_14_336": _variant("openai/clip-vit-large-patch14-336", 336, 14, 24, 16, 1024, 4096, 768),
}
