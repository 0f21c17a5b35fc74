"""Settings of whole experiments, each still its own option."""

from collections.abc import Mapping
from typing import Any

from jax_brcd.runtime.registry import Registry

PRESETS: Registry[Mapping[str, Any]] = Registry("preset")
PRESETS.register("digits")({
    "dataset": "digits", "teacher": "vit_lite_4_8", "teacher_weights": "held-out", "teacher_epochs": 40,
    "student": "resnet8", "student_weights": "random", "train_backbone": True, "epochs": 20, "lr": 2e-3,
    "views": 8,
})
PRESETS.register("cifar10-vit_b_16-resnet18")({
    "dataset": "cifar10", "teacher": "vit_b_16", "teacher_weights": "imagenet", "student": "resnet18",
    "student_weights": "imagenet",
})
PRESETS.register("cifar10-vit_b_16-efficientnet_b0")({
    **PRESETS["cifar10-vit_b_16-resnet18"], "student": "efficientnet_b0",
})
# A student trained whole (docs/training.md). The backbones lie beside the checkout; others are named by their settings
PRESETS.register("cifar10-32-whole")({
    "dataset": "cifar10", "train_images": "all", "view_recipe": "crop-flip",
    "teacher": "vit_lite_7_4", "teacher_weights": "../shared/weights/vit_lite_7_4.safetensors", "teacher_objective": "itq",
    "student": "resnet18", "student_weights": "../shared/weights/resnet18_32.safetensors", "train_backbone": True,
    "method": "mse", "own_objective": False, "teacher_view": "clean", "teacher_neighbours": 50, "batch_size": 256,
    "epochs": 15, "optimizer": "adamw", "lr_schedule": "one-cycle", "lr": 2e-3, "validation_interval": 5, "keep": "both",
})
