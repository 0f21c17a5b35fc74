"""Pairs of a model of Hugging Face's `transformers` and ours: tiny ones with the same random weights, and real ones without."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from flax import nnx
from model_pairs import as_torch, randomise

from jax_brcd.models import Backbone
from jax_brcd.models.clip import CLIP
from jax_brcd.models.dinov2 import DINOv2
from jax_brcd.models.dinov3 import DINOv3
from jax_brcd.models.siglip import SigLIP

SIZE, PATCH, LAYERS, HEADS, WIDTH, HIDDEN, FEATURES = 20, 4, 2, 2, 32, 64, 16
OTHERS = (12, 24, 32)
COMMON = {"image_size": SIZE, "patch_size": PATCH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
          "hidden_size": WIDTH}


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A family small enough for a test. `theirs` makes the reference, `ours` the backbone; `feature` is its name there."""

    theirs: Callable[[], transformers.PreTrainedModel]
    ours: Callable[..., Backbone]
    feature: str = "pooler_output"
    takes_sizes: bool = True  # whether the reference is told to resample its positions


def _tiny(kind: type, config: type, /, **settings: Any) -> Callable[[], transformers.PreTrainedModel]:
    return lambda: kind(config(**COMMON, **settings))


def _ours(kind: type, *more: Any, hidden: int = HIDDEN, **settings: Any) -> Callable[..., Backbone]:
    return functools.partial(kind, SIZE, PATCH, LAYERS, HEADS, WIDTH, hidden, *more, **settings)


DINOV2, REGISTERS = transformers.Dinov2Config, transformers.Dinov2WithRegistersConfig
TINY = {
    "dinov2": Tiny(_tiny(transformers.Dinov2Model, DINOV2, mlp_ratio=2), _ours(DINOv2), takes_sizes=False),
    # of 64 hidden numbers two thirds, rounded up to a multiple of 8
    "dinov2 gated": Tiny(_tiny(transformers.Dinov2Model, DINOV2, mlp_ratio=2, use_swiglu_ffn=True),
                         _ours(DINOv2, hidden=48, gated=True), takes_sizes=False),
    "dinov2 registers": Tiny(_tiny(transformers.Dinov2WithRegistersModel, REGISTERS, mlp_ratio=2, num_register_tokens=3),
                             _ours(DINOv2, registers=3), takes_sizes=False),
    "dinov3": Tiny(_tiny(transformers.DINOv3ViTModel, transformers.DINOv3ViTConfig, intermediate_size=HIDDEN,
                         num_register_tokens=3), _ours(DINOv3, registers=3), takes_sizes=False),
    "clip": Tiny(_tiny(transformers.CLIPVisionModelWithProjection, transformers.CLIPVisionConfig, intermediate_size=HIDDEN,
                       projection_dim=FEATURES), _ours(CLIP, FEATURES), "image_embeds"),
    "siglip": Tiny(_tiny(transformers.SiglipVisionModel, transformers.SiglipVisionConfig, intermediate_size=HIDDEN),
                   _ours(SigLIP)),
}


@functools.cache
def theirs(name: str) -> transformers.PreTrainedModel:
    """The reference with random weights in all its tensors, in evaluation mode."""
    return randomise(TINY[name].theirs().eval())


def ours(name: str, **settings: Any) -> Backbone:
    """Our backbone with shapes for weights."""
    return nnx.eval_shape(lambda: TINY[name].ours(rngs=nnx.Rngs(0), **settings))


def reference_outputs(name: str, model: transformers.PreTrainedModel, images) -> tuple[list[np.ndarray], np.ndarray]:
    """The tokens before and after each block, and the features, float32."""
    told = {"interpolate_pos_encoding": True} if TINY[name].takes_sizes else {}
    with torch.inference_mode():
        outputs = model(pixel_values=as_torch(images).to(model.dtype), output_hidden_states=True, **told)
    return ([tokens.float().numpy() for tokens in outputs.hidden_states], getattr(outputs, TINY[name].feature).float().numpy())


def _vision(width: int, layers: int, heads: int, patch: int, size: int, **settings: Any) -> dict[str, Any]:
    return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": patch,
            "image_size": size, **settings}


def _dinov2(width: int, layers: int, heads: int, **settings: Any) -> dict[str, tuple[type, Any]]:
    shape = _vision(width, layers, heads, 14, 518, **settings)
    return {"": (transformers.Dinov2Model, DINOV2(**shape)),
            "_reg": (transformers.Dinov2WithRegistersModel, REGISTERS(**shape, num_register_tokens=4))}


def _clip(width: int, layers: int, heads: int, patch: int, size: int, features: int) -> tuple[type, Any]:
    shape = _vision(width, layers, heads, patch, size, intermediate_size=4 * width, projection_dim=features)
    return transformers.CLIPVisionModelWithProjection, transformers.CLIPVisionConfig(**shape)


def _siglip(*shape: int, hidden: int) -> tuple[type, Any]:
    return transformers.SiglipVisionModel, transformers.SiglipVisionConfig(**_vision(*shape, intermediate_size=hidden))


def _dinov3(width: int, heads: int) -> tuple[type, Any]:
    shape = _vision(width, 12, heads, 16, 224, intermediate_size=4 * width, num_register_tokens=4)
    return transformers.DINOv3ViTModel, transformers.DINOv3ViTConfig(**shape)


# the models and what their published config.json say of their shapes, by the names of our variants
REAL = {
    **{f"dinov2_vits14{end}": real for end, real in _dinov2(384, 12, 6).items()},
    **{f"dinov2_vitb14{end}": real for end, real in _dinov2(768, 12, 12).items()},
    **{f"dinov2_vitl14{end}": real for end, real in _dinov2(1024, 24, 16).items()},
    **{f"dinov2_vitg14{end}": real for end, real in _dinov2(1536, 40, 24, use_swiglu_ffn=True).items()},
    "dinov3_vits16": _dinov3(384, 6),
    "dinov3_vitb16": _dinov3(768, 12),
    "clip_vit_b_32": _clip(768, 12, 12, 32, 224, 512),
    "clip_vit_b_16": _clip(768, 12, 12, 16, 224, 512),
    "clip_vit_l_14": _clip(1024, 24, 16, 14, 224, 768),
    "clip_vit_l_14_336": _clip(1024, 24, 16, 14, 336, 768),
    "siglip_base_patch16_224": _siglip(768, 12, 12, 16, 224, hidden=3072),
    "siglip2_base_patch16_224": _siglip(768, 12, 12, 16, 224, hidden=3072),
    "siglip_so400m_patch14_384": _siglip(1152, 27, 16, 14, 384, hidden=4304),
    "siglip2_so400m_patch14_384": _siglip(1152, 27, 16, 14, 384, hidden=4304),
}
