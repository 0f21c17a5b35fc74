"""What the sub-folders of a folder of images are: classes, or parts of a data set that hold the classes."""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jax_brcd.data.dataset import one_hot
from jax_brcd.data.listfile import ListFile
from jax_brcd.data.scanning import Walk, examples
from jax_brcd.data.store import Listed
from jax_brcd.runtime.errors import InputError

# How people call the sub-folders of the parts, in lower case
TRAIN, DATABASE, VALIDATION, TEST = "train", "database", "validation", "test"
ROLES = {"train": TRAIN, "training": TRAIN, "database": DATABASE, "gallery": DATABASE, "val": VALIDATION, "valid": VALIDATION,
         "validation": VALIDATION, "test": TEST, "testing": TEST, "query": TEST, "queries": TEST}


class Tree(NamedTuple):
    """The images of a folder by class, or without labels where it has no sub-folders of images."""

    classes: dict[str, list[str]]
    loose: list[str]
    empty: list[str]  # sub-folders without images

    def listed(self, names: Sequence[str]) -> ListFile:
        """The images with one-hot labels under the classes `names`, all zeros for loose ones."""
        images = [Listed(path) for paths in (*self.classes.values(), self.loose) for path in paths]
        numbers = np.repeat([names.index(name) for name in self.classes], [len(paths) for paths in self.classes.values()])
        labels = one_hot(numbers.astype(int), len(names)) if self.classes else np.zeros((len(images), len(names)), np.uint8)
        return ListFile(images, labels)


def read_tree(walk: Walk, folder: str = "") -> Tree:
    """The classes of a folder.

    Raises:
        InputError: for images both beside and in sub-folders, for parts inside of classes, for one sub-folder that holds all.
    """
    level = walk.level(folder)
    found = {os.path.basename(path): walk.images_below(path) for path in level.folders}
    tree = Tree({name: paths for name, paths in found.items() if paths}, level.images,
                [os.path.join(folder, name) for name, paths in found.items() if not paths])
    place = walk.root / folder
    if tree.loose and tree.classes:
        raise InputError(f"{place}: images lie both beside and in sub-folders ({os.path.basename(tree.loose[0])}, "
                         f"{next(iter(tree.classes))}/); put each into the sub-folder of its class, or all of them into one "
                         "folder without labels")
    _check_depth(walk, folder, tree)
    return tree


def split_folders(walk: Walk) -> dict[str, str]:
    """The sub-folders that are parts of the data set, by part; none where the sub-folders are classes.

    Raises:
        InputError: for parts beside classes, two sub-folders for one part, and queries with nothing to search.
    """
    top = [name for name in walk.level().folders if walk.images_below(name)]
    parts = [name for name in top if name.lower() in ROLES]
    classes = [name for name in top if name.lower() not in ROLES]
    if not parts or (len(parts) == 1 and classes and walk.level(parts[0]).images):
        return {}  # vehicles may well have a class called train
    if classes:
        raise InputError(f"{walk.root}: {', '.join(parts)} may be parts of a data set or classes beside {examples(classes)}; "
                         "put the classes into the parts (train/cat), or give these sub-folders other names")
    roles: dict[str, str] = {}
    for name in parts:
        other = roles.setdefault(ROLES[name.lower()], name)
        if other != name:
            raise InputError(f"{walk.root}: {other} and {name} are the same part; leave one of the two")
    if TRAIN not in roles and DATABASE not in roles:
        raise InputError(f"{walk.root}: {', '.join(parts)} alone, and no images that train; put them into {walk.root / TRAIN}, "
                         f"or name {walk.root / parts[0]} with `data_dir` to draw all parts from it")
    return {role: roles[role] for role in dict.fromkeys(ROLES.values()) if role in roles}


def _check_depth(walk: Walk, folder: str, tree: Tree) -> None:
    """Refuses trees whose classes lie at another depth than this one takes them from."""
    below = {name: [os.path.basename(path) for path in walk.level(os.path.join(folder, name)).folders
                    if walk.images_below(path)] for name in tree.classes if not walk.level(os.path.join(folder, name)).images}
    place = walk.root / folder
    if len(tree.classes) == 1 and below:
        only = pathlib.Path(place, next(iter(below)))
        raise InputError(f"{place}: all images lie in the sub-folders of {only.name}; name {only} with `data_dir`")
    roles = [{ROLES.get(each.lower()) for each in names} for names in below.values()]
    if tree.classes and len(below) == len(tree.classes) and all(len(each) > 1 and None not in each for each in roles):
        name, inner = next(iter(below.items()))
        raise InputError(f"{place}: the parts lie inside of the classes ({name}/{inner[0]}, {name}/{inner[1]}); put the "
                         f"classes into the parts ({inner[0]}/{name}, {inner[1]}/{name})")
