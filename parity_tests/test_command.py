"""The command: every bad input ends in one line and status 2, before anything on disk has changed."""

import dataclasses
import errno
import os

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jax_brcd import distill
from jax_brcd.data import cifar10
from jax_brcd.methods import METHODS
from jax_brcd.models import create_backbone, torchvision_state
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import atomic_path, write_json
from jax_brcd.runtime.registry import Registry
from jax_brcd.settings.command_line import run_command, spelled
from jax_brcd.stages.configuration import PRESETS, STAGES, create_config
from jax_brcd.teachers.objectives import OBJECTIVES
from jax_brcd.training.checkpoints import Checkpoints

SMALL = ["--pretraining-epochs", "1", "--teacher-epochs", "1", "--epochs", "1", "--views", "2"]


def refused(capsys, *arguments):
    """The one line that a command line is answered with."""
    with pytest.raises(SystemExit) as stop:
        run_command(distill.main, list(map(str, arguments)))
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--dataset", "cifar"], "unknown data set 'cifar': did you mean 'cifar10'?"),
    (["--teacher", "vit_b16"], "unknown backbone 'vit_b16': did you mean 'vit_b_16'?"),
    (["--student", "resnet19"], "unknown backbone 'resnet19': did you mean 'resnet18'?"),
    (["--method", "brdc"], "unknown method 'brdc': did you mean 'brcd'?"),
    (["--variant", "corect"], "unknown value of --variant 'corect': did you mean 'corrected'?"),
    (["--preset", "cifar10-vit_b_16"], "did you mean 'cifar10-vit_b_16-resnet18'?"),
    (["--bit", "64"], "unknown option '--bit': did you mean '--bits'?"),
    (["64"], "unexpected word '64'"),
    (["--bits", "0"], "--bits 0: too small; give 1 or more"),
    (["--bits", "many"], "--bits: 'many' is no whole number"),
    (["--lr", "-1"], "--lr -1.0: too small; give more than 0"),
    (["--temperature", "nan"], "--temperature nan: not a finite number"),
    (["--alpha", "1.5"], "--alpha 1.5: too large; give 1 or less"),
    (["--seed", "-1"], "--seed -1: too small"),
    (["--method", "none", "--alpha", "0.5"], "--alpha: not a setting of method 'none'; its own are: none"),
    (["--train-images", "half"], "--train-images: 'half' is no whole number or 'published' or 'all'"),
    (["--train-images", "0"], "--train-images 0: too small; give 1 or more"),
])
def test_a_setting_that_cannot_be_is_refused(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


def test_an_unknown_option_is_answered_with_the_nearest_few_of_a_hundred(capsys):
    line = refused(capsys, "--bit", "64")
    assert line.startswith("error: unknown option '--bit': did you mean '--bits'? near it: --bits, ")
    assert line.endswith("; --help lists all") and line.count("--") == 1 + 1 + 5 + 1
    assert refused(capsys, "--zzzzzzzz") == "error: unknown option '--zzzzzzzz': --help lists all"


@pytest.mark.parametrize(("arguments", "message"), [
    (["--k", "798"], "--k 798: the database of digits holds 797 images"),
    (["--clusters", "798"], "--clusters 798: more clusters than the 797 training images"),
    (["--student-weights", "/absent.safetensors"], "--student-weights /absent.safetensors: no such weight file"),
    (["--student-weights", "held-out"], "held-out"),
    (["--student", "vit_h_14", "--student-weights", "random"],
     "--student vit_h_14: takes multiples of 14 pixels, but vit_lite_4_8 sees 32"),
])
def test_what_does_not_fit_the_data_is_refused_before_anything_is_written(capsys, tmp_path, arguments, message):
    assert message in refused(capsys, "--out", tmp_path / "run", "--cache-dir", tmp_path, *arguments)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_the_data_set_is_refused_offline(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", "file:///absent/cifar-10-binary.tar.gz")
    line = refused(capsys, "--dataset", "cifar10", "--data-dir", tmp_path / "data", "--out", tmp_path / "run")
    assert f"put the file from file:///absent/cifar-10-binary.tar.gz at {tmp_path / 'data'}" in line


@pytest.fixture(scope="module")
def resnet8():
    return torchvision_state(create_backbone("resnet8"))


@pytest.mark.parametrize(("change", "message"), [
    (lambda state: {name: value for name, value in state.items() if name != "conv1.weight"}, "missing conv1.weight"),
    (lambda state: {**state, "conv9.weight": np.ones(3, np.float32)}, "unknown conv9.weight"),
    (lambda state: {**state, "bn1.weight": np.ones(3, np.float32)}, "mis-shaped bn1.weight (3,) instead of (16,)"),
    (lambda state: {"encoder.ln.weight": np.ones(3, np.float32)}, "missing conv1.weight"),
])
def test_weights_that_do_not_fit_are_refused(capsys, tmp_path, resnet8, change, message):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(change(resnet8), path)
    line = refused(capsys, "--student-weights", path, "--out", tmp_path / "run", "--cache-dir", tmp_path)
    assert message in line and str(path) in line
    assert not (tmp_path / "run").exists()


def test_a_run_directory_of_another_configuration_is_left_alone(capsys, tmp_path):
    write_json(tmp_path / "config.json", {"settings": create_config(bits=32).flat(), "data": {}})
    before = (tmp_path / "config.json").read_bytes()
    line = refused(capsys, "--bits", "64", "--lr", "0.5", "--out", tmp_path)
    assert "--bits 32 (now 64)" in line and "--lr 0.002 (now 0.5)" in line
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_run_directory_of_an_older_version_is_refused_with_the_reason(capsys, tmp_path):
    write_json(tmp_path / "config.json", create_config().flat())
    line = refused(capsys, "--out", tmp_path)
    assert f"{tmp_path}: written by an older jax_brcd, which kept no record of the data it used; name another --out" in line


def test_weights_that_are_not_finite_are_refused_by_name(capsys, tmp_path):
    state = torchvision_state(create_backbone("vit_lite_4_8"))
    state["encoder.ln.weight"][:] = np.nan
    safetensors.numpy.save_file(state, tmp_path / "nan.safetensors")
    line = refused(capsys, "--teacher-weights", tmp_path / "nan.safetensors", "--out", tmp_path / "run", "--cache-dir",
                   tmp_path)
    assert "NaN or infinity in encoder.ln.weight" in line and not (tmp_path / "run").exists()


def test_a_full_disk_ends_in_one_line(capsys):
    def main(argv):
        raise OSError(errno.ENOSPC, "No space left on device", "/disk/file")

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == ("error: /disk/file: No space left on device; free space or mend the path, then run the "
                                       "same command again to go on\n")


def test_a_checkpoint_that_does_not_fit_the_disk_leaves_the_last_one(small_disk):
    checkpoints = Checkpoints(small_disk / "stage")
    checkpoints.save({"weights": jnp.arange(8.0)}, {"epoch": 1})
    with pytest.raises(OSError, match="[Nn]o space left"):
        checkpoints.save({"weights": jnp.asarray(np.random.default_rng(0).normal(size=2**20), jnp.float32)}, {"epoch": 2})
    again = Checkpoints(small_disk / "stage")
    arrays, progress = again.restore({"weights": jnp.zeros(8)})
    np.testing.assert_array_equal(arrays["weights"], np.arange(8.0))
    assert progress == {"epoch": 1}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]
    with atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file.txt"]


def test_ctrl_c_says_how_to_go_on(capsys):
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_help_explains_every_setting_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        distill.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for stage in (*STAGES, *OBJECTIVES.values(), *METHODS.values()):
        for field in dataclasses.fields(stage):
            assert f"--{field.name.replace('_', '-')}" in text
            assert spelled(" ".join(field.metadata["help"].split()))[:30] in text
    assert "(default: 0.3)" in text and "(default: 400; of digits, 20)" in text


def test_the_published_preset_holds_the_published_settings():
    """docs/method.md, "Run settings" and "The teacher"."""
    config = create_config("cifar10-vit_b_16-resnet18").flat()
    published = {"dataset": "cifar10", "teacher": "vit_b_16", "student": "resnet18", "bits": 64, "temperature": 0.3,
                 "kl_weight": 0.001, "alpha": 0.8, "margin": 0.5, "clusters": 10, "cluster_restarts": 30, "robust": True,
                 "mask_bits": True, "epochs": 400, "validation_interval": 10, "patience": 5, "batch_size": 64, "lr": 1e-3,
                 "teacher_lr": 5e-4, "train_backbone": False, "train_images": "published", "fresh_views": True}
    assert {name: config[name] for name in published} == published
    assert create_config("cifar10-vit_b_16-efficientnet_b0").flat() == {**config, "student": "efficientnet_b0"}


def test_what_is_given_goes_before_the_preset_and_the_preset_before_defaults():
    assert create_config().student.student == "resnet8"
    assert create_config(student="resnet18").student.student == "resnet18"
    assert create_config(dataset="cifar10").student.epochs == 400
    assert create_config("digits", epochs=3).student.epochs == 3
    assert set(PRESETS) == {"digits", "cifar10-vit_b_16-resnet18", "cifar10-vit_b_16-efficientnet_b0", "cifar10-32-whole"}


@pytest.mark.parametrize(("preset", "settings", "fresh"), [
    (None, {"dataset": "cifar10"}, True), ("cifar10-vit_b_16-resnet18", {}, True), (None, {}, False),
    (None, {"dataset": "cifar10", "views": 4}, False), ("cifar10-vit_b_16-resnet18", {"views": 4}, False),
    (None, {"fresh_views": True}, True), (None, {"fresh_views": True, "views": 4}, True),
    (None, {"dataset": "cifar10", "fresh_views": False}, False),
])
def test_views_are_new_each_epoch_unless_a_number_of_them_is_to_be_kept(preset, settings, fresh):
    assert create_config(preset, **settings).data.fresh_views is fresh


@pytest.mark.parametrize(("bits", "told", "expected"), [(16, None, 80), (32, None, 0), (16, 5, 5)])
def test_runs_of_sixteen_bits_train_eighty_epochs(bits, told, expected):
    assert create_config(bits=bits, min_epochs=told).min_epochs == expected


def test_a_registry_names_the_nearest_entry():
    registry = Registry("fruit")
    registry.register("apple")(1)
    assert registry["apple"] == 1 and list(registry) == ["apple"]
    with pytest.raises(InputError, match="unknown fruit 'aple': did you mean 'apple'"):
        registry["aple"]
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("apple")(2)
