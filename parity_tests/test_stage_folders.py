"""Stage folders: what a stage gave is found by every run that depends on the same, and by no other."""

import contextlib
import dataclasses
import pathlib
import shutil
import threading
import time

import jax
import numpy as np
import pytest
from flax import nnx
from toy_runs import BRCD, OPTIONS, PIXELS, PixelBlock, assert_same_tensors, content, history, scores, stages, tiny, trainings

from jax_brcd.encoder import read_config
from jax_brcd.methods import METHODS
from jax_brcd.models import BACKBONES, Preprocessing, Variant
from jax_brcd.runtime.digests import digest
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings import options
from jax_brcd.stages import configuration, context, run
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.folder import StageFolder, read_history, write_history
from jax_brcd.training.loop import Fit, TrainState
from jax_brcd.views import augmentation

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("toy_backbones")]


@pytest.fixture(scope="module")
def usual(cache, tmp_path_factory):
    """A run with all stages, its metrics and its directory."""
    out = tmp_path_factory.mktemp("runs") / "usual"
    metrics, _ = tiny(out, cache, teacher_weights="held-out", **BRCD)
    return metrics, out


# Names

CHAIN = ("pretraining", "teacher", "clusters", "student", "evaluation")


@contextlib.contextmanager
def untrained():
    """Stages that do not train: their weights become others by the name of the folder. Gives the folders that were asked
    for."""
    asked = {}

    def moved(self, folder, stage, parameters, carry):
        offset = int(digest(folder.name)[:6], 16) / 2**24
        return Fit(TrainState(jax.tree.map(lambda leaf: leaf + offset, parameters), carry, None), {}, [])

    with pytest.MonkeyPatch.context() as patch:
        folder = context.Context.folder

        def recorded(self, stage, *arguments):
            asked[stage] = folder(self, stage, *arguments)
            return asked[stage]

        patch.setattr(context.Context, "fit", moved)
        patch.setattr(context.Context, "folder", recorded)
        patch.setattr(context.Context, "measure", lambda self, encoder, images: {
            "parameters": 1, "flops": 1.0, "images_per_second": 1.0})
        patch.setattr(run, "write_report", lambda *report: None)
        yield asked


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("names")


def names(place, **settings):
    """The name of each stage's folder."""
    method = BRCD if "brcd" in settings.get("method", "brcd") else {}
    with untrained() as asked:
        tiny(**{"out": place / str(len(list(place.iterdir()))), "cache": place / "cache", "teacher_weights": "held-out", **method,
                **settings})
    return {stage: folder.name for stage, folder in asked.items()}


@pytest.fixture(scope="module")
def usual_names(place):
    (place / "cache").mkdir(exist_ok=True)
    found = names(place)
    assert tuple(found) == CHAIN and len(set(found.values())) == len(CHAIN)
    return found


