"""Vision Transformer (Dosovitskiy et al., ICLR 2021) as torchvision builds it.

The feature is the class token after the encoder's last norm.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jax_brcd.models.heads import linear_head
from jax_brcd.models.layers import Backbone, layer_norm
from jax_brcd.models.positions import resampled
from jax_brcd.models.variants import Preprocessing, Variant, imagenet

linear = functools.partial(nnx.Linear, kernel_init=nnx.initializers.xavier_uniform())


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one product for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.in_proj = linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out_proj = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Each token attends to all."""
        batch, tokens, width = x.shape
        qkv = self.in_proj(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        attended = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return self.out_proj(attended.reshape(batch, tokens, width))


class MLP(nnx.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int, *, dtype, rngs: nnx.Rngs):
        self.linear_1 = linear(width, hidden, dtype=dtype, rngs=rngs)
        self.linear_2 = linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Applied to each token."""
        return self.linear_2(nnx.gelu(self.linear_1(x), approximate=False))


class EncoderBlock(nnx.Module):
    """Pre-norm attention and MLP, each on a residual path."""

    def __init__(self, width: int, heads: int, hidden: int, *, dtype, rngs: nnx.Rngs):
        self.ln_1 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.self_attention = SelfAttention(width, heads, dtype=dtype, rngs=rngs)
        self.ln_2 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, hidden, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """One layer."""
        x = x + self.self_attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Encoder(nnx.Module):
    """Position embedding, the layers, a last norm."""

    def __init__(self, tokens: int, layers: int, width: int, heads: int, hidden: int, *, dtype, rngs: nnx.Rngs):
        self.pos_embedding = nnx.Param(0.02 * rngs.params.normal((1, tokens, width), jnp.float32))
        self.layers = nnx.List([EncoderBlock(width, heads, hidden, dtype=dtype, rngs=rngs) for _ in range(layers)])
        self.ln = layer_norm(width, dtype=dtype, rngs=rngs)

    def positions(self, height: int, width: int) -> Float[Array, "1 tokens width"]:
        """The position embedding of an image of `height` x `width` patches, as torchvision's `interpolate_embeddings` has it."""
        table = self.pos_embedding[...]
        return jnp.concatenate([table[:, :1], resampled(table[0, 1:], height, width, corners=True)[None]], axis=1)

    def __call__(
        self, x: Float[Array, "batch tokens width"], height: int, width: int
    ) -> Float[Array, "batch tokens width"]:
        """Encoded tokens of an image of `height` x `width` patches."""
        x = x + self.positions(height, width).astype(x.dtype)
        for layer in self.layers:
            x = layer(x)
        return self.ln(x)


class VisionTransformer(Backbone):
    """A ViT without its classifier.

    Images of other sizes have the position embedding resampled for them, which is kept as it is.

    Args:
        image_size: pixels that the position embedding is for. patch_size: pixels. layers, heads: how many. width: of a token. hidden: of the MLPs.
    """

    name = "VisionTransformer"
    renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"encoder\.layers\.(\d+)", r"encoder.layers.encoder_layer_\1"),
        (r"self_attention\.in_proj\.", "self_attention.in_proj_"),
        (r"mlp\.linear_1", "mlp.0"),
        (r"mlp\.linear_2", "mlp.3"),
    )
    order: ClassVar[tuple[str, ...]] = ("class_token", "conv_proj", "pos_embedding", "layers", "ln_1", "self_attention")
    head_key: ClassVar[str] = "heads"
    head = staticmethod(linear_head)

    def __init__(self, image_size, patch_size, layers, heads, width, hidden, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.image_size = self.own_size = image_size
        self.patch_size, self.features, self.dtype = patch_size, width, dtype
        self.class_token = nnx.Param(jnp.zeros((1, 1, width), jnp.float32))
        self.conv_proj = nnx.Conv(3, width, (patch_size, patch_size), strides=patch_size, padding="VALID", dtype=dtype,
                                  rngs=rngs)
        tokens = (image_size // patch_size) ** 2 + 1
        self.encoder = Encoder(tokens, layers, width, heads, hidden, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch features"]:
        """Features of normalised images; training mode is the same: nothing looks across a batch, and nothing is dropped.

        Raises:
            InputError: for images whose sides are no multiples of a patch.
        """
        for side in images.shape[1:3]:
            self.check_size(side)
        patches = self.conv_proj(images)
        _, height, width, _ = patches.shape
        patches = patches.reshape(len(patches), -1, self.features)
        class_token = jnp.broadcast_to(self.class_token[...].astype(patches.dtype), (len(patches), 1, self.features))
        tokens = self.encoder(jnp.concatenate([class_token, patches], axis=1), height, width)
        return tokens[:, 0].astype(jnp.float32)


vit = functools.partial(functools.partial, VisionTransformer)

# ImageNet weights are torchvision's IMAGENET1K_V1, for vit_h_14 the linear probe of SWAG's
VARIANTS = {
    "vit_b_16": imagenet(vit(224, 16, 12, 12, 768, 3072), "vit_b_16-c867db91.pth"),
    "vit_b_32": imagenet(vit(224, 32, 12, 12, 768, 3072), "vit_b_32-d86f8d99.pth"),
    "vit_l_16": imagenet(vit(224, 16, 24, 16, 1024, 4096), "vit_l_16-852ce7e3.pth", resize=242),
    "vit_l_32": imagenet(vit(224, 32, 24, 16, 1024, 4096), "vit_l_32-c7638314.pth"),
    "vit_h_14": imagenet(vit(224, 14, 32, 16, 1280, 5120), "vit_h_14_lc_swag-c1eb923e.pth", resize=224),
    # ViT-Lite of Hassani et al. (arXiv 2104.05704): layers / patch size
    "vit_lite_7_4": Variant(vit(32, 4, 7, 4, 256, 512), Preprocessing(32)),
    "vit_lite_4_8": Variant(vit(32, 8, 4, 4, 128, 256), Preprocessing(32)),
}
