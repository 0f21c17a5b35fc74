"""Vision Transformer (Dosovitskiy et al., ICLR 2021) as torchvision builds it.

The feature is the class token after the encoder's last norm.
"""

import functools
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_brcd.models.layers import layer_norm
from jax_brcd.models.transformer import Block, PatchTransformer, learnt_positions, patch_convolution, with_first
from jax_brcd.models.variants import Preprocessing, Variant, imagenet


class VisionTransformer(PatchTransformer):
    """A ViT without its classifier.

    Args:
        image_size: pixels that the position embedding is for. patch_size: pixels. layers, heads: how many. width: of a token.
        hidden: of the MLPs.
    """

    name = "VisionTransformer"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^layers\.(\d+)", r"encoder.layers.encoder_layer_\1"),
        (r"^(pos_embedding|ln\b)", r"encoder.\1"),
        (r"self_attention\.in_proj\.", "self_attention.in_proj_"),
        (r"mlp\.linear_1", "mlp.0"),
        (r"mlp\.linear_2", "mlp.3"),
    )
    order: ClassVar[tuple[str, ...]] = ("class_token", "conv_proj", "pos_embedding", "layers", "ln_1", "self_attention")
    head_key: ClassVar[str] = "heads"
    resampling: ClassVar[dict[str, bool]] = {"corners": True}  # as torchvision's `interpolate_embeddings`

    def __init__(self, image_size, patch_size, layers, heads, width, hidden, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.image_size = self.own_size = image_size
        self.patch_size, self.features, self.dtype = patch_size, width, dtype
        self.class_token = nnx.Param(jnp.zeros((1, 1, width), jnp.float32))
        self.conv_proj = patch_convolution(width, patch_size, dtype=dtype, rngs=rngs)
        self.pos_embedding = nnx.Param(learnt_positions((image_size // patch_size) ** 2 + 1, width, rngs=rngs))
        self.layers = nnx.List([Block(width, heads, hidden, dtype=dtype, rngs=rngs) for _ in range(layers)])
        self.ln = layer_norm(width, dtype=dtype, rngs=rngs)

    def embed(self, patches: Float[Array, "batch height width channels"]) -> Float[Array, "batch tokens channels"]:
        """The class token and the patches, each with its position."""
        tokens = with_first(patches, self.class_token[...])
        return tokens + self.positions(*patches.shape[1:3]).astype(tokens.dtype)

    def pool(self, tokens: Float[Array, "batch tokens width"]) -> Float[Array, "batch features"]:
        """The class token after the last norm."""
        return self.ln(tokens)[:, 0]


vit = functools.partial(functools.partial, VisionTransformer)

# ImageNet weights are torchvision's IMAGENET1K_V1, for vit_h_14 the linear probe of SWAG's
VARIANTS = {
    "vit_b_16": imagenet(vit(224, 16, 12, 12, 768, 3072), "vit_b_16-c867db91.pth"),
    "vit_b_32": imagenet(vit(224, 32, 12, 12, 768, 3072), "vit_b_32-d86f8d99.pth"),
    "vit_l_16": imagenet(vit(224, 16, 24, 16, 1024, 4096), "vit_l_16-852ce7e3.pth", resize=242),
    "vit_l_32": imagenet(vit(224, 32, 24, 16, 1024, 4096), "vit_l_32-c7638314.pth"),
    "vit_h_14": imagenet(vit(224, 14, 32, 16, 1280, 5120), "vit_h_14_lc_swag-c1eb923e.pth", resize=224, interpolation="bicubic"),
    # ViT-Lite of Hassani et al. (arXiv 2104.05704): layers / patch size
    "vit_lite_7_4": Variant(vit(32, 4, 7, 4, 256, 512), Preprocessing(32)),
    "vit_lite_4_8": Variant(vit(32, 8, 4, 4, 128, 256), Preprocessing(32)),
}
