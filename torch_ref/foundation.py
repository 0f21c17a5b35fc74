"""DINOv2, DINOv3, CLIP and SigLIP as Hugging Face's `transformers` computes them, which is imported when one is made."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jax_brcd.runtime.errors import InputError

BESIDE = re.compile(r"(^|\.)(text_model\.|text_projection\.|logit_scale$|logit_bias$)|position_ids$")  # the vision tower
UNUSED = "mask_token"  # which a file may lack


@dataclasses.dataclass(frozen=True)
class Family:
    """What `transformers` calls a family, and how it is asked for features.

    Attributes:
        model, config: the classes. feature: what of the model's outputs. width: what the configuration calls its numbers.
        told: whether it must be told to resample positions for images of another size; others do it, or have none.
    """

    model: str
    config: str
    feature: str = "pooler_output"
    width: str = "hidden_size"
    told: bool = False


DINOV2 = Family("Dinov2Model", "Dinov2Config")
REGISTERS = Family("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig")
DINOV3 = Family("DINOv3ViTModel", "DINOv3ViTConfig")
CLIP = Family("CLIPVisionModelWithProjection", "CLIPVisionConfig", "image_embeds", "projection_dim", told=True)
SIGLIP = Family("SiglipVisionModel", "SiglipVisionConfig", told=True)


class Foundation(nn.Module):
    """A vision tower under a hash head. Its state_dict has the names of Hugging Face's files; the head is at "classifier".

    Args:
        family: of the tower. settings: of its configuration, which has the family's defaults for others.
    """

    head_place = "classifier"

    def __init__(self, family: Family, **settings: Any):
        super().__init__()
        transformers = _transformers()
        config = getattr(transformers, family.config)(**settings)
        self.family, self.tower = family, getattr(transformers, family.model)(config)
        self.classifier: nn.Module = nn.Linear(getattr(config, family.width), 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, bits) of normalised images (batch, 3, height, width) of any size that the family takes."""
        told = {"interpolate_pos_encoding": True} if self.family.told else {}
        return self.classifier(getattr(self.tower(pixel_values=images, **told), self.family.feature))

    def state_dict(self, **settings: Any) -> dict[str, Tensor]:
        """The weights as `save_pretrained` names them, and the head's."""
        from transformers.core_model_loading import revert_weight_conversion

        head = self.classifier.state_dict(prefix=f"{self.head_place}.", **settings)
        return {**revert_weight_conversion(self.tower, self.tower.state_dict(**settings)), **head}

    def load_state_dict(self, tensors: Mapping[str, Tensor], **settings: Any) -> None:
        """Puts in weights of those names or older ones, as `from_pretrained` reads them. A text tower is left out.

        Raises:
            InputError: for missing, unknown and mis-shaped tensors; the tower is then as it was.
        """
        prefix = f"{self.head_place}."
        head = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        seen = {name: tensor for name, tensor in tensors.items() if not (name.startswith(prefix) or BESIDE.search(name))}
        with _silent(_transformers().utils.logging):  # all that does not fit is said below, in one line
            read, found = type(self.tower).from_pretrained(
                None, config=self.tower.config, state_dict=seen, dtype=torch.float32, output_loading_info=True,
                ignore_mismatched_sizes=True)
        problems = {"missing": [name for name in found["missing_keys"] if not name.endswith(UNUSED)],
                    "unknown": found["unexpected_keys"], "mis-shaped": [name for name, *_ in found["mismatched_keys"]]}
        said = [f"{problem} {', '.join(sorted(names)[:3])}" for problem, names in problems.items() if names]
        if said:
            raise InputError(f"the weights do not fit {self.family.model}: {'; '.join(said)}; give weights of it in Hugging "
                             "Face's layout")
        self.classifier.load_state_dict(head, **settings)
        self.tower.load_state_dict(read.state_dict())


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise InputError("DINOv2, DINOv3, CLIP and SigLIP of the reference need `transformers`; pip install 'jax_brcd[torch]'"
                         ) from None
    return transformers


@contextlib.contextmanager
def _silent(logging: Any) -> Iterator[None]:
    """Without the reports and bars of `transformers` for the length of a block."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def vit(family: Family, size: int, patch: int, layers: int, heads: int, width: int, **settings: Any) -> Callable[[], nn.Module]:
    return functools.partial(Foundation, family, image_size=size, patch_size=patch, num_hidden_layers=layers,
                             num_attention_heads=heads, hidden_size=width, **settings)


def _dinov2(name: str, *shape: int, **settings: Any) -> dict[str, Callable[[], nn.Module]]:
    return {f"dinov2_{name}": vit(DINOV2, 518, 14, *shape, **settings),
            f"dinov2_{name}_reg": vit(REGISTERS, 518, 14, *shape, num_register_tokens=4, **settings)}


def _dinov3(*shape: int, hidden: int) -> Callable[[], nn.Module]:
    return vit(DINOV3, 224, 16, *shape, intermediate_size=hidden, num_register_tokens=4)


def _clip(*shape: int, hidden: int, features: int) -> Callable[[], nn.Module]:
    return vit(CLIP, *shape, intermediate_size=hidden, projection_dim=features)


def _siglip(name: str, *shape: int, hidden: int) -> dict[str, Callable[[], nn.Module]]:
    return {f"{family}_{name}": vit(SIGLIP, *shape, intermediate_size=hidden) for family in ("siglip", "siglip2")}


# pixels of an image and of a patch (where the family has several), layers, heads, width
BUILDERS = {
    **_dinov2("vits14", 12, 6, 384),
    **_dinov2("vitb14", 12, 12, 768),
    **_dinov2("vitl14", 24, 16, 1024),
    **_dinov2("vitg14", 40, 24, 1536, use_swiglu_ffn=True),
    "dinov3_vits16": _dinov3(12, 6, 384, hidden=1536),
    "dinov3_vitb16": _dinov3(12, 12, 768, hidden=3072),
    "clip_vit_b_32": _clip(224, 32, 12, 12, 768, hidden=3072, features=512),
    "clip_vit_b_16": _clip(224, 16, 12, 12, 768, hidden=3072, features=512),
    "clip_vit_l_14": _clip(224, 14, 24, 16, 1024, hidden=4096, features=768),
    "clip_vit_l_14_336": _clip(336, 14, 24, 16, 1024, hidden=4096, features=768),
    **_siglip("base_patch16_224", 224, 16, 12, 12, 768, hidden=3072),
    **_siglip("so400m_patch14_384", 384, 14, 27, 16, 1152, hidden=4304),
}
