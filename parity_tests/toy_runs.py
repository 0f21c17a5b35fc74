"""Whole runs that take seconds: toy backbones from outside the package on the digits, each run in this process."""

import contextlib
import dataclasses
import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from jax_brcd.models import BACKBONES, Preprocessing, Variant
from jax_brcd.models.layers import BatchNorm
from jax_brcd.report import page
from jax_brcd.settings.command_line import run_command
from jax_brcd.stages import context, parts
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.run import run

PIXELS, LARGE = 16, 224
OPTIONS = {
    "dataset": "digits", "teacher": "toy", "teacher_weights": "random", "student": "small_toy", "student_weights": "random",
    "train_backbone": False, "bits": 16, "views": 2, "pretraining_epochs": 1, "teacher_epochs": 1, "epochs": 1,
    "batch_size": 256, "min_epochs": 0, "validation_interval": 1, "method": "none"}
BRCD = {"method": "brcd", "clusters": 3, "cluster_restarts": 1}


class Toy(nnx.Module):
    """Images (batch, size, size, 3) to features (batch, 4 width); nothing in it knows this package."""

    def __init__(self, width: int, rngs: nnx.Rngs, size: int = PIXELS):
        self.filter = nnx.Conv(3, width, (4, 4), strides=size // 4, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)

    def __call__(self, images):
        found = nnx.relu(self.norm(self.filter(images)))
        return jnp.mean(found.reshape(len(images), 2, 2, 2, 2, -1), axis=(2, 4)).reshape(len(images), -1)


PIXELS_SIDE = 8


class PixelBlock(nnx.Module):
    """A linear layer and batch norm on a residual path."""

    def __init__(self, rngs: nnx.Rngs):
        self.filter, self.norm = nnx.Linear(12, 12, rngs=rngs), BatchNorm(12)

    def __call__(self, x, train, valid):
        return x + nnx.relu(self.norm(self.filter(x)[:, None, None], train=train, valid=valid)[:, 0, 0])


class Pixels(nnx.Module):
    """Two blocks over the pixels of images (batch, 8, 8, 3): compiles at once, and has a list of blocks."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Linear(PIXELS_SIDE * PIXELS_SIDE * 3, 12, rngs=rngs)
        self.blocks = nnx.List([PixelBlock(rngs) for _ in range(2)])

    def __call__(self, images, *, train=None, valid=None):
        x = self.stem(images.reshape(len(images), -1))
        for block in self.blocks:
            x = block(x, train, valid)
        return x


@contextlib.contextmanager
def toys(*, plots=False):
    """The registry of backbones with toys in it, three of them for small images, as it was before afterwards.

    Reports are written without their plots, which take most of the time of so small a run, unless told, and encoders are timed
    once.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "TIMED_BATCHES", 1)
        if not plots:
            patch.setattr(page, "figures", lambda report: {})
        patch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
        own = Preprocessing(PIXELS, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.35))
        for name, width in (("toy", 8), ("small_toy", 5), ("other_toy", 7)):
            BACKBONES.register(name)(Variant(lambda *, rngs, width=width: Toy(width, rngs), own))
        BACKBONES.register("large_toy")(Variant(lambda *, rngs: Toy(6, rngs, LARGE), Preprocessing(LARGE)))
        yield


def distilling(*, plots=False):
    """What Python is told to run `jax_brcd.distill` with the toys in the registry; the command's options come behind it."""
    lines = ("import sys", "from toy_runs import toys", "from jax_brcd import distill",
             f"with toys(plots={plots}): distill.main(sys.argv[1:])")
    return ["-c", "\n".join(lines)]


def environment_of_toys():
    """The environment of a process that imports this file."""
    paths = (str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def of_devices(count):
    """The environment of a process that sees one CPU as so many devices."""
    flags = (os.environ.get("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={count}")
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}


def name_of(stage):
    """What a training job is called."""
    return stage.task.name


def loss_of(stage):
    """What a training job minimises."""
    return stage.task.loss


def with_loss(stage, loss):
    """A training job with another loss."""
    return dataclasses.replace(stage, task=dataclasses.replace(stage.task, loss=loss))


@contextlib.contextmanager
def trainings():
    """The names of the stages that are trained while the block runs, one a call of the loop."""
    names, original = [], context.fit

    def counted(stage, *arguments, **told):
        names.append(name_of(stage))
        return original(stage, *arguments, **told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "fit", counted)
        yield names


def tiny(out: pathlib.Path, cache: pathlib.Path, **settings):
    """A toy run; what it said comes with its metrics. `teacher_epochs` None is not told."""
    said = []
    told = {**OPTIONS, "out": out, "cache_dir": cache, **settings}
    metrics = run(create_config(**{name: value for name, value in told.items() if (name, value) != ("teacher_epochs", None)}),
                  say=said.append)
    return metrics, said


def words(out, cache, **settings):
    """The command line of the same run."""
    told = {**OPTIONS, "out": out, "cache_dir": cache, **settings}
    return [word for name, value in told.items() for word in _option(name.replace("_", "-"), value)]


def _option(name, value):
    return [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]


def answer(main, arguments, capsys):
    """What a command prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_command(main, list(map(str, arguments)))
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    return printed.out


def refusal(main, arguments, capsys):
    """The one line with which a command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_command(main, list(map(str, arguments)))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "it/s]" not in line]  # but for bars
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def scores(metrics):
    """All but how fast the machine was."""
    return {name: value for name, value in metrics.items() if name not in ("costs", "remarks")}


def history(out):
    return [json.loads(line) | {"seconds": 0} for line in (out / "history.jsonl").read_text().splitlines()]


def stages(cache):
    """The stage folders of a cache, by name."""
    return {path.name for path in (cache / "stages").iterdir() if path.is_dir()}


def content(folder):
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same_tensors(path, other):
    """Two files of weights hold the same; the order of the notes in their headers is a matter of chance."""
    ours, theirs = safetensors.numpy.load_file(path), safetensors.numpy.load_file(other)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)
