"""What layouts share: fitting the tensors of a file to those of a model, and saying all that does not fit in one line."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_brcd.models.heads import HashModel
from jax_brcd.models.layers import Backbone
from jax_brcd.runtime.errors import InputError

SHOWN_TENSORS = 3


class Loaded(NamedTuple):
    """What became of a state: what a reader must know, a line each, and whether it brought the hash head."""

    remarks: tuple[str, ...]
    head: bool


class Layout(NamedTuple):
    """A way of naming, ordering and shaping a model's tensors.

    Attributes:
        load: `load(model, state, any_head=False)` puts a state into a backbone or hash model, in place. With `any_head` a head
            that is not the model's (a classifier, say) is left out with a remark instead of being refused.
        state: `state(model)` is the other way: names to copies of the tensors.
    """

    load: Callable[..., Loaded]
    state: Callable[[nnx.Module], dict[str, np.ndarray]]


class Tensor(NamedTuple):
    """A variable of a model as a file sees it, or a part of one that the file has in several."""

    variable: nnx.Variable
    axes: tuple[int, ...]  # of ours, in the file's order
    part: int = 0  # which it is, of
    parts: int = 1  # equal ones along the file's first axis

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the file's order."""
        whole = tuple(self.variable.shape[axis] for axis in self.axes)
        return whole if self.parts == 1 else (whole[0] // self.parts, *whole[1:])

    def array(self) -> np.ndarray:
        """Its values in the file's order, a view where they lie on the host."""
        whole = np.asarray(self.variable[...]).transpose(self.axes)
        return whole if self.parts == 1 else np.split(whole, self.parts)[self.part]


def backbone_of(model: Backbone | HashModel) -> Backbone:
    """The backbone of a hash model, or the backbone itself."""
    return model.backbone if isinstance(model, HashModel) else model


def listed(names: Iterable[str]) -> str:
    """The first of some names, and how many there are besides."""
    names = list(names)
    more = f" and {len(names) - SHOWN_TENSORS} more" if len(names) > SHOWN_TENSORS else ""
    return ", ".join(names[:SHOWN_TENSORS]) + more


def fill(
    model: Backbone | HashModel, expected: Mapping[str, Tensor], state: Mapping[str, Any], *,
    rename: Callable[[str], str] = str, optional: Callable[[str], bool] = lambda name: False, any_head: bool = False,
) -> Loaded:
    """Puts `state` into the variables of `expected`, in place, or changes nothing.

    Args:
        expected: the model's tensors by the file's names. rename: from a file's name to that in `expected`.
        optional: whether a tensor may be missing. any_head: see Layout.

    Raises:
        InputError: for missing, unknown and mis-shaped tensors, for tensors of another type, and for NaN and infinity.
    """
    backbone = backbone_of(model)
    prefix, names = common_prefix(state, expected, f"{backbone.head_key}.", rename)
    remarks = [f"the prefix '{prefix}' of all tensors is taken off"] if prefix else []
    further = [name for name in names.values() if backbone.beyond and re.match(backbone.beyond, name)]
    if further:
        stages = dict.fromkeys(name.partition(".")[0] for name in further)
        remarks.append(f"{listed(stages)} are left out: the model ends before them")
    given = {name: _array(name, state[original]) for original, name in names.items() if name not in further}
    expected, given, head, remark = _choose_head(backbone, isinstance(model, HashModel), expected, given, any_head)
    _check_fit(backbone.name, expected, given, optional)
    arrays = {name: given[name] for name in expected if name in given}
    cast = _cast(backbone.name, arrays, {name: tensor.variable.dtype for name, tensor in expected.items()})
    _put(expected, cast)
    return Loaded((*remarks, *remark), head)


def _put(expected: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray]) -> None:
    """Sets variables to arrays, which may be parts of them."""
    together: dict[int, list[tuple[Tensor, np.ndarray]]] = {}
    for name, array in arrays.items():
        together.setdefault(id(expected[name].variable), []).append((expected[name], array))
    for found in together.values():
        found.sort(key=lambda item: item[0].part)
        (tensor, array), *others = found
        whole = np.concatenate([array, *(other for _, other in others)]) if others else array
        # a copy, as memory may be a PyTorch model's that goes on training; and NumPy's, as jnp.array compiles one for each shape
        copied = np.array(whole.transpose(np.argsort(tensor.axes).astype(int)))
        tensor.variable.set_value(jax.device_put(copied))


def common_prefix(
    state: Iterable[str], expected: Iterable[str], head: str, rename: Callable[[str], str] = str
) -> tuple[str, dict[str, str]]:
    """What stands before every name (`module.` of DataParallel, `_orig_mod.` of torch.compile), and the names without it.

    Only what makes at least one name known is taken off; names that are known are left alone.
    """
    original, expected = list(state), set(expected)
    prefix, rest = "", original
    while rest:
        names = [rename(name) for name in rest]
        if any(name in expected or name.startswith(head) for name in names):
            return prefix, dict(zip(original, names, strict=True))
        roots = {name.partition(".")[0] for name in rest}
        if len(roots) > 1 or not all("." in name for name in rest):
            break
        prefix += f"{roots.pop()}."
        rest = [name.partition(".")[2] for name in rest]
    return "", {name: rename(name) for name in original}


