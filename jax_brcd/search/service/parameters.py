"""What a request's query says, each parameter once and within its bounds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jax_brcd.runtime.registry import unknown_name
from jax_brcd.search.service.engine import Engine
from jax_brcd.search.service.errors import Refused
from jax_brcd.search.service.limits import Limits

if TYPE_CHECKING:
    from starlette.datastructures import QueryParams

WORDS = {"1": True, "true": True, "0": False, "false": False}
DIGITS = 9  # of a number; none may be so large that reading it takes time
USUAL_K = 10


class Parameters(NamedTuple):
    """Of all routes; each allows those that it needs.

    Attributes:
        k: how many hits. radius: the most bits that may differ among them. soft: whether logits rank. mode: whose encoder; None
            where the index knows none. original: whether the original is wanted.
    """

    k: int
    radius: int | None
    soft: bool
    mode: str | None
    original: bool

    @classmethod
    def of(cls, given: "QueryParams", allowed: Sequence[str], engine: Engine, limits: Limits) -> "Parameters":
        """Reads a query. Raises Refused for parameters that are unknown, told twice or out of their bounds."""
        values: dict[str, str] = {}
        for name, value in given.multi_items():
            if name not in allowed:
                raise Refused(400, unknown_name("parameter", name[:40], allowed))
            if name in values:
                raise Refused(400, f"{name}: told twice; tell it once")
            values[name] = value
        space = values.get("space")
        if space is not None and engine.space is not None and space != engine.space:
            raise Refused(409, f"space: the index's codes are of '{engine.space}', so codes of another mean nothing in it")
        modes = list(engine.encoders)
        mode = values.get("mode", modes[0] if modes else None)
        if mode is not None and mode not in modes:
            raise Refused(400, f"mode: the service has {' and '.join(modes) or 'no encoder'}; leave it out")
        k = _number("k", values.get("k", str(min(USUAL_K, limits.max_hits))), 1, limits.max_hits)
        radius = _number("radius", values["radius"], 0, engine.bits) if "radius" in values else None
        return cls(k, radius, _switch("soft", values), mode, _switch("original", values))


def _number(name: str, text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= DIGITS and low <= int(text) <= high):
        raise Refused(400, f"{name}: no whole number from {low} to {high}")
    return int(text)


def _switch(name: str, values: dict[str, str]) -> bool:
    text = values.get(name, "0")
    if text not in WORDS:
        raise Refused(400, f"{name}: give 1 or 0")
    return WORDS[text]