class Mean(nnx.Module):
    """Two blocks over the mean colour of images of any size."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Linear(3, 12, rngs=rngs)
        self.blocks = nnx.List([PixelBlock(rngs) for _ in range(2)])

    def __call__(self, images, *, train=None, valid=None):
        x = self.stem(images.mean(axis=(1, 2)))
        for block in self.blocks:
            x = block(x, train, valid)
        return x


@pytest.fixture(scope="module")
def names_beside(place, usual_names):
    """The names that a run has of some settings that others need, found once."""
    BACKBONES.register("mean_toy")(Variant(lambda *, rngs: Mean(rngs), Preprocessing(PIXELS)))
    found = {(): usual_names}

    def beside(settings):
        key = tuple(sorted(settings.items()))
        if key not in found:
            found[key] = names(place, **settings)
        return found[key]

    return beside


# What some settings need beside them
WHOLE = {"student": "mean_toy", "train_backbone": True, "epochs": 4, "method": "mse+bits", "teacher_view": "clean", "fresh_views": True,
         "optimizer": "sgd", "lr_schedule": "cosine", "freeze_epochs": 1}
STEPPED = {"lr_schedule": "step", "epochs": 4}
SIZED = {"teacher": "mean_toy", "student": "mean_toy"}
# A setting, another value, the first stage of another name, and what the setting needs
CHANGES = [
    ("seed", 1, "pretraining"), ("batch_size", 128, "pretraining"), ("dtype", "bfloat16", "pretraining"),
    ("pretraining_epochs", 2, "pretraining"), ("teacher", "other_toy", "pretraining"),
    ("teacher_epochs", 2, "teacher"), ("teacher_lr", 1e-3, "teacher"), ("teacher_temperature", 0.5, "teacher"),
    ("teacher_kl_weight", 0.1, "teacher"), ("teacher_objective", "bihalf", "teacher"), ("teacher_objective", "itq", "teacher"),
    ("bits", 12, "teacher"), ("views", 3, "teacher"), ("fresh_views", True, "teacher"),
    ("clusters", 4, "clusters"), ("cluster_restarts", 2, "clusters"),
    ("epochs", 2, "student"), ("lr", 1e-2, "student"), ("temperature", 0.5, "student"), ("kl_weight", 0.1, "student"),
    ("alpha", 0.5, "student"), ("student", "other_toy", "student"), ("train_backbone", True, "student"),
    ("validation_interval", 2, "student"), ("patience", 1, "student"), ("min_epochs", 1, "student"), ("k", 50, "student"),
    ("checkpoint_seconds", 1.0, None), ("compile_cache", False, None), ("decode_workers", 0, None), ("process_id", 1, None),
    ("coordinator", "127.0.0.1:1", None), ("resident_mib", 512, None), ("max_bad_images", 3, None),
    ("data_dir", pathlib.Path("elsewhere"), None),
    ("train_images", 300, "teacher"), ("view_recipe", "crovca", "teacher"), ("teacher_batch_size", 128, "teacher"),
    ("method", "brcd+mse", "student"), ("method_weights", "1,2", "student", WHOLE),
    ("optimizer", "adamw", "student"), ("lr_schedule", "cosine", "student"), ("warmup_epochs", 1.0, "student", WHOLE),
    ("lr_step_epochs", 1.0, "student", STEPPED), ("weight_decay", 0.1, "student", WHOLE),
    ("sgd_momentum", 0.5, "student", WHOLE), ("clip_norm", 1.0, "student"), ("accumulate", 2, "student"),
    ("layer_decay", 0.5, "student", WHOLE), ("freeze_epochs", 2, "student", WHOLE), ("freeze_blocks", 1, "student", WHOLE),
    ("ema_decay", 0.9, "student", WHOLE), ("own_objective", False, "student"), ("teacher_view", "clean", "student"),
    ("teacher_neighbours", 2, "student", WHOLE), ("mixup", 0.4, "student", WHOLE), ("keep", "both", "student"),
    ("teacher_size", 24, "pretraining", SIZED), ("student_size", 24, "student", SIZED)]
# Data sets are known by the digests of their images, weights and tables by their own; the others are places and processes
ELSEWHERE = {"dataset", "split", "label_format", "teacher_weights", "student_weights", "embeddings", "embeddings_dropout",
             "cache_dir", "out", "processes"}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change[0]}-{change[1]}")
def test_a_setting_names_its_own_stage_anew_and_the_later_ones(place, names_beside, change):
    setting, value, first, *needed = change
    beside = needed[0] if needed else {}
    usual, found = names_beside(beside), names(place, **beside | {setting: value})
    changed = [stage for stage in CHAIN if found.get(stage) != usual.get(stage)]
    assert changed == ([] if first is None else [stage for stage in CHAIN[CHAIN.index(first):] if stage in usual])


def test_no_setting_is_without_its_word_on_names():
    """A new one goes into CHANGES, or by its reason into ELSEWHERE."""
    told = {change[0] for change in CHANGES} - {field.name for field in dataclasses.fields(METHODS["brcd"])}
    there = {field.name for stage in configuration.STAGES for field in dataclasses.fields(stage)}
    assert told | ELSEWHERE == there and not told & ELSEWHERE


def test_what_a_student_is_not_shown_names_it_anew(place, monkeypatch):
    """Without its own objective BRCD's student sees one view of two, as it did not before."""
    with untrained() as asked:
        tiny(place / "unseen", place / "cache", own_objective=False, **BRCD)
    folder = asked["student"]
    assert folder.depends_on["unseen"] == ("j",)
    before = {name: value for name, value in folder.depends_on.items() if name != "unseen"}
    assert dataclasses.replace(folder, depends_on=before).name != folder.name
    with untrained() as asked:
        tiny(place / "seen", place / "cache", **BRCD)
    assert "unseen" not in asked["student"].depends_on


