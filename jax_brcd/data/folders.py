"""A folder of images: a class for each sub-folder, alone or within sub-folders for the parts; or images without labels, which
train but cannot be evaluated."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jax_brcd.data.dataset import EVERYTHING, ImageDataset, Request, label_notes
from jax_brcd.data.foldertree import DATABASE, TEST, TRAIN, VALIDATION, Tree, read_tree, split_folders
from jax_brcd.data.listfile import ListFile
from jax_brcd.data.lists import USUAL_K, decode_parts
from jax_brcd.data.scanning import Walk, examples
from jax_brcd.runtime.errors import InputError

QUERY_SHARE = 0.1
FEWEST = 4  # a validation query, a test query, and two images that can be told apart
DRAWN = "a tenth drawn as queries, halved; the rest trains and is the database"


class Plan(NamedTuple):
    """The parts of a folder before its images are decoded."""

    lists: dict[str, ListFile]
    class_names: tuple[str, ...]
    split: str
    notes: tuple[str, ...] = ()


def load(request: Request) -> ImageDataset:
    """The images below a folder, sorted by path.

    A class is a sub-folder that holds images at any depth, in the order of their names. Without such sub-folders the images
    that lie in the folder itself have no labels. Sub-folders that are called train, val, test and the like are the parts and
    hold the classes. Without them the parts are drawn by the seed: a tenth are queries, halved into validation and test; the
    rest train and are the database.

    Raises:
        InputError: for a folder that is absent or holds too few images, or that may be meant in two ways.
    """
    walk = Walk(request.folder)
    try:
        walk.level()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{request.folder}: no such folder; name the one that holds the images with `data_dir`") from None
    draw = np.random.default_rng(request.seed)
    roles = split_folders(walk)
    plan = _parts(walk, roles, draw, request.train_images == "all") if roles else _drawn(walk, draw)
    parts, notes = decode_parts(plan.lists, request)
    return ImageDataset(
        name="folder", split=plan.split, **parts, class_names=plan.class_names, flip=True,
        default_k=min(USUAL_K, len(parts["database"])), central_crop=True, squares=request.square_side,
        notes=(*walk.notes(), *plan.notes, *label_notes(parts), *notes))


def _drawn(walk: Walk, draw: np.random.Generator) -> Plan:
    """A tree of classes, or of images without labels, of which a tenth are queries."""
    tree = read_tree(walk)
    names = tuple(tree.classes)
    database, validation, test = _draw_queries(walk, tree.listed(names).called(EVERYTHING), draw)
    lists = {"train": database, "database": database, "validation": validation, "test": test}
    return Plan(lists, names, DRAWN, (*_tree_notes([tree]), *_one_class(names)))


def _parts(walk: Walk, roles: dict[str, str], draw: np.random.Generator, everything: bool) -> Plan:
    """A tree of parts that hold the classes. The part that trains is searched where there is no database, and the database
    trains where no part does; the queries of one part are halved where the other is missing, and drawn where both are."""
    if walk.level().images:
        raise InputError(f"{walk.root}: images lie beside the parts {', '.join(roles.values())} "
                         f"({walk.level().images[0]}); put each into one of them")
    trees = {role: read_tree(walk, folder) for role, folder in roles.items()}
    searched = DATABASE if DATABASE in trees else TRAIN
    queries = [role for role in (VALIDATION, TEST) if role in trees]
    used, notes = _labelled_queries(walk, roles, trees, searched, queries)
    names = tuple(sorted({name for tree in trees.values() for name in tree.classes}))
    lists = {role: tree.listed(names).called(role) for role, tree in trees.items()}
    database, told = lists[searched], ", ".join(roles[role] for role in trees)
    train = lists[TRAIN] if TRAIN in lists and not everything else database
    split = f"sub-folders {told}"
    if not used:
        database, validation, test = _draw_queries(walk, database, draw)
        train = database if train is lists[searched] else train
        split += f"; a tenth of {roles[searched]} drawn as queries, halved"
    elif len(used) == 1:
        shuffled = draw.permutation(len(lists[used[0]].images))
        if len(shuffled) < 2:
            raise InputError(f"{walk.root / roles[used[0]]}: one image; at least two are needed, one to choose checkpoints by "
                             "and one to report on")
        validation, test = (lists[used[0]].take(half) for half in np.split(shuffled, [len(shuffled) // 2]))
        split += f"; {roles[used[0]]} halved into validation and test queries"
    else:
        validation, test = lists[VALIDATION], lists[TEST]
    parts = {"train": train, "database": database, "validation": validation, "test": test}
    unused = [name for name in walk.level().folders if name not in roles.values()]
    return Plan(parts, names, split, (*notes, *_tree_notes(list(trees.values()), unused), *_one_class(names)))


def _labelled_queries(
    walk: Walk, roles: dict[str, str], trees: dict[str, Tree], searched: str, queries: list[str],
) -> tuple[list[str], list[str]]:
    """The parts whose images can be queries of the part that is searched, and what is to be said of the others.

    Raises:
        InputError: for queries of classes that the part that is searched does not have, or without classes where it has some.
    """
    classes, notes, used = set(trees[searched].classes), [], []
    for role in queries:
        folder, found = walk.root / roles[role], set(trees[role].classes)
        foreign = sorted(found - classes)
        if foreign:
            raise InputError(f"{folder}: class {foreign[0]} is not in {roles[searched]}, which has "
                             f"{examples(sorted(classes)) or 'none'}; parts need the same classes")
        if classes and not found:
            notes.append(f"The images of {roles[role]} have no classes, so they are no queries.")
            continue
        used.append(role)
        if classes - found:
            notes.append(f"{roles[role]} has no images of: {examples(sorted(classes - found))}.")
    if queries and not used:
        raise InputError(f"{walk.root / roles[queries[0]]}: its images have no classes and those of {roles[searched]} have; "
                         "put each into the sub-folder of its class, or take the part out")
    return used, notes


def _draw_queries(walk: Walk, part: ListFile, draw: np.random.Generator) -> tuple[ListFile, ListFile, ListFile]:
    """A part without a tenth of its images, and the two halves of that tenth."""
    if len(part.images) < FEWEST:
        raise InputError(f"{walk.root}: {len(part.images)} images; at least {FEWEST} are needed; name their folder with "
                         "`data_dir`" + "".join(f" ({note.rstrip('.')})" for note in walk.notes()))
    shuffled = draw.permutation(len(part.images))
    queries = max(2, round(QUERY_SHARE * len(shuffled)))
    return (part.take(np.sort(shuffled[queries:])), part.take(shuffled[: queries // 2]),
            part.take(shuffled[queries // 2 : queries]))


def _tree_notes(trees: Sequence[Tree], unused: Sequence[str] = ()) -> list[str]:
    empty = [*unused, *(name for tree in trees for name in tree.empty)]
    return [f"Sub-folders without images that are read, which count as nothing: {examples(empty)}."] if empty else []


def _one_class(names: tuple[str, ...]) -> list[str]:
    if len(names) != 1:
        return []
    return [f"All images are of one class, {names[0]}, so every answer is right and the measures say nothing."]
