"""What the vision transformers share: attention, MLPs, blocks, and the way from images over tokens to features."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jax_brcd.models import initial
from jax_brcd.models.heads import linear_head
from jax_brcd.models.layers import Backbone, gelu, layer_norm
from jax_brcd.models.positions import resampled

linear = functools.partial(nnx.Linear, kernel_init=initial.xavier_uniform)
tanh_gelu = functools.partial(nnx.gelu, approximate=True)

# How blocks as CLIP has them are called in the files of `transformers`, in the form of a family's `transformers_renames`
CLIP_BLOCKS = (
    (r"^layers", "vision_model.encoder.layers"),
    (r"\.ln_(\d)", r".layer_norm\1"),
    (r"self_attention\.in_proj", "self_attn.{q_proj,k_proj,v_proj}"),
    (r"self_attention\.out_proj", "self_attn.out_proj"),
    (r"mlp\.linear_(\d)", r"mlp.fc\1"),
)
# what is done to queries and keys, (batch, tokens, heads, width of a head)
Turn = Callable[[Float[Array, "batch tokens heads width"]], Float[Array, "batch tokens heads width"]]


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The approximation of GELU that CLIP was trained with."""
    return x * nnx.sigmoid(1.702 * x)


class Unused(nnx.Variable):
    """What a family's weights hold and inference never uses, such as mask tokens: kept for the way back, and never learnt."""


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one product for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, key_bias: bool = True, dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.in_proj = linear(width, 3 * width, use_bias=key_bias, dtype=dtype, rngs=rngs)
        if not key_bias:  # queries and values have one all the same
            self.q_bias, self.v_bias = (nnx.Param(jnp.zeros(width, jnp.float32)) for _ in range(2))
        self.out_proj = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens width"], turn: Turn | None = None) -> Float[Array, "batch tokens width"]:
        """Each token attends to all, its query and key turned."""
        batch, tokens, width = x.shape
        qkv = self.in_proj(x)
        if self.in_proj.bias is None:
            q_bias, v_bias = self.q_bias[...], self.v_bias[...]
            qkv = qkv + jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias]).astype(qkv.dtype)
        qkv = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if turn is not None:
            queries, keys = turn(queries), turn(keys)
        attended = jax.nn.dot_product_attention(queries, keys, values)
        return self.out_proj(attended.reshape(batch, tokens, width))


class MLP(nnx.Module):
    """Two linear layers and an activation between them."""

    def __init__(self, width: int, hidden: int, activation: Callable[[Array], Array] = gelu, *, dtype, rngs: nnx.Rngs):
        self.linear_1 = linear(width, hidden, dtype=dtype, rngs=rngs)
        self.linear_2 = linear(hidden, width, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "batch *tokens width"]) -> Float[Array, "batch *tokens width"]:
        """Applied to each token."""
        return self.linear_2(self.activation(self.linear_1(x)))


class SwiGLU(nnx.Module):
    """A gated MLP (Shazeer, arXiv 2002.05202): the first half of the hidden numbers, through SiLU, weighs the other."""

    def __init__(self, width: int, hidden: int, *, dtype, rngs: nnx.Rngs):
        self.linear_in = linear(width, 2 * hidden, dtype=dtype, rngs=rngs)
        self.linear_out = linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Applied to each token."""
        gate, values = jnp.split(self.linear_in(x), 2, axis=-1)
        return self.linear_out(nnx.silu(gate) * values)


class Block(nnx.Module):
    """Pre-norm attention and MLP, each on a residual path.

    Args:
        width: of a token. heads: of the attention. hidden: of the MLP. mlp: builds it. norm: builds a layer norm.
        scaled: whether each path is scaled, channel by channel (LayerScale, Touvron et al., ICCV 2021).
        key_bias: whether keys have a bias.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, *, mlp: Callable[..., nnx.Module] = MLP,
        norm: Callable[..., nnx.Module] = layer_norm, scaled: bool = False, key_bias: bool = True, dtype, rngs: nnx.Rngs,
    ):
        self.ln_1 = norm(width, dtype=dtype, rngs=rngs)
        self.self_attention = SelfAttention(width, heads, key_bias=key_bias, dtype=dtype, rngs=rngs)
        self.ln_2 = norm(width, dtype=dtype, rngs=rngs)
        self.mlp = mlp(width, hidden, dtype=dtype, rngs=rngs)
        self.scaled = scaled
        if scaled:
            self.scale_1, self.scale_2 = (nnx.Param(jnp.ones(width, jnp.float32)) for _ in range(2))

    def __call__(self, x: Float[Array, "batch tokens width"], turn: Turn | None = None) -> Float[Array, "batch tokens width"]:
        """One layer; `turn` as in SelfAttention."""
        attended = self.self_attention(self.ln_1(x), turn)
        x = x + (attended * self.scale_1[...].astype(x.dtype) if self.scaled else attended)
        changed = self.mlp(self.ln_2(x))
        return x + (changed * self.scale_2[...].astype(x.dtype) if self.scaled else changed)


