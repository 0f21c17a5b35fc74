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
