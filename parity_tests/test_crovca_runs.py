"""Runs with CroVCA's teacher: its settings, its head through training, folders and later runs, more epochs, several devices."""

import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import safetensors.numpy
import torch
from toy_runs import OPTIONS, assert_same_tensors, history, name_of, of_devices, refusal, stages, tiny

import jax_brcd
from jax_brcd import distill
from jax_brcd.data import load_dataset
from jax_brcd.encoder import STUDENT, TEACHER, load
from jax_brcd.models import Preprocessing, model_state
from jax_brcd.stages import context as stage_context
from jax_brcd.stages.configuration import create_config, create_parser
from jax_brcd.stages.run import run_teacher
from jax_brcd.student import made_by
from jax_brcd.teachers.objectives import OBJECTIVES, proposals
from torch_ref import distill as torch_distill
from torch_ref import models as torch_models

pytestmark = pytest.mark.usefixtures("toy_backbones")

PROPOSED = {"teacher_lr": 1e-3, "teacher_epochs": 5, "teacher_batch_size": 256, "view_recipe": "crovca"}
CROVCA = {"teacher_objective": "crovca", "checkpoint_seconds": 0}


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """A run of two epochs of the teacher's head and one of the student that CroVCA teaches, and its metrics."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, tiny(out, cache, **CROVCA, teacher_epochs=2, method="crovca", replaces_objective=True)[0]


def teacher_alone(out, cache, **settings):
    return run_teacher(create_config(**OPTIONS | CROVCA | {"out": out, "cache_dir": cache, "teacher_epochs": 2} | settings))


# Settings

def resolved(config):
    return {name: config.flat()[name] for name in PROPOSED}


def test_whoever_names_the_objective_gets_what_it_proposes_and_can_tell_otherwise():
    """Also where the digits' preset, which applies by itself, says otherwise of the epochs."""
    for settings in ({}, {"dataset": "cifar10"}, {"preset": "cifar10-vit_b_16-resnet18"}):
        config = create_config(teacher_objective="crovca", **settings)
        assert resolved(config) == PROPOSED and config.teacher_batch_size == 256 and config.run.batch_size == 64
        assert config.teacher_epochs(head_came=True) == 0  # as it was not given by name
    told = {"teacher_lr": 0.1, "teacher_epochs": 7, "teacher_batch_size": 8, "view_recipe": "brcd"}
    assert resolved(create_config(teacher_objective="crovca", **told)) == told


def test_other_objectives_keep_the_published_defaults():
    for name in set(OBJECTIVES) - {"crovca"}:
        assert not proposals(OBJECTIVES[name])
        config = create_config(dataset="cifar10", teacher_objective=name, batch_size=32)
        assert resolved(config) == {"teacher_lr": 5e-4, "teacher_epochs": 60, "teacher_batch_size": None, "view_recipe": "brcd"}
        assert config.teacher_batch_size == 32


def test_help_tells_what_an_objective_proposes():
    text = " ".join(create_parser("p", "d").format_help().split())
    assert "(default: 60; of digits, 40; of crovca, 5)" in text and "(default: brcd; of crovca, crovca)" in text


@pytest.mark.parametrize(("options", "message"), [
    (["--crovca-head", "middle"], "unknown value of --crovca-head 'middle'"),
    (["--crovca-epsilon", "0"], "--crovca-epsilon 0.0: too small; give more than 0"),
    (["--teacher-batch-size", "0"], "--teacher-batch-size 0: too small; give 1 or more"),
])
def test_settings_out_of_bounds_are_refused(capsys, options, message):
    assert message in refusal(distill.main, ["--teacher-objective", "crovca", *options], capsys)


# Runs

