"""The blocks of a model in order: how deep each weight lies, for rates by layer and for blocks that stay as they are."""

import re
from collections.abc import Callable, Iterator

from flax import nnx

from jax_brcd.models.adapt import Adapted
from jax_brcd.models.heads import HashModel

Path = tuple[str | int, ...]
# What stands behind the last block of a backbone, by the attribute's name
BEHIND = re.compile(r"ln|ln_after|norm|pooling|projection|classifier")


def block_paths(module: nnx.Module, path: Path = ()) -> Iterator[Path]:
    """The paths of a module's blocks in order: the entries of its lists, of lists within lists those of the inner ones."""
    if isinstance(module, nnx.List):
        for number, child in enumerate(module):
            yield from block_paths(child, (*path, number)) if isinstance(child, nnx.List) else ((*path, number),)
        return
    for name, child in sorted(vars(module).items()):
        if isinstance(child, nnx.List):
            yield from block_paths(child, (*path, name))


def depth_of(model: HashModel) -> tuple[Callable[[Path], int], int]:
    """A function from the path of one of the model's weights to its depth, and how many blocks the backbone has.

    What stands before the first block has depth 0, the blocks 1 and so on; what stands behind the last one, and the hash head,
    one more than that.
    """
    backbone, root = model.backbone, ("backbone",)
    if isinstance(backbone, Adapted):
        backbone, root = backbone.module, (*root, "module")
    places = {path: number for number, path in enumerate(block_paths(backbone, root), 1)}
    lengths = sorted(set(map(len, places)))

    def depth(path: Path) -> int:
        inside = next((places[path[:length]] for length in lengths if path[:length] in places), None)
        if inside is not None:
            return inside
        behind = path[: len(root)] != root or BEHIND.fullmatch(str(path[len(root)]))
        return len(places) + 1 if behind else 0

    return depth, len(places)