def test_a_setting_added_later_names_nothing_anew_until_it_is_given(place, usual_names, monkeypatch):
    def grown(kind, name):
        added = dataclasses.make_dataclass(kind.__name__, [(name, int, options.option(3, "a setting added later"))],
                                           bases=(kind,), frozen=True)
        added.__module__ = kind.__module__
        return added

    fields = {kind: f"later{number}" for number, kind in enumerate(configuration.STAGES)}
    monkeypatch.setattr(configuration, "STAGES", tuple(grown(kind, name) for kind, name in fields.items()))
    monkeypatch.setattr(METHODS, "_entries", METHODS._entries | {"brcd": grown(METHODS["brcd"], "later_weight")})
    monkeypatch.setattr(context, "ViewConfig", dataclasses.make_dataclass(
        "ViewConfig", [("later", float, 0.0)], bases=(augmentation.ViewConfig,), frozen=True))
    assert names(place) == usual_names
    for name, first in (("later2", "teacher"), ("later3", "student"), ("later_weight", "student")):
        found = names(place, **{name: 4})
        assert [stage for stage in CHAIN if found[stage] != usual_names[stage]] == list(CHAIN[CHAIN.index(first):])


def test_labels_matter_where_they_are_looked_at(place, usual_names, monkeypatch):
    """Those of the database choose the student's checkpoint, those of the test queries are for the evaluation alone."""
    load = context.load_dataset
    for part, first in (("test", "evaluation"), ("database", "student"), ("pretraining", "pretraining")):
        def changed(*arguments, part=part, **told):
            dataset = load(*arguments, **told)
            images = getattr(dataset, part)
            return dataclasses.replace(dataset, **{part: dataclasses.replace(images, labels=images.labels[::-1].copy())})

        monkeypatch.setattr(context, "load_dataset", changed)
        found = names(place)
        assert [stage for stage in CHAIN if found[stage] != usual_names[stage]] == list(CHAIN[CHAIN.index(first):])


def test_a_method_that_counts_the_steps_goes_on_from_no_shorter_run(place, monkeypatch):
    def named(method, epochs):
        with untrained() as asked:
            tiny(place / f"{method}-{epochs}", place / "cache", method=method, epochs=epochs)
        return asked["student"].name

    usual = named("mse", 1)
    monkeypatch.setattr(METHODS["mse"], "counts_steps", True)
    found = [named(method, epochs) for method in ("mse", "mse+rkd") for epochs in (1, 2)]
    assert usual.endswith("-1epochs") and not any(name.endswith("epochs") for name in found) and len(set(found)) == 4


def test_validation_matters_to_a_teacher_alone(place, monkeypatch):
    """Whose evaluation says how its validation queries searched."""
    def evaluation(name):
        with untrained() as asked:
            run.run_teacher(create_config(**OPTIONS, out=place / f"alone-{name}", cache_dir=place / "cache"))
        return asked["evaluation"].name

    load, before = context.load_dataset, evaluation("before")
    for field in ("labels", "images"):
        def changed(*arguments, field=field, **told):
            dataset = load(*arguments, **told)
            turned = dataclasses.replace(dataset.validation, **{field: getattr(dataset.validation, field)[::-1].copy()})
            return dataclasses.replace(dataset, validation=turned)

        monkeypatch.setattr(context, "load_dataset", changed)
        assert evaluation(field) != before


def test_a_student_that_teaches_is_another_teacher_than_its_own(place, cache, tmp_path):
    """Though their codes are of one space."""
    tiny(tmp_path / "first", cache, method="mse")
    spaces = {encoder: read_config(tmp_path / "first" / encoder)["space"] for encoder in ("teacher", "student_asymmetric")}
    assert len(set(spaces.values())) == 1
    found = [names(place, teacher=toy, teacher_weights=str(tmp_path / "first" / encoder), teacher_epochs=0, student="other_toy",
                   teacher_view="clean", fresh_views=True, teacher_neighbours=2, train_backbone=True)
             for toy, encoder in (("toy", "teacher"), ("small_toy", "student_asymmetric"))]
    assert set(found[0]) == {"teacher", "clusters", "neighbours", "student", "evaluation"}
    assert all(found[0][stage] != found[1][stage] for stage in found[0])


