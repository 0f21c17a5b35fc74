"""DINOv2 (Oquab et al., TMLR 2024), with and without registers (Darcet et al., ICLR 2024).

The feature is the class token after the last norm. Positions were learnt on images of 518 pixels, 37 x 37 patches, and are
resampled for others: as `transformers` does it, or, for weights in the layout of the original hub, with the hub's step, which
is a little smaller.
"""

import functools
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_brcd.models.layers import layer_norm
from jax_brcd.models.transformer import (
    Block,
    PatchTransformer,
    SwiGLU,
    Unused,
    learnt_positions,
    patch_convolution,
    with_first,
)
from jax_brcd.models.variants import Preprocessing, Variant, from_hub

HUB = "dinov2_hub"
HUB_OFFSET = 0.1  # what the hub's code adds to the number of patches where there are no registers
REGISTERS = 4


class DINOv2(PatchTransformer):
    """A DINOv2 backbone.

    Args:
        image_size: pixels that the position embedding is for. patch_size: pixels. layers, heads: how many. width: of a token.
        hidden: of the MLPs. gated: whether those are SwiGLU. registers: how many further tokens there are.
    """

    name = "DINOv2"
    layout: str = "transformers"
    transformers_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^class_token", "embeddings.cls_token"),
        (r"^mask_token", "embeddings.mask_token"),
        (r"^registers", "embeddings.register_tokens"),
        (r"^pos_embedding", "embeddings.position_embeddings"),
        (r"^conv_proj", "embeddings.patch_embeddings.projection"),
        (r"^layers", "encoder.layer"),
        (r"^ln\.", "layernorm."),
        (r"\.ln_(\d)", r".norm\1"),
        (r"self_attention\.in_proj", "attention.attention.{query,key,value}"),
        (r"self_attention\.out_proj", "attention.output.dense"),
        (r"scale_(\d)", r"layer_scale\1.lambda1"),
        (r"mlp\.linear_(\d)", r"mlp.fc\1"),
        (r"mlp\.linear_(in|out)", r"mlp.weights_\1"),
    )
    aliases: ClassVar[tuple[tuple[str, str], ...]] = ((r"^dinov2(_with_registers)?\.", ""),)  # a classifier's file
    hub_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^class_token", "cls_token"),
        (r"^registers", "register_tokens"),
        (r"^pos_embedding", "pos_embed"),
        (r"^conv_proj", "patch_embed.proj"),
        (r"^layers", "blocks"),
        (r"^ln\.", "norm."),
        (r"\.ln_(\d)", r".norm\1"),
        (r"self_attention\.in_proj", "attn.qkv"),
        (r"self_attention\.out_proj", "attn.proj"),
        (r"scale_(\d)", r"ls\1.gamma"),
        (r"mlp\.linear_(\d)", r"mlp.fc\1"),
        (r"mlp\.linear_in", "mlp.w12"),
        (r"mlp\.linear_out", "mlp.w3"),
    )
    signs: ClassVar[dict[str, str]] = {HUB: r"(^|\.)blocks\.\d+\.attn\.qkv\."}

    def __init__(
        self, image_size, patch_size, layers, heads, width, hidden, *, gated=False, registers=0, dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.image_size = self.own_size = image_size
        self.patch_size, self.features, self.dtype = patch_size, width, dtype
        self.class_token = nnx.Param(jnp.zeros((1, 1, width), jnp.float32))
        self.mask_token = Unused(jnp.zeros((1, width), jnp.float32))
        self.registers = nnx.Param(jnp.zeros((1, registers, width), jnp.float32)) if registers else None
        self.conv_proj = patch_convolution(width, patch_size, dtype=dtype, rngs=rngs)
        self.pos_embedding = nnx.Param(learnt_positions((image_size // patch_size) ** 2 + 1, width, rngs=rngs))
        block = functools.partial(Block, width, heads, hidden, scaled=True, dtype=dtype, rngs=rngs,
                                  **({"mlp": SwiGLU} if gated else {}))
        self.layers = nnx.List([block() for _ in range(layers)])
        self.ln = layer_norm(width, dtype=dtype, rngs=rngs)

    @property
    def resampling(self) -> dict[str, Any]:
        """See PatchTransformer."""
        if self.registers is not None:
            return {"antialias": True}
        return {"offset": HUB_OFFSET} if self.layout == HUB else {}

    def embed(self, patches: Float[Array, "batch height width channels"]) -> Float[Array, "batch tokens channels"]:
        """The class token, registers, and patches; all but registers with their position."""
        tokens = with_first(patches, self.class_token[...])
        tokens = tokens + self.positions(*patches.shape[1:3]).astype(tokens.dtype)
        if self.registers is None:
            return tokens
        registers = jnp.broadcast_to(self.registers[...].astype(tokens.dtype), (tokens.shape[0], *self.registers.shape[1:]))
        return jnp.concatenate([tokens[:, :1], registers, tokens[:, 1:]], axis=1)

    def pool(self, tokens: Float[Array, "batch tokens width"]) -> Float[Array, "batch features"]:
        """The class token after the last norm."""
        return self.ln(tokens[:, 0])


def _variants(name: str, repository: str, *sizes: int, **settings: Any) -> dict[str, Variant]:
    """A model without registers and with four; `repository` is how its size is called on the hub."""
    layers, heads, width, _ = sizes

    def variant(repository: str, kind: str, registers: int, **others: int) -> Variant:
        return Variant(functools.partial(DINOv2, 518, 14, *sizes, registers=registers, **settings),
                       Preprocessing(224, 256, interpolation="bicubic"),
                       **from_hub(repository, (kind,), layers=layers, heads=heads, width=width, patch=14, activation="gelu",
                                  epsilon=1e-6, **others))

    return {name: variant(f"facebook/dinov2-{repository}", "dinov2", 0),
            f"{name}_reg": variant(f"facebook/dinov2-with-registers-{repository}", "dinov2_with_registers", REGISTERS,
                                   num_register_tokens=REGISTERS)}


# layers, heads, width, hidden
VARIANTS = {
    **_variants("dinov2_vits14", "small", 12, 6, 384, 1536),
    **_variants("dinov2_vitb14", "base", 12, 12, 768, 3072),
    **_variants("dinov2_vitl14", "large", 24, 16, 1024, 4096),
    **_variants("dinov2_vitg14", "giant", 40, 24, 1536, 4096, gated=True),
}
