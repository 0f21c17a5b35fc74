"""To and from the files that `save_pretrained` of Hugging Face's `transformers` writes, and those of DINOv2's hub, without loss."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jax_brcd.models.heads import HashModel
from jax_brcd.models.layers import Backbone
from jax_brcd.models.layouts.base import Layout, Loaded, backbone_of, fill
from jax_brcd.models.layouts.named import named_tensors, tensor_arrays
from jax_brcd.runtime.errors import InputError


def layout_by(name: str, table: str) -> Layout:
    """A layout whose names are those of a family's table, an attribute of its class.

    A model keeps the name of the layout that its weights came in, and is saved in it. Read are a backbone's file, a classifier's,
    and one that holds a text tower beside the vision tower, which is left out with a remark.
    """
    def state(model: Backbone | HashModel) -> dict[str, np.ndarray]:
        """The weights by name: copies, float32."""
        return tensor_arrays(named_tensors(model, _table(model)))

    def load(model: Backbone | HashModel, state: Mapping[str, Any], *, any_head: bool = False) -> Loaded:
        """Puts a state_dict into a backbone or hash model, in place.

        Tensors are copied and half precision is upcast. A prefix that all names share is taken off. A classifier is treated as
        `layouts.torchvision.load` does it. A mask token may be missing.

        Args:
            state: names to arrays or PyTorch tensors. any_head: see Layout.

        Raises:
            InputError: for missing, unknown or mis-shaped tensors, for such of another type, for NaN and infinity, and for a
                model of a family that has no such layout; the model is then as it was.
        """
        backbone, tensors = backbone_of(model), named_tensors(model, _table(model))
        vision, remarks = _vision(backbone.beside, state)
        loaded = fill(model, tensors, vision, rename=_renaming(backbone.aliases), optional=_unused, any_head=any_head)
        backbone.layout = name
        return Loaded((*remarks, *loaded.remarks), loaded.head)

    def _table(model: Backbone | HashModel) -> Sequence[tuple[str, str]]:
        backbone = backbone_of(model)
        if name not in (type(backbone).layout, *backbone.signs):
            raise InputError(f"no layout of {backbone.name}; give {type(backbone).layout}", field="layout", value=name)
        return getattr(backbone, table)

    return Layout(load, state)


def _unused(name: str) -> bool:
    return name.endswith("mask_token")


def _vision(beside: str | None, state: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What of a state is the vision tower's, and what is to be said of the rest.

    Of the numbers of positions, which old files hold, nothing is said.
    """
    given = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    others = [name for name in given if beside and re.search(beside, name)]
    said = (f"the text tower beside the vision tower ({len(others)} tensors) is left out",) if others else ()
    return {name: value for name, value in given.items() if name not in set(others)}, said


def _renaming(aliases: Sequence[tuple[str, str]]) -> Callable[[str], str]:
    def rename(name: str) -> str:
        for pattern, replacement in aliases:
            name = re.sub(pattern, replacement, name)
        return name
    return rename
