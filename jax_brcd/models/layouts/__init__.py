"""Layouts of weights outside a model: how its tensors are called, ordered and shaped in a file."""

from jax_brcd.models.layouts import plain, torchvision, transformers
from jax_brcd.models.layouts.base import Layout, Loaded
from jax_brcd.runtime.registry import Registry

LAYOUTS: Registry[Layout] = Registry("layout of weights")
LAYOUTS.register("torchvision")(Layout(torchvision.load, torchvision.state))
LAYOUTS.register("transformers")(transformers.layout_by("transformers", "transformers_renames"))
LAYOUTS.register("dinov2_hub")(transformers.layout_by("dinov2_hub", "hub_renames"))
LAYOUTS.register("plain")(Layout(plain.load, plain.state))

__all__ = ["LAYOUTS", "Layout", "Loaded"]
