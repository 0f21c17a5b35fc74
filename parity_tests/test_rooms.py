"""The picture of imports: rooms import one way, and nothing below the commands knows what stands above it."""

import ast
import pathlib

import jax_brcd

PACKAGE = pathlib.Path(jax_brcd.__file__).parent
COMMANDS = {"distill", "teacher", "student", "evaluate", "index", "serve"}


def room(module: str) -> str:
    """The folder, or the file beside the folders, that a module lies in."""
    return module.split(".")[1]


def imported(tree: ast.Module) -> set[str]:
    """The modules of the package that a file imports when it is used; what only type checkers see is left out."""
    unseen = {id(part) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
              for part in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax_brcd."):
            found.add(node.module)
        elif isinstance(node, ast.ImportFrom) and node.module == "jax_brcd":
            found |= {f"jax_brcd.{name.name}" for name in node.names if not name.name.startswith("__")}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("jax_brcd.")}
    return found


def picture() -> dict[str, set[str]]:
    """The rooms that each room imports."""
    rooms: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        own = room(".".join(("jax_brcd", *path.relative_to(PACKAGE).with_suffix("").parts)))
        if own != "__init__":
            rooms.setdefault(own, set()).update(room(module) for module in imported(ast.parse(path.read_text())))
    return {own: others - {own} for own, others in rooms.items()}


def below(rooms: dict[str, set[str]], start: str) -> set[str]:
    """Every room that one rests on."""
    found, waiting = set(), [start]
    while waiting:
        new = rooms.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def test_no_room_rests_on_itself():
    rooms = picture()
    assert len(rooms) > 15
    assert {own for own in rooms if own in below(rooms, own)} == set()


def test_each_room_knows_only_what_is_its_business():
    rooms = picture()
    assert rooms["runtime"] == set() and rooms["retrieval"] == {"runtime"} and rooms["clusters"] == {"runtime"}
    assert not below(rooms, "search") & {"training", "stages", "methods", "teachers"}, "search knows encoders, never training"
    stores = [ast.parse(path.read_text()) for path in (PACKAGE / "search" / "stores").glob("*.py")]
    others = {module for tree in stores for module in imported(tree) if not module.startswith("jax_brcd.search.stores")}
    assert {room(module) for module in others} == {"retrieval", "runtime"}, "stores know codes"
    assert below(rooms, "losses") == {"clusters", "runtime"}, "losses know arrays"
    assert "training" not in below(rooms, "encoder") and "stages" not in below(rooms, "encoder")
    assert not {own for own in rooms if own not in COMMANDS and rooms[own] & COMMANDS}, "nothing imports a command"
