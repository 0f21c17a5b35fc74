"""Recipes of training views: by name, the fields of a ViewConfig that are not as published (docs/method.md, "Data as published")."""

from collections.abc import Mapping
from typing import Any

from jax_brcd.runtime.registry import Registry

RECIPES: Registry[Mapping[str, Any]] = Registry("view recipe")
RECIPES.register("brcd")({})
# CroVCA (Moummad et al., arXiv 2510.27584). Of the blur only its chance is told: width and sigmas are those of DINOv2, from
# whose family of views the rest comes too, and which solarises the upper half of the values as this does.
RECIPES.register("crovca")({
    "scale": (0.4, 1.0), "jitter": 0.8, "hue": 0.2, "blur": 0.1, "blur_size": 9, "sigma": (0.1, 2.0), "solarise": 0.1,
})
# As small images are commonly shown; over zeros means black
RECIPES.register("crop-flip")({"padding": 1 / 8, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0})