class PatchTransformer(Backbone):
    """A vision transformer: patches become tokens, tokens go through blocks, features are taken from them.

    A family has `conv_proj`, the convolution that makes patches; `layers`, the blocks; `embed`, which makes tokens of patches;
    and `pool`, which makes features of tokens. It declares how its position embedding is resampled for images of other sizes.
    The embedding is kept as it was learnt.

    Attributes:
        resampling: settings of `bicubic_matrix`. first_tokens: how many tokens before those of patches have a position.
        aliases: (pattern, replacement) from names that some files have to those of its table, for `layouts.transformers`.
        beside: a pattern of the names of what lies beside the vision tower in a file, and is left out.
    """

    head_key: ClassVar[str] = "classifier"
    head = staticmethod(linear_head)
    resampling: ClassVar[dict[str, Any]] = {}
    first_tokens: ClassVar[int] = 1
    aliases: ClassVar[tuple[tuple[str, str], ...]] = ()
    beside: ClassVar[str | None] = None
    conv_proj: nnx.Conv
    layers: nnx.List
    embed: Callable[[Float[Array, "batch height width channels"]], Float[Array, "batch tokens channels"]]
    pool: Callable[[Float[Array, "batch tokens width"]], Float[Array, "batch features"]]

    def positions(self, height: int, width: int) -> Float[Array, "tokens width"]:
        """The position embedding of an image of `height` x `width` patches."""
        table = self.pos_embedding[...].reshape(-1, self.pos_embedding.shape[-1])
        first, grid = table[: self.first_tokens], table[self.first_tokens :]
        patches = resampled(grid, height, width, **self.resampling)
        return table if patches is grid else jnp.concatenate([first, patches])

    def turn(self, height: int, width: int) -> Turn | None:
        """What rotary positions do to queries and keys of an image of `height` x `width` patches; None: they are left alone."""
        return None

    def hidden_states(
        self, images: Float[Array, "batch height width 3"]
    ) -> Iterator[Float[Array, "batch tokens width"]]:
        """The tokens that the first block sees, and those that each block gives.

        Raises:
            InputError: for images whose sides the backbone does not take.
        """
        for side in images.shape[1:3]:
            self.check_size(side)
        patches = self.conv_proj(images)
        turn, tokens = self.turn(*patches.shape[1:3]), self.embed(patches)
        yield tokens
        for layer in self.layers:
            tokens = layer(tokens, turn)
            yield tokens

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
            InputError: for images whose sides the backbone does not take.
        """
        for tokens in self.hidden_states(images):
            pass
        return self.pool(tokens).astype(jnp.float32)


def patch_convolution(width: int, patch_size: int, *, bias: bool = True, dtype, rngs: nnx.Rngs) -> nnx.Conv:
    """The convolution that makes a token's channels of each patch; a border that is no whole patch is left out."""
    return nnx.Conv(3, width, (patch_size, patch_size), strides=patch_size, padding="VALID", use_bias=bias,
                    kernel_init=initial.lecun_normal, dtype=dtype, rngs=rngs)


def learnt_positions(tokens: int, width: int, *, rngs: nnx.Rngs) -> Float[Array, "1 tokens width"]:
    """A position embedding to begin with."""
    return initial.normal(0.02)(rngs.params(), (1, tokens, width))


def with_first(
    patches: Float[Array, "batch height across width"], *first: Float[Array, "..."]
) -> Float[Array, "batch tokens width"]:
    """Tokens of patches, row by row, behind `first` ones, which are the same for every image."""
    batch, width = patches.shape[0], patches.shape[-1]
    every = [jnp.broadcast_to(tokens.astype(patches.dtype).reshape(1, -1, width), (batch, tokens.size // width, width))
             for tokens in first]
    return jnp.concatenate([*every, patches.reshape(batch, -1, width)], axis=1)
