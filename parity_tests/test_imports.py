"""What an import costs, counted in packages that it loads: the whole package none, a room none that only some of it needs."""

import ast
import importlib
import json
import pathlib
import subprocess
import sys

import pytest

import jax_brcd

PACKAGE = pathlib.Path(jax_brcd.__file__).parent
HEAVY = {"sklearn", "scipy", "grain", "PIL", "orbax", "matplotlib", "jinja2", "torch", "torchvision", "tqdm", "pandas", "onnx",
         "tensorflow", "pyarrow", "huggingface_hub", "starlette", "uvicorn", "multipart"}
# What only the function that writes a report imports, and what only the command that serves does
APART = {"jax_brcd.report.plots", *(f"jax_brcd.search.service.{name}" for name in ("app", "gate", "protocol"))}
LOADED = """
import importlib, json, sys
seen, blamed = set(), {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    now = {module.partition(".")[0] for module in sys.modules}
    blamed[name], seen = sorted(now - seen), now
print(json.dumps(blamed))
"""


def loaded(*modules: str) -> dict[str, set[str]]:
    """The packages that each of `modules`, imported one after the other into a new process, was the first to load."""
    done = subprocess.run([sys.executable, "-c", LOADED, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: set(packages) for name, packages in json.loads(done.stdout).items()}


def modules() -> list[str]:
    """Every module of the package but those that a user runs as programs."""
    paths = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__")


def test_the_package_by_itself_loads_nothing_of_weight():
    assert not loaded("jax_brcd")["jax_brcd"] & {"jax", "jaxlib", "flax", "optax", "numpy", *HEAVY}


def test_no_module_loads_a_package_that_only_some_calls_need():
    """Such a package is imported in the function that needs it."""
    names = [name for name in modules() if name not in APART]
    guilty = {name: sorted(packages & HEAVY) for name, packages in loaded(*names).items() if packages & HEAVY}
    assert guilty == {}


def test_every_name_of_the_package_is_found_and_listed():
    for name in jax_brcd.__all__:
        assert getattr(jax_brcd, name).__module__.startswith("jax_brcd.") and name in dir(jax_brcd)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = jax_brcd.lod
    with pytest.raises(ImportError):
        importlib.import_module("jax_brcd.lod")


def test_type_checkers_see_the_same_names_as_users():
    """The imports under TYPE_CHECKING name what is loaded at run time, from the same rooms; the package says it is typed."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {name.name: node.module.partition(".")[2] for node in checked.body for name in node.names}
    assert seen == jax_brcd._ROOMS and sorted(seen) == sorted(jax_brcd.__all__)
    assert (PACKAGE / "py.typed").exists() and "py.typed" in (PACKAGE.parent / "pyproject.toml").read_text()
