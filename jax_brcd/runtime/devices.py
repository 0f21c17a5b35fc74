"""Where a run computes: one mesh over all devices of all processes, batches spread over it, all else on every device.

With one device every function here gives back what it is given, so such a run is the same as without a mesh.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jax_brcd.runtime.errors import InputError

Tree = Any
AXIS = "data"
CONNECTION_SECONDS = 120
PARTED = ("Gloo", "onnection", "oordination")  # in what JAX says where a process it computes with has gone


@contextlib.contextmanager
def session(processes: int, process_id: int, coordinator: str) -> Iterator[None]:
    """Joins a run of several processes, of which only the first prints; must be entered before JAX computes anything.

    All processes run the same command but for `process_id`, and see the same run and cache directories.

    Args:
        processes: how many there are; 1 starts nothing. coordinator: HOST:PORT of process 0.

    Raises:
        InputError: where the processes do not find each other. ConnectionError: where one of them went while they computed.
    """
    if processes == 1:
        yield
        return
    if not process_id < processes:
        raise InputError(f"the {processes} processes are numbered from 0; give {processes - 1} or less",
                         field="process_id", value=process_id)
    if not coordinator.rpartition(":")[2].isdigit():
        raise InputError("not HOST:PORT; give the address of process 0, such as 10.0.0.1:9876", field="coordinator",
                         value=coordinator)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # which takes SIGTERM, so that it would end no process
    try:
        jax.distributed.initialize(coordinator, processes, process_id, initialization_timeout=CONNECTION_SECONDS)
    except RuntimeError as error:
        raise InputError(f"process {process_id} of {processes} found no way to the others in {CONNECTION_SECONDS} s "
                         f"({str(error).splitlines()[0]})", field="coordinator", value=coordinator) from error
    import orbax.checkpoint as ocp

    # Gloo gives up after 30 s where one process comes late to the first collective, and waits at all later ones
    ocp.multihost.sync_global_processes("started")
    wait_for_all("connected")
    with contextlib.nullcontext() if process_id == 0 else contextlib.redirect_stdout(io.StringIO()):
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if not any(word in str(error) for word in PARTED):
                raise
            raise ConnectionError(str(error).splitlines()[0]) from error
    jax.distributed.shutdown()


@functools.cache
def mesh() -> Mesh:
    """All devices along one axis."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def count() -> int:
    """Devices of all processes."""
    return mesh().size


def is_first() -> bool:
    """Whether this is the process that prints and writes files; of one process, that one."""
    return jax.process_index() == 0


def replicate(tree: Tree) -> Tree:
    """Arrays, the same in every process, on every device."""
    return tree if count() == 1 else jax.tree.map(lambda array: _place(array, PartitionSpec()), tree)


def spread(tree: Tree, *, axis: int = 0) -> Tree:
    """Arrays, the same in every process, with each device holding its part of `axis`.

    Where the devices do not divide it, the axis is padded with zeros: rows that are not valid.
    """
    if count() == 1:
        return tree

    def place(array):
        padding = [(0, 0)] * array.ndim
        padding[axis] = (0, whole_size(array.shape[axis]) - array.shape[axis])
        return _place(np.pad(array, padding), PartitionSpec(*(None,) * axis, AXIS))

    return jax.tree.map(place, tree)


def whole_size(size: int) -> int:
    """The size to which `spread` pads an axis."""
    return -(-size // count()) * count()


def _place(array: Array | np.ndarray, spec: PartitionSpec) -> Array:
    sharding = NamedSharding(mesh(), spec)
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(array), spec), impl=jax.random.key_impl(array))
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    values = np.asarray(array)
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])


def gathered(tree: Tree) -> Tree:
    """In a compiled function: arrays that are to be whole on every device, so that every process can read them."""
    return tree if count() == 1 else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh(), PartitionSpec()))


def local(tree: Tree) -> Tree:
    """Replicated arrays as the host's own, for computations that this process does alone."""
    return tree if count() == 1 else jax.tree.map(np.asarray, tree)


def map_shards(function: Callable[..., Array], *batch: Tree) -> Array:
    """`function` of each device's part of a batch by itself, for what the compiler cannot divide: loops over rows."""
    if count() == 1 or len(jax.tree.leaves(batch)[0]) % count():
        return function(*batch)
    spec = PartitionSpec(AXIS)
    # Unchecked: the check fails on branches inside a vectorised loop, and nothing here crosses devices
    return jax.shard_map(function, mesh=mesh(), in_specs=spec, out_specs=spec, check_vma=False)(*batch)


def agreed(tree: Tree) -> Tree:
    """The first process's numbers and arrays to the last bit, so that all processes start and decide alike."""
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    arrays = [np.asarray(leaf) for leaf in leaves]
    ends = np.cumsum([0, *(array.nbytes for array in arrays)])
    sent = np.frombuffer(b"".join(array.tobytes() for array in arrays), np.uint8)  # as bytes: JAX would round 64-bit numbers
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    shared = [received[begin:end].view(array.dtype).reshape(array.shape)
              for array, begin, end in zip(arrays, ends[:-1], ends[1:], strict=True)]
    return structure.unflatten(array if hasattr(leaf, "shape") else array.item()
                               for array, leaf in zip(shared, leaves, strict=True))


def wait_for_all(moment: str) -> None:
    """Returns when every process has come to `moment`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(moment)