def _choose_head(backbone: Backbone, hashes: bool, expected, given, any_head: bool):
    """The tensors to be loaded, those given, whether a head is among them, and what is to be said of a head left out."""
    prefix = f"{backbone.head_key}."
    wanted = {name: tensor.shape for name, tensor in expected.items() if name.startswith(prefix)}
    found = {name: array.shape for name, array in given.items() if name.startswith(prefix)}
    if hashes and found and (not any_head or found == wanted):
        return expected, given, True, ()
    remark = ()
    if hashes and found:
        biases = [name for name in wanted if name.endswith("bias")]  # the last is of the last layer, an entry an output
        bits, outputs = (each.get(biases[-1], ()) if biases else () for each in (wanted, found))
        another_length = outputs not in ((), bits)
        remark = (f"its head of {outputs[0]} outputs is left out: {bits[0]} bits are asked for" if another_length else
                  f"its head is left out, which is of another form ({listed(found)})",)
    expected, given = ({name: value for name, value in tensors.items() if not name.startswith(prefix)}
                       for tensors in (expected, given))
    return expected, given, False, remark


def _check_fit(model: str, expected: Mapping[str, Tensor], given: Mapping[str, np.ndarray], optional) -> None:
    problems = {
        "missing": [name for name in expected if name not in given and not optional(name)],
        "unknown": [name for name in given if name not in expected],
        "mis-shaped": [f"{name} {given[name].shape} instead of {tensor.shape}" for name, tensor in expected.items()
                       if name in given and given[name].shape != tensor.shape],
        "of another type": [f"{name} {given[name].dtype} instead of {tensor.variable.dtype}"
                            for name, tensor in expected.items()
                            if name in given and not _same_kind(given[name], tensor.variable.dtype)],
    }
    told = [f"{problem} {listed(names)}" for problem, names in problems.items() if names]
    if told:
        raise InputError(f"the weights do not fit {model}: {'; '.join(told)}; give weights of {model}, or name the model they "
                         "are of")


def _same_kind(array: np.ndarray, dtype: np.dtype) -> bool:
    """Whether values may become `dtype`: floats any float; whole numbers any whole number, also when written as floats."""
    if jnp.issubdtype(dtype, jnp.floating):
        return bool(jnp.issubdtype(array.dtype, jnp.floating))
    if jnp.issubdtype(dtype, jnp.integer):
        if jnp.issubdtype(array.dtype, jnp.floating):
            return bool(np.all(np.isfinite(array)) and np.all(array == np.round(array)))
        return bool(jnp.issubdtype(array.dtype, jnp.integer))
    return array.dtype == dtype


def _cast(model: str, arrays: Mapping[str, np.ndarray], dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    """Arrays of the model's types. Raises InputError for what is not finite, or cannot be held."""
    check_finite(arrays, f"the weights of {model}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = {name: array.astype(dtypes[name]) for name, array in arrays.items()}
    lost = [name for name, array in cast.items() if not _holds(array, arrays[name])]
    if lost:
        raise InputError(f"the weights of {model} are too large for {dtypes[lost[0]]} in {listed(lost)}; give smaller ones")
    return cast


def _holds(cast: np.ndarray, array: np.ndarray) -> bool:
    if jnp.issubdtype(cast.dtype, jnp.floating):
        return bool(np.all(np.isfinite(cast)))
    return bool(np.all(cast == array))


def check_finite(arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Raises InputError that names the arrays in which NaN or infinity stands; `what` they are begins the line."""
    broken = [name for name, array in arrays.items()
              if jnp.issubdtype(array.dtype, jnp.inexact) and not np.all(np.isfinite(array))]
    if broken:
        raise InputError(f"{what} are broken: NaN or infinity in {listed(broken)}; give weights that are whole")


def _array(name: str, value: Any) -> np.ndarray:
    """A tensor on the host; what PyTorch holds in half precision as float32, which NumPy has."""
    if hasattr(value, "detach"):
        return torch_array(name, value)
    array = np.asarray(value)
    if array.dtype.kind in "OUSMm":
        raise InputError(f"{name} is no tensor of numbers but {type(value).__name__}; give a state_dict of tensors alone")
    return array


def torch_array(name: str, tensor: Any) -> np.ndarray:
    """A PyTorch tensor as an array, half precision as float32.

    Raises:
        InputError: for a quantised or sparse tensor, or one without data.
    """
    if tensor.is_quantized:
        raise InputError(f"{name} is quantised; give weights that are not, or dequantise them")
    if str(tensor.layout) != "torch.strided":
        raise InputError(f"{name} is sparse; give dense weights")
    if tensor.device.type == "meta":
        raise InputError(f"{name} is on the device 'meta' and holds no data; give weights that do")
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16 of PyTorch's, so the cast comes first
    narrow = tensor.is_floating_point() and tensor.element_size() < 4
    return (tensor.float() if narrow else tensor).numpy()
