"""SigLIP's vision tower (Zhai et al., ICCV 2023); SigLIP 2's of fixed resolution (Tschannen et al., arXiv 2502.14786) is the same.

The feature is what the attention pool makes of all patches (`pooler_output` in `transformers`), which SigLIP compares with
texts, not normalised.
"""

import functools
from typing import ClassVar

import jax
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
    tanh_gelu,
    with_first,
)
from jax_brcd.models.variants import Preprocessing, Variant, from_hub

mlp = functools.partial(MLP, activation=tanh_gelu)
HALF = (0.5, 0.5, 0.5)


class AttentionPool(nnx.Module):
    """One learnt query that attends to all tokens, and an MLP on a residual path."""

    def __init__(self, width: int, heads: int, hidden: int, *, dtype, rngs: nnx.Rngs):
        self.heads, self.dtype = heads, dtype
        self.probe = nnx.Param(learnt_positions(1, width, rngs=rngs))
        self.in_proj = linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out_proj = linear(width, width, dtype=dtype, rngs=rngs)
        self.ln = layer_norm(width, dtype=dtype, rngs=rngs)
        self.mlp = mlp(width, hidden, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        """What the query makes of each image's tokens."""
        batch, count, width = tokens.shape
        kernel, bias = (part[...].astype(self.dtype) for part in (self.in_proj.kernel, self.in_proj.bias))
        query = self.probe[...].astype(self.dtype) @ kernel[:, :width] + bias[:width]
        keys_values = (tokens @ kernel[:, width:] + bias[width:]).reshape(batch, count, 2, self.heads, width // self.heads)
        query = jnp.broadcast_to(query.reshape(1, 1, self.heads, -1), (batch, 1, self.heads, width // self.heads))
        attended = jax.nn.dot_product_attention(query, keys_values[:, :, 0], keys_values[:, :, 1])
        pooled = self.out_proj(attended.reshape(batch, width))
        return pooled + self.mlp(self.ln(pooled))


class SigLIP(PatchTransformer):
    """SigLIP's vision tower.

    Args:
        image_size: pixels that the position embedding is for; a border that is no whole patch is not seen. patch_size: pixels.
        layers, heads: how many. width: of a token. hidden: of the MLPs.
    """

    name = "SigLIP"
    layout: str = "transformers"
    first_tokens: ClassVar[int] = 0
    transformers_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^pos_embedding", "vision_model.embeddings.position_embedding.weight"),
        (r"^conv_proj", "vision_model.embeddings.patch_embedding"),
        (r"^ln\.", "vision_model.post_layernorm."),
        (r"^pooling\.in_proj\.", "vision_model.head.attention.in_proj_"),
        (r"^pooling\.out_proj", "vision_model.head.attention.out_proj"),
        (r"^pooling\.ln", "vision_model.head.layernorm"),
        (r"^pooling", "vision_model.head"),
        *CLIP_BLOCKS,
    )
    aliases: ClassVar[tuple[tuple[str, str], ...]] = (  # a vision tower's file
        (r"^(embeddings|encoder|post_layernorm|head)\.", r"vision_model.\1."),)
    beside: ClassVar[str] = r"(^|\.)(text_model\.|logit_scale$|logit_bias$)"

    def __init__(self, image_size, patch_size, layers, heads, width, hidden, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.image_size = self.own_size = image_size
        self.patch_size, self.features, self.dtype = patch_size, width, dtype
        self.conv_proj = patch_convolution(width, patch_size, dtype=dtype, rngs=rngs)
        self.pos_embedding = nnx.Param(learnt_positions((image_size // patch_size) ** 2, width, rngs=rngs)[0])
        self.layers = nnx.List([Block(width, heads, hidden, mlp=mlp, dtype=dtype, rngs=rngs) for _ in range(layers)])
        self.ln = layer_norm(width, dtype=dtype, rngs=rngs)
        self.pooling = AttentionPool(width, heads, hidden, dtype=dtype, rngs=rngs)

    def embed(self, patches: Float[Array, "batch height width channels"]) -> Float[Array, "batch tokens channels"]:
        """The patches, each with its position."""
        tokens = with_first(patches)
        return tokens + self.positions(*patches.shape[1:3]).astype(tokens.dtype)

    def pool(self, tokens: Float[Array, "batch tokens width"]) -> Float[Array, "batch features"]:
        """The attention pool over all patches after the last norm."""
        return self.pooling(self.ln(tokens))


def _variants(name: str, size: int, *sizes: int) -> dict[str, Variant]:
    """SigLIP's model and SigLIP 2's, whose images are resized by another interpolation."""
    build, (patch, layers, heads, width, _) = functools.partial(SigLIP, size, *sizes), sizes
    kinds = ("siglip", "siglip_vision_model")
    return {f"{family}_{name}": Variant(
        build, Preprocessing(size, None, HALF, HALF, interpolation),
        **from_hub(f"google/{family}-{name.replace('_', '-')}", kinds, layers=layers, heads=heads, width=width, patch=patch,
                   activation="gelu_pytorch_tanh", epsilon=1e-6, image_size=size))
            for family, interpolation in (("siglip", "bicubic"), ("siglip2", "bilinear"))}


# pixels of an image and of a patch, layers, heads, width, hidden
VARIANTS = {
    **_variants("base_patch16_224", 224, 16, 12, 12, 768, 3072),
    **_variants("so400m_patch14_384", 384, 14, 27, 16, 1152, 4304),
}
