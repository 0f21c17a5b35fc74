"""What the commands of this room share: numbers of the command line, and what is set before JAX computes."""

from jax_brcd.retrieval.packing import whole_number
from jax_brcd.runtime import compile_cache
from jax_brcd.runtime.xla import set_flags
from jax_brcd.settings.options import read_number
from jax_brcd.settings.stages import DataConfig


def prepare() -> None:
    """Sets the compiler's options and keeps compiled programs where runs keep them."""
    set_flags()
    compile_cache.use(DataConfig.cache_dir)


def whole(text: str, field: str, *, low: int) -> int:
    """A whole number of at least `low` that the setting `field` was given as text. Raises InputError for anything else."""
    return whole_number(read_number(int, (), text, field), field, low=low)
