"""What everything stands on: registries, errors, paths, progress, and numbers of 32 bits."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jax_brcd.runtime.errors import InputError, TrainingDiverged, UnknownName
from jax_brcd.runtime.files import as_path, atomic_path, read_json, write_json
from jax_brcd.runtime.precision import in_32_bits
from jax_brcd.runtime.registry import Registry, unknown_name
from jax_brcd.runtime.workers import cores
from jax_brcd.settings.command_line import bars


@pytest.fixture
def registry():
    made = Registry("fruit")
    made.register("apple")("an apple")
    made.register("pear")("a pear")
    return made


def test_a_registry_is_a_mapping_to_python(registry):
    """Which asks with `get` and `in`, and catches KeyErrors."""
    assert registry.get("plum") is None and registry.get("plum", 3) == 3 and registry.get("pear") == "a pear"
    assert "plum" not in registry and list(registry) == ["apple", "pear"] and len(registry) == 2
    with pytest.raises(KeyError):
        registry["plum"]


def test_an_unknown_name_is_answered_with_the_nearest(registry):
    with pytest.raises(UnknownName, match="^unknown fruit 'appel': did you mean 'apple'. known: apple, pear$") as found:
        registry["appel"]
    assert isinstance(found.value, InputError) and isinstance(found.value, ValueError)
    with pytest.raises(ValueError, match="fruit 'pear' is registered twice"):
        registry.register("pear")("another")


def test_of_many_names_only_the_nearest_are_shown():
    names = [f"net{number}" for number in range(40)]
    assert unknown_name("net", "net7x", names).startswith("unknown net 'net7x': did you mean 'net7'? near it: net7, ")
    assert unknown_name("net", "net7x", names).endswith("; 40 are known") and unknown_name("net", "net7x", names).count(", ") == 4
    assert unknown_name("net", "zzz", names, listed="a list has all") == "unknown net 'zzz': a list has all"


def test_an_error_is_one_line_that_spells_settings_as_it_is_told():
    error = InputError("too many; give fewer,\n  or a larger `resident_mib`", field="k", value=798)
    assert str(error) == "k 798: too many; give fewer, or a larger resident_mib"
    assert error.line(lambda name: "--" + name.replace("_", "-")) == (
        "--k 798: too many; give fewer, or a larger --resident-mib")
    assert str(InputError("nothing there")) == "nothing there" and issubclass(TrainingDiverged, ValueError)


def test_paths_are_text_or_paths_and_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_json("~/folder/value.json", {"a": 1})
    assert read_json("~/folder/value.json") == read_json(tmp_path / "folder" / "value.json") == {"a": 1}
    assert as_path("~") == as_path(tmp_path) == tmp_path


def test_bars_are_drawn_on_a_terminal_for_those_who_ask(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with bars() as progress:
        progress("epochs", 0, 2)
        progress("images", 5, 10)
        progress("images", 10, 10)
        progress("epochs", 1, 1)  # ended early
    printed = capsys.readouterr()
    assert printed.out == "" and "epochs:   0%" in printed.err and "images:" in printed.err
    with bars(shown=False) as progress:
        progress("epochs", 0, 2)
    assert capsys.readouterr().err == ""


WITHIN_64_BITS = """
import jax, jax.numpy as jnp
from jax_brcd.runtime.precision import in_32_bits

@in_32_bits
def inner():
    key = jax.random.key(0)
    return jnp.arange(3), jnp.ones(2) / 3, jax.random.uniform(key), jax.random.randint(key, (), 0, 99)

before = jnp.arange(3).dtype
numbers = inner()
print(before, *(number.dtype for number in numbers), jnp.arange(3).dtype, *(number.tolist() for number in numbers))
"""


def test_numbers_keep_32_bits_where_jax_is_told_to_use_64():
    done = subprocess.run([sys.executable, "-c", WITHIN_64_BITS], env=os.environ | {"JAX_ENABLE_X64": "1"}, capture_output=True,
                          text=True, check=True)
    first, numbers = done.stdout.split("[", 1)
    assert first.split() == ["int64", "int32", "float32", "float32", "int32", "int64"]

    @in_32_bits
    def inner():
        return (jnp.arange(3), jnp.ones(2) / 3, jax.random.uniform(jax.random.key(0)),
                jax.random.randint(jax.random.key(0), (), 0, 99))

    assert "[" + numbers.strip() == " ".join(str(number.tolist()) for number in inner())


def test_a_full_disk_that_a_library_tells_of_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="No space left on device") as full, atomic_path(tmp_path / "file"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert full.value.filename == str(tmp_path / "file") and os.listdir(tmp_path) == ["file"]


def test_the_home_of_nobody_is_refused_in_one_line():
    with pytest.raises(InputError, match="~nosuchuser/x: no such user's home"):
        as_path("~nosuchuser/x")


def test_cores_are_those_that_a_process_is_kept_to():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system keeps no process to some cores")
    free = os.sched_getaffinity(0)
    assert cores() == len(free)
    kept = subprocess.run([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{min(free)}}}); "
                           "from jax_brcd.runtime.workers import cores; print(cores())"], capture_output=True, text=True, check=True)
    assert kept.stdout == "1\n"
