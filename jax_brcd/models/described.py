"""What a config.json in Hugging Face's layout says of weights, held against the backbone that they are to be for."""

from collections.abc import Mapping
from typing import Any

from jax_brcd.models.variants import BACKBONES
from jax_brcd.runtime.errors import InputError

KIND, TOWER = "model_type", "vision_config"


def check_described(config: Mapping[str, Any], name: str) -> None:
    """Raises InputError where a config.json says that its weights are not those of the backbone `name`.

    Only what both speak of is compared: older ones leave out what is usual. The shapes of the tensors decide the rest.
    """
    differing = _differing(config, BACKBONES[name].config if name in BACKBONES else {})
    if not differing:
        return
    said = " and ".join(f"{key} {given!r} instead of {_spelled(wanted)}" for key, (given, wanted) in differing.items())
    fitting = [other for other, variant in BACKBONES.items() if variant.config and not _differing(config, variant.config)]
    advice = f", or name {' or '.join(fitting[:3])}" if fitting else ""
    raise InputError(f"its config.json says that it is of {said}; give weights of {name}{advice}")


def _differing(config: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What both speak of and do not agree on, each with (given, expected)."""
    tower = config.get(TOWER)
    said = {**tower, KIND: config.get(KIND)} if isinstance(tower, Mapping) else config
    return {key: (said[key], wanted) for key, wanted in expected.items()
            if key in said and said[key] != wanted and not (isinstance(wanted, tuple) and said[key] in wanted)}


def _spelled(wanted: Any) -> str:
    return " or ".join(map(repr, wanted)) if isinstance(wanted, tuple) else repr(wanted)
