"""Modules that users bring as backbones: any nnx.Module from images to features, with or without this package's keywords."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jax_brcd.models.heads import linear_head
from jax_brcd.models.layers import Backbone
from jax_brcd.runtime.errors import InputError

MODES = ("deterministic", "use_running_average")  # what nnx.Module.train and eval set


def taken(function: Callable[..., Any], **keywords: Any) -> dict[str, Any]:
    """Those of some keywords that a function takes."""
    # of a class NNX's metaclass takes anything, so its constructor is asked
    called = function.__init__ if inspect.isclass(function) else function
    parameters = inspect.signature(called).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return keywords
    names = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    return {name: value for name, value in keywords.items() if name in names}


class Adapted(Backbone):
    """A user's module as a backbone, under a linear hash head and in the plain layout.

    The module is called with images and those of `train`, `valid` and `key` that its `__call__` names. One that does not name
    `train` is put into NNX's training or evaluation mode for the call instead, and begins in evaluation mode; one that does not
    name `key` drops by streams of its own, which are seeded from it. Nothing is dropped in a call with `train` and no key.

    Args:
        module: maps (batch, size, size, 3) to (batch, width). image_size: pixels it is meant for.

    Raises:
        InputError: for a module that does not give (batch, width), or that has arrays which are no nnx.Variable.
    """

    layout: str = "plain"
    head_key: ClassVar[str] = "hash_head"
    head = staticmethod(linear_head)
    name = "the module"

    def __init__(self, module: nnx.Module, image_size: int):
        self.module, self.image_size, self.use_running_average = module, image_size, True
        module.eval()
        self.fixed_size = bool(getattr(module, "fixed_size", False))
        _check_variables(module)
        self.features = self._width(image_size)

    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        train: bool | None = None,
        valid: Bool[Array, "batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch features"]:
        """Features of normalised images; the arguments are as in Backbone."""
        told = not self.use_running_average if train is None else train
        given = taken(self.module.__call__, train=told, valid=valid, key=key)
        if "key" not in given and key is not None:
            _reseed(self.module, key)
        with _mode(self.module, None if "train" in given else train, drops=key is not None):
            return self.module(images, **given).astype(jnp.float32)

    @property
    def sizes(self) -> str:
        """See Backbone."""
        return super().sizes if self.fixed_size else f"{self.image_size} pixels and what else its layers fit"

    def fits(self, size: int) -> bool:
        """See Backbone; the layers are asked where it is not the size that it is meant for."""
        if size == self.image_size or not super().fits(size):
            return size == self.image_size
        try:
            return self._width(size) == self.features
        except InputError:
            return False

    def _width(self, size: int) -> int:
        """Features of images of `size` pixels."""
        graph, state = nnx.split(self)
        images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
        kind = type(self.module).__name__
        try:
            outputs = jax.eval_shape(lambda state, images: nnx.merge(graph, state).module(images), state, images)
        except (TypeError, ValueError) as error:
            raise InputError(f"{kind} does not take images (batch, {size}, {size}, 3): {error}") from error
        shape = getattr(outputs, "shape", None)
        if shape is None or len(shape) != 2 or shape[0] != 2:
            raise InputError(f"{kind} maps images (2, {size}, {size}, 3) to "
                             f"{type(outputs).__name__ if shape is None else shape}; a backbone gives features (batch, width)")
        return shape[1]


def adapted(module: nnx.Module, *, name: str, image_size: int) -> Backbone:
    """A Backbone as it is, another module in the form of one; both are called `name` in errors.

    Raises:
        InputError: see Adapted.
    """
    backbone = module if isinstance(module, Backbone) else Adapted(module, image_size)
    backbone.name = name
    return backbone


def _check_variables(module: nnx.Module) -> None:
    for path, node in nnx.iter_graph(module):
        place = ".".join(map(str, path))
        if isinstance(node, (jax.Array, np.ndarray)):
            raise InputError(f"{type(module).__name__}.{place} is an array that would not be saved; wrap it in nnx.Param, or "
                             "in nnx.Variable if it is not to learn")
        if place == Adapted.head_key:
            raise InputError(f"{type(module).__name__}.{place}: the hash head is called so; give the attribute another name")


def _reseed(module: nnx.Module, key: Key[Array, ""]) -> None:
    """Starts every random stream of a module anew, each from a key of its own."""
    streams = [node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.RngStream)]
    for number, stream in enumerate(streams):
        stream.key.set_value(jax.random.fold_in(key, number))
        stream.count.set_value(jnp.zeros_like(stream.count[...]))


@contextmanager
def _mode(module: nnx.Module, train: bool | None, *, drops: bool) -> Iterator[None]:
    """NNX's training or evaluation mode for the length of a block; None leaves every layer's own."""
    if train is None:
        yield
        return
    before = [(part, name, getattr(part, name)) for _, part in nnx.iter_modules(module) for name in MODES
              if hasattr(part, name)]
    for part, name, _ in before:
        setattr(part, name, not train or (name == "deterministic" and not drops))
    try:
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)