# What is made once


def test_each_stage_leaves_a_folder(cache, usual):
    files = {"pretraining": "backbone.safetensors", "teacher": "encoder/model.safetensors", "clusters": "clusters.safetensors",
             "student": "symmetric/config.json", "evaluation": "metrics.json"}
    for stage, file in files.items():
        folders = [path for path in (cache / "stages").glob(f"{stage}-*") if path.is_dir()]
        assert folders and all((path / file).is_file() and (path / "stage.json").is_file() for path in folders)


def test_methods_on_one_teacher_train_it_once(cache, usual, tmp_path):
    with trainings() as trained:
        found = [tiny(tmp_path / method, cache, teacher_weights="held-out", method=method)[0]
                 for method in ("none", "mse", "bits")]
    assert trained == ["student"] * 3
    assert all(metrics["teacher"] == usual[0]["teacher"] for metrics in found)
    assert len({metrics["student"]["symmetric"]["map"] for metrics in found}) == 3


def test_the_same_settings_in_another_directory_make_nothing_again(cache, usual, tmp_path):
    before = stages(cache)
    with trainings() as trained:
        metrics, said = tiny(tmp_path / "again", cache, teacher_weights="held-out", **BRCD)
    assert trained == [] and metrics == usual[0] and stages(cache) == before
    assert any(line.startswith("Teacher: taken from") for line in said) and any("Student: taken from" in line for line in said)
    ours, theirs = content(tmp_path / "again"), content(usual[1])
    assert set(ours) == set(theirs)
    for name in set(ours) - {"config.json", "report.html", "teacher/config.json",
                             *(f"student_{search}/config.json" for search in (
            "symmetric", "asymmetric"))}:  # these name the directory
        if name.endswith(".safetensors"):
            assert_same_tensors(tmp_path / "again" / name, usual[1] / name)
        else:
            assert ours[name] == theirs[name], name


def test_a_run_leaves_the_same_tensors_in_both_places(usual):
    out = usual[1]
    for role in ("teacher", "student_symmetric", "student_asymmetric"):
        assert (out / f"{role}.safetensors").read_bytes() == (out / role / "model.safetensors").read_bytes()