def test_a_run_trains_the_head_with_its_batch_norm_and_teaches_a_student(whole, cache):
    out, metrics = whole
    teacher = jax_brcd.load(out / "teacher")
    state = model_state(teacher.model)
    steps = 2 * 2 * -(-metrics["protocol"]["training"] // 256)
    assert teacher.model.form == "hashcoder_small" and state["hash_head.layers.3.batches"] == steps
    assert np.abs(state["hash_head.layers.3.mean"]).max() > 0 and not state["norm.mean"].any()  # a frozen backbone's stay
    losses = [record for record in history(out) if record["stage"] == "teacher"]
    assert {"alignment", "coding_rate"} <= set(losses[0]) and losses[1]["loss"] < losses[0]["loss"]
    with np.load(out / "codes.npz") as arrays:
        packed = teacher.encode(queries(cache)).packed
        np.testing.assert_array_equal(arrays["teacher_test"][:5], packed[:5])
    config = json.loads((out / "config.json").read_text())["settings"]
    assert (config["teacher_lr"], config["view_recipe"], config["teacher_batch_size"]) == (1e-3, "crovca", 256)
    assert jax_brcd.load(out / "student_asymmetric").space == teacher.space
    again = create_config(**made_by(teacher.provenance))  # of another student of this teacher
    assert again.hashing == create_config(teacher_objective="crovca").hashing and again.data.view_recipe == "crovca"


def queries(cache):
    """The first of the digits that search."""
    return load_dataset("digits", cache_dir=cache).test.images[:5]


def test_a_teacher_with_such_a_head_is_brought_along_by_its_weights_alone(whole, tmp_path, cache):
    out, metrics = whole
    found, said = tiny(tmp_path / "next", cache, teacher_weights=out / "teacher", teacher_epochs=None, method="mse")
    assert found["teacher"] == metrics["teacher"] and any("its hash head of 16 bits is taken too" in line for line in said)
    assert_same_tensors(tmp_path / "next" / "teacher.safetensors", out / "teacher.safetensors")
    assert load(tmp_path / "next" / "teacher").space == load(out / "teacher").space


def test_a_head_learns_on_new_views_each_epoch_too(tmp_path, cache):
    teacher_alone(tmp_path / "run", cache, crovca_head="large", fresh_views=True, teacher_batch_size=512, teacher_epochs=1)
    teacher = load(tmp_path / "run" / "teacher")
    assert teacher.model.form == "hashcoder_large" and model_state(teacher.model)["hash_head.layers.5.batches"] > 0


def test_an_interrupted_head_goes_on_to_the_same_weights(whole, tmp_path, monkeypatch):
    fit = stage_context.fit

    def interrupted(stage, state, checkpoints, **told):
        def stop(record):
            raise KeyboardInterrupt
        return fit(stage, state, checkpoints, on_epoch=stop, **told)

    with monkeypatch.context() as patch:
        patch.setattr(stage_context, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            teacher_alone(tmp_path / "run", tmp_path / "cache")
    trained = []
    monkeypatch.setattr(stage_context, "fit", lambda stage, state, checkpoints, **told: fit(
        stage, state, checkpoints, on_epoch=lambda record: trained.append((name_of(stage), record["epoch"])), **told))
    teacher_alone(tmp_path / "run", tmp_path / "cache")
    assert trained == [("teacher", 2)]
    assert_same_tensors(tmp_path / "run" / "teacher.safetensors", whole[0] / "teacher.safetensors")


def test_more_epochs_are_another_training_whose_rate_falls_more_slowly(whole, cache, tmp_path):
    teacher_alone(tmp_path / "run", cache, teacher_epochs=1)
    before = safetensors.numpy.load_file(tmp_path / "run" / "teacher.safetensors")
    names = stages(cache)
    teacher_alone(tmp_path / "run", cache)
    assert {name for name in stages(cache) - names if name.startswith("teacher")} == set()  # the whole run's was found
    assert_same_tensors(tmp_path / "run" / "teacher.safetensors", whole[0] / "teacher.safetensors")
    after = safetensors.numpy.load_file(tmp_path / "run" / "teacher.safetensors")
    assert any((before[name] != after[name]).any() for name in before)


# torch_ref

def test_torch_ref_trains_such_a_head_over_a_frozen_backbone_and_takes_it_along(tmp_path):
    config = create_config(teacher="resnet8", teacher_weights="random", teacher_objective="crovca", views=2, teacher_epochs=1,
                           teacher_batch_size=5, bits=8)
    images = np.random.default_rng(0).integers(256, size=(12, 8, 8, 3), dtype=np.uint8)
    data = types.SimpleNamespace(train=types.SimpleNamespace(images=images), flip=True, evaluation_resize=lambda size: None)
    torch.manual_seed(0)
    experiment = torch_distill.Experiment(config, data, dict.fromkeys((TEACHER, STUDENT), Preprocessing(32)), 5)
    model, features = torch_distill.run_teacher(experiment)
    head = torch_models.get_head(model)
    assert not head.training and head[3].num_batches_tracked == 2 * 3 and features.shape == (2, 12, 64)
    assert not model.bn1.num_batches_tracked
    torch_distill.save(model, tmp_path / "teacher.safetensors")
    again, came = torch_distill.build("resnet8", str(tmp_path / "teacher.safetensors"), 32, config,
                                      (torch_models.form_of(str(tmp_path / "teacher.safetensors")), None))
    assert came and all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


# Devices

SPREAD = """
import json
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax_brcd.models import create_hash_model
from jax_brcd.runtime import devices
from jax_brcd.stages.teacher import teacher_stage
from jax_brcd.teachers.objectives import create_objective
from jax_brcd.training.loop import start, train_epoch
from jax_brcd.training.schedule import Schedule
from jax_brcd.views.batches import epoch_batches
from jax_brcd.views.source import Source
from jax_brcd.views.sources import KeptFeatures

views = np.random.default_rng(0).normal(size=(2, 22, 64)).astype(np.float32)


def losses(bits):
    model = create_hash_model("resnet8", bits, form="hashcoder_small")
    stage, parameters, carry = teacher_stage(
        model, Source(KeptFeatures(jnp.asarray(views)), 22, 2), Schedule(batch_size=10, epochs=1, seed=0), learning_rate=1e-3,
        temperature=0.3, kl_weight=0.0, objective=create_objective("crovca"))
    batches = devices.spread(epoch_batches(22, 10, epoch=0, seed=0, views=2), axis=1)
    key, constants = (devices.replicate(part) for part in (jax.random.key(0), stage.task.constants))
    state, metrics = train_epoch(stage.task.loss, stage.task.optimizer, start(stage, parameters, carry), constants, batches, key)
    nnx.update(model, state.carry)  # of the batch norm; its mean follows a bias that only rounding moves
    return [np.asarray(part).tolist() for part in (metrics["loss"], metrics["coding_rate"], model.head.layers[-1].var[...])]


spread, every = [losses(bits) for bits in (6, 24)], devices.mesh()
devices.mesh = lambda: jax.sharding.Mesh(np.array(jax.devices()[:1]), (devices.AXIS,))
print(json.dumps([every.size, [losses(bits) for bits in (6, 24)], spread]))
"""


def test_four_devices_normalise_and_code_the_whole_batch():
    """Batches of ten, which four devices do not divide, and a last one of two; more bits than images, and fewer. To 1e-5: sums of
    float32 numbers in another order."""
    done = subprocess.run([sys.executable, "-c", SPREAD], env=os.environ | of_devices(4), capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    count, alone, spread = json.loads(done.stdout)
    assert count == 4
    for ours, theirs in zip(spread, alone, strict=True):
        for found, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