def test_two_runs_at_once_wait_for_each_other_and_make_each_stage_once(cache, tmp_path):
    found = {}

    def go(name):
        found[name] = tiny(tmp_path / name, cache, seed=5)[0]

    with trainings() as trained:
        threads = [threading.Thread(target=go, args=(name,)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(trained) == ["student", "teacher"] and found["a"] == found["b"]


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path):
    folder, events, said = StageFolder(tmp_path, "toy", {"a": 1}), [], []

    def make(name, seconds):
        with folder.held(said.append):
            events.append(f"{name} begins")
            time.sleep(seconds)
            events.append(f"{name} ends")

    first = threading.Thread(target=make, args=("first", 0.3))
    first.start()
    while not events:
        time.sleep(0.01)
    make("second", 0)
    first.join()
    assert events == ["first begins", "first ends", "second begins", "second ends"]
    assert said == [f"Another run is at work on {folder.path}; this one waits for it."]


def test_a_folder_goes_on_from_the_most_epochs_below_its_own(tmp_path):
    def saved(folder, number):
        (folder.checkpoints / str(number)).mkdir(parents=True)

    def folder(epochs, **facts):
        return StageFolder(tmp_path, "toy", facts, epochs)

    for epochs in (1, 2, 9, 10, 30):
        saved(folder(epochs), epochs)
    saved(folder(11, other=1), 11)
    folder(12).checkpoints.mkdir(parents=True)  # one that has not saved anything yet
    folder(20).begin()
    assert [path.name for path in folder(20).checkpoints.iterdir()] == ["10"]
    folder(20).begin(folder(30).path)
    assert [path.name for path in folder(20).checkpoints.iterdir()] == ["10"]  # it has its own now
    folder(1, new=1).begin(folder(30).path)
    assert [path.name for path in folder(1, new=1).checkpoints.iterdir()] == ["30"]
    folder(1, gone=1).begin(tmp_path / "gone")  # where those are deleted it begins anew
    assert not folder(1, gone=1).checkpoints.exists()


def test_history_goes_through_its_file(tmp_path):
    records = [{"stage": "student", "epoch": 1, "loss": 0.1 + 0.2}, {"stage": "student", "epoch": 2}]
    write_history(tmp_path / "history.jsonl", records)
    assert read_history(tmp_path / "history.jsonl") == records


# Damage


@pytest.mark.parametrize(("stage", "damage"), [
    ("pretraining", lambda folder: (folder / "backbone.safetensors").write_bytes(b"no weights")),
    ("teacher", lambda folder: shutil.rmtree(folder / "encoder")),
    ("teacher", lambda folder: (folder / "encoder" / "model.safetensors").write_bytes(b"")),
    ("teacher", lambda folder: (folder / "stage.json").write_text("{")),
    ("clusters", lambda folder: (folder / "clusters.safetensors").write_bytes(b"no clusters")),
    ("student", lambda folder: (folder / "symmetric" / "config.json").unlink()),
    ("student", lambda folder: (folder / "report.json").write_text("[{}]")),
    ("student", lambda folder: (folder / "history.jsonl").write_text("{")),
    ("evaluation", lambda folder: (folder / "curves.npz").write_bytes(b"no curves")),
    ("evaluation", lambda folder: (folder / "metrics.json").unlink()),
    ("evaluation", lambda folder: (folder / "codes.npz").unlink())])
def test_a_damaged_folder_is_named_and_made_again_once_it_is_deleted(cache, usual, tmp_path, stage, damage):
    copy = tmp_path / "cache"
    shutil.copytree(cache, copy)
    metrics = usual[0]
    with untouched_names(copy, tmp_path) as asked:
        folder = asked[stage].path
    damage(folder)
    with pytest.raises(InputError) as refused:
        tiny(tmp_path / "run", copy, teacher_weights="held-out", **BRCD)
    assert str(refused.value).startswith(f"{folder}: finished once, and damaged since (")
    assert str(refused.value).endswith("; delete that folder to make it again") and "\n" not in str(refused.value)
    if stage in ("clusters", "evaluation"):  # those that are quickly made
        shutil.rmtree(folder)
        assert scores(tiny(tmp_path / "run", copy, teacher_weights="held-out", **BRCD)[0]) == scores(metrics)


@contextlib.contextmanager
def untouched_names(cache, place):
    """The folders of the usual run in a copy of the cache."""
    asked, folder = {}, context.Context.folder

    def recorded(self, stage, *arguments):
        asked[stage] = folder(self, stage, *arguments)
        return asked[stage]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context.Context, "folder", recorded)
        patch.setattr(run, "write_report", lambda *report: None)
        tiny(place / "look", cache, teacher_weights="held-out", **BRCD)
    yield asked


def test_a_cache_that_was_deleted_is_made_again(cache, usual, tmp_path):
    metrics, out = usual
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    # Finished: nothing of the cache is needed
    found, said = tiny(copy, tmp_path / "empty", teacher_weights="held-out", **BRCD)
    assert found == metrics and said == [f"{copy}: already there; nothing was run again."]
    assert not (tmp_path / "empty" / "stages").exists()
    # A part of it deleted: written again from the cache
    shutil.rmtree(copy / "student_symmetric")
    (copy / "metrics.json").write_text("{")
    found, said = tiny(copy, cache, teacher_weights="held-out", **BRCD)
    assert found == metrics and (copy / "student_symmetric" / "model.safetensors").exists()
    np.testing.assert_equal(history(copy), history(out))


def test_no_option_that_is_told_by_its_own_effect_is_unknown():
    """The lists of settings that are left out of names hold only settings that there are."""
    from jax_brcd.stages import distillation, teacher

    known = create_config(**{name: value for name, value in OPTIONS.items() if name != "method"}).flat()
    assert {*teacher.TOLD, *distillation.TOLD} <= set(known)
