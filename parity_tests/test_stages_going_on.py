"""A run directory and what another command may do with it: more epochs, a lower rate after a divergence, other data or
weights."""

import contextlib
import dataclasses
import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from image_trees import picture, write_lists
from toy_runs import (
    BRCD,
    OPTIONS,
    assert_same_tensors,
    content,
    history,
    loss_of,
    name_of,
    refusal,
    scores,
    tiny,
    trainings,
    with_loss,
    words,
)

import jax_brcd
from jax_brcd import distill
from jax_brcd.runtime.errors import InputError, TrainingDiverged
from jax_brcd.stages import context as stage_context
from jax_brcd.stages import distillation, teacher
from jax_brcd.stages.configuration import create_config
from jax_brcd.teachers.hash_model import HashTeacher
from jax_brcd.training.loop import backbone_scans

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("toy_backbones")]


@pytest.fixture(scope="module")
def usual(cache, tmp_path_factory):
    """A run of one epoch of everything, and its metrics."""
    out = tmp_path_factory.mktemp("runs") / "usual"
    return out, tiny(out, cache)[0]


@pytest.fixture
def copied(usual, tmp_path):
    """A copy of the run, which may be changed."""
    return shutil.copytree(usual[0], tmp_path / "copied")


def refused(*arguments, **settings):
    with pytest.raises(InputError) as stop:
        tiny(*arguments, **settings)
    assert "\n" not in str(stop.value)
    return str(stop.value)


# More epochs


@pytest.mark.parametrize("more", [{"epochs": 3}, {"teacher_epochs": 3}, {"epochs": 3, "teacher_epochs": 2},
                                  {"epochs": 3, "validation_interval": 2, "patience": 0}])
def test_more_epochs_of_a_finished_run_go_on_from_its_last_state(tmp_path, cache, more):
    """As if they had been given at once, also where the first run's last validation was out of turn."""
    whole, _ = tiny(tmp_path / "whole", tmp_path / "other cache", **more)
    first = {name: value for name, value in more.items() if name not in ("epochs", "teacher_epochs")}
    tiny(tmp_path / "run", cache, **first)
    epochs = []

    def counted(stage, state, checkpoints, **told):
        return fit(stage, state, checkpoints, on_epoch=lambda record: epochs.append((name_of(stage), record["epoch"])), **told)

    fit = stage_context.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_context, "fit", counted)
        found, _ = tiny(tmp_path / "run", cache, **more)
    assert scores(found) == scores(whole) and history(tmp_path / "run") == history(tmp_path / "whole")
    for role in ("teacher", "student_symmetric", "student_asymmetric"):
        assert_same_tensors(tmp_path / "run" / f"{role}.safetensors", tmp_path / "whole" / f"{role}.safetensors")
    assert (tmp_path / "run" / "codes.npz").read_bytes() == (tmp_path / "whole" / "codes.npz").read_bytes()
    if "teacher_epochs" not in more:
        assert epochs == [("student", 2), ("student", 3)]  # the first was not run again
    else:
        assert epochs[0] == ("teacher", 2)


def test_fewer_epochs_of_a_finished_run_are_refused(cache, tmp_path):
    tiny(tmp_path / "run", cache, epochs=2)
    before = content(tmp_path / "run")
    assert refused(tmp_path / "run", cache, epochs=1) == (
        f"{tmp_path / 'run'}: holds a run with epochs 2 (now 1); name another out, or delete it")
    assert content(tmp_path / "run") == before


# Divergence


@contextlib.contextmanager
def diverging(stage="student", *, above, after=5):
    """Losses of a stage that are not a number after so many steps where the rate is above the given one and the temperature
    below a half."""
    module = {"student": distillation, "teacher": teacher}[stage]
    made = getattr(module, f"{stage}_stage")

    def spoiled(*arguments, learning_rate, temperature, **told):
        toy, parameters, carry = made(*arguments, learning_rate=learning_rate, temperature=temperature, **told)
        loss = loss_of(toy)

        def counted(parameters, carry, constants, batch, key):
            value, (moved, metrics) = loss(parameters, carry["own"], constants, batch, key)
            bad = (carry["count"] >= after) & (learning_rate > above and temperature < 0.5)
            return jnp.where(bad, jnp.nan, value), ({"own": moved, "count": carry["count"] + 1, **inner(moved)}, metrics)

        return with_loss(toy, counted), parameters, {"own": carry, "count": jnp.int32(0), **inner(carry)}

    def inner(carry):  # what the student's stage looks at when it is over
        return {name: carry[name] for name in ("statistics", "memory")} if stage == "student" else {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, f"{stage}_stage", spoiled)
        yield


def diverged(*arguments, **settings):
    with pytest.raises(TrainingDiverged) as stop:
        tiny(*arguments, **settings)
    assert "\n" not in str(stop.value)
    return str(stop.value)


@pytest.mark.parametrize(("stage", "rate", "heat", "epochs"), [
    ("student", "lr", "temperature", "epochs"), ("teacher", "teacher_lr", "teacher_temperature", "teacher_epochs")])
def test_a_diverged_run_goes_on_at_a_lower_rate_as_its_message_says(cache, tmp_path, stage, rate, heat, epochs):
    out, told = tmp_path / "run", {epochs: 3}
    with diverging(stage, above=1e-2):
        line = diverged(out, cache, **told, **{rate: 0.5})
        assert line.startswith(f"{stage}: the loss is nan at step 2 of epoch 2; the last good checkpoint is kept in "
                               f"{cache / 'stages'}")
        assert f"give the same command a lower {rate} than 0.5 or a higher {heat} than 0.3 to go on" in line
        diverged(out, cache, **told, **{rate: 0.5})  # the same command again
        for other in ({rate: 0.6}, {rate: 0.5, heat: 0.2}, {rate: 0.1, "bits": 12}, {"seed": 1, rate: 0.1}):
            assert "name another out, or delete it" in refused(out, cache, **{**told, rate: 0.5, **other})
        diverged(out, cache, **told, **{rate: 0.1})  # lower, and still too high
        assert "`" not in diverged(out, cache, **told, **{rate: 0.1})
        with interrupted(stage):
            tiny(out, cache, **told, **{rate: 1e-3})
        found, _ = tiny(out, cache, **told, **{rate: 1e-3})
    records = [record for record in history(out) if record["stage"] == stage]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    elsewhere = tiny(tmp_path / "calm", tmp_path / "other cache", **told, **{rate: 1e-3})[0]
    assert history(tmp_path / "calm")[0 if stage == "teacher" else 1] != records[0]  # whose first epoch was at the high rate
    assert scores(found)["protocol"] == scores(elsewhere)["protocol"]
    assert not (out / "diverged.json").exists()
    assert tiny(out, cache, **told, **{rate: 1e-3})[1] == [f"{out}: already there; nothing was run again."]


@contextlib.contextmanager
def interrupted(stage):
    """Ctrl-C at the beginning of a stage's training."""
    fit = stage_context.fit

    def stopped(job, *arguments, **told):
        if name_of(job) == stage:
            raise KeyboardInterrupt
        return fit(job, *arguments, **told)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage_context, "fit", stopped)
        yield


def test_a_higher_temperature_goes_on_too_and_so_does_a_run_interrupted_before_the_change(cache, tmp_path):
    out = tmp_path / "run"
    with diverging(above=1e-2):
        diverged(out, cache, lr=0.3, epochs=2)
        with interrupted("student"):
            tiny(out, cache, lr=0.3, epochs=2)
        tiny(out, cache, lr=0.3, epochs=2, temperature=0.6)
    assert [record["epoch"] for record in history_of(out)] == [1, 2]


def history_of(out):
    return [record for record in history(out) if record["stage"] == "student"]


def test_a_run_that_diverged_at_once_or_whose_checkpoints_are_gone_begins_anew(cache, tmp_path):
    out = tmp_path / "run"
    with diverging(above=1e-2, after=0):
        line = diverged(out, cache, lr=0.2)
        assert "it begins anew, as no checkpoint is kept" in line
        tiny(out, cache, lr=2e-3)
    assert history_of(out) and json.loads((out / "config.json").read_text())["finished"]
    other, gone = tmp_path / "other", tmp_path / "gone"
    with diverging(above=1e-2):
        diverged(other, gone, lr=0.2, epochs=2)
    shutil.rmtree(gone)
    tiny(other, gone, lr=2e-3, epochs=2)
    assert [record["epoch"] for record in history_of(other)] == [1, 2]


def test_the_command_says_how_to_go_on_and_does_so(cache, tmp_path, capsys):
    out = tmp_path / "run"
    with diverging(above=1e-2):
        with pytest.raises(SystemExit):
            distill.run_command(distill.main, words(out, cache, lr=0.4, epochs=2))
        line = capsys.readouterr().err.strip().splitlines()[-1]
        option, rate = re.search(r"a lower (--lr) than (\S+) or a higher --temperature than 0.3 to go on$", line).groups()
        with pytest.raises(SystemExit) as stop:
            distill.run_command(distill.main, [*words(out, cache, epochs=2), option, str(float(rate) / 100)])
    assert stop.value.code == 0 and "student, asymmetric" in capsys.readouterr().out


# A teacher that is brought along


def test_a_teacher_with_its_head_is_brought_whole(cache, usual, tmp_path):
    out, metrics = usual
    codes = dict(np.load(out / "codes.npz"))
    for name, weights in (("folder", out / "teacher"), ("file", out / "teacher.safetensors")):
        with trainings() as trained:
            found, said = tiny(tmp_path / name, cache, teacher_weights=str(weights), teacher_epochs=None)
        assert trained == [] and found["teacher"] == metrics["teacher"] and found["student"] == metrics["student"]
        assert found["remarks"] == ["The teacher came trained, hash head included; it was not trained further here."]
        assert any("its hash head of 16 bits is taken too" in line for line in said)
        for part, bits in np.load(tmp_path / name / "codes.npz").items():
            np.testing.assert_array_equal(bits, codes[part])
        assert jax_brcd.load(tmp_path / name / "teacher").space == jax_brcd.load(out / "teacher").space
        assert json.loads((tmp_path / name / "config.json").read_text())["settings"]["teacher_epochs"] == 0



def test_further_epochs_are_trained_where_they_are_told(cache, usual, tmp_path):
    out, weights = tmp_path / "run", str(usual[0] / "teacher")
    tiny(out, cache, teacher_weights=weights, teacher_epochs=None)
    with trainings() as trained:
        found, _ = tiny(out, cache, teacher_weights=weights, teacher_epochs=2)  # more than none
    assert trained[0] == "teacher" and found["teacher"] != usual[1]["teacher"]
    assert found["remarks"] == ["The teacher came trained, hash head included; it was trained here for 2 further epochs."]
    assert "now 0" in refused(out, cache, teacher_weights=weights, teacher_epochs=None)


def test_a_head_of_another_length_is_left_out_and_said(cache, usual, tmp_path):
    with trainings() as trained:
        _, said = tiny(tmp_path / "run", cache, teacher_weights=str(usual[0] / "teacher"), bits=12)
    assert trained == ["teacher", "student"] and any("16" in line and "head" in line for line in said), said


def test_a_head_that_came_is_solved_anew_only_where_epochs_are_told(cache, usual, tmp_path):
    weights = str(usual[0] / "teacher")
    kept, _ = tiny(tmp_path / "kept", cache, teacher_weights=weights, teacher_epochs=None, teacher_objective="itq")
    assert kept["teacher"] == usual[1]["teacher"]
    solved, _ = tiny(tmp_path / "solved", cache, teacher_weights=weights, teacher_epochs=1, teacher_objective="itq")
    assert solved["teacher"] != usual[1]["teacher"] and "its head was solved here anew" in solved["remarks"][0]


def test_a_teacher_keeps_its_preprocessing_and_a_student_as_teacher_its_space(cache, usual, tmp_path):
    encoder = jax_brcd.load(usual[0] / "teacher")
    other = dataclasses.replace(encoder, preprocessing=dataclasses.replace(encoder.preprocessing, resize=20), space="a space")
    other.save(tmp_path / "teacher")
    tiny(tmp_path / "run", cache, teacher_weights=str(tmp_path / "teacher"), teacher_epochs=None, method="bits")
    for role in ("teacher", "student_asymmetric", "student_symmetric"):
        found = jax_brcd.load(tmp_path / "run" / role)
        assert found.preprocessing == other.preprocessing
        assert (found.space == "a space") == (role != "student_symmetric")


# Other data, other weights


@pytest.fixture
def lists(tmp_path):
    return write_lists(tmp_path / "lists", 12, 16, 8)


LISTS = {"dataset": "list", "k": 5, "batch_size": 6}


def swap_labels(folder):
    lines = (folder / "database.txt").read_text().splitlines()
    names, labels = [line.split(" ", 1)[0] for line in lines], [line.split(" ", 1)[1] for line in lines]
    (folder / "database.txt").write_text("".join(
        f"{name} {label}\n" for name, label in zip(names, labels[1:] + labels[:1], strict=True)))


def replace_image(folder):
    picture(77, 60, 50).save(folder / "images" / "020.jpg")


def add_line(folder):
    with open(folder / "train.txt", "a") as file:
        file.write("images/013.jpg 0 1 0\n")


@pytest.mark.parametrize(("change", "named", "not_named"), [
    (swap_labels, ["labels of database", "database.txt"], ["images of", "train.txt", "test"]),
    (replace_image, ["images of"], ["labels", "train"]),
    (add_line, ["train.txt", "images of train", "labels of train"], ["database", "test"])])
def test_changed_data_is_told_by_name_and_the_run_left_alone(lists, tmp_path, capsys, change, named, not_named):
    cache, out = tmp_path / "cache", tmp_path / "run"
    tiny(out, cache, data_dir=lists, **LISTS)
    before = content(out)
    change(lists)
    line = refusal(distill.main, words(out, cache, data_dir=lists, **LISTS), capsys)
    start, _, rest = line.partition("its data has changed since: ")
    assert start == f"error: {out}: " and rest.endswith("; name another --out, or delete it")
    assert all(name in rest for name in named) and not any(name in rest for name in not_named), rest
    assert content(out) == before
    found, _ = tiny(tmp_path / "fresh", cache, data_dir=lists, **LISTS)
    if change is swap_labels:
        assert found["teacher"] != json.loads(before["metrics.json"])["teacher"]


def test_a_data_set_that_was_moved_is_the_same(lists, tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "run"
    metrics, _ = tiny(out, cache, data_dir=lists, **LISTS)
    shutil.copytree(lists, tmp_path / "moved")
    shutil.rmtree(lists)
    assert tiny(out, cache, data_dir=tmp_path / "moved", **LISTS) == (
        metrics, [f"{out}: already there; nothing was run again."])
    with trainings() as trained:
        again, _ = tiny(tmp_path / "again", cache, data_dir=tmp_path / "moved", **LISTS)
    assert trained == [] and again == metrics


def test_a_data_set_without_labels_is_not_evaluated_but_leaves_encoders_and_a_report(tmp_path):
    for number in range(30):
        (tmp_path / "plain").mkdir(exist_ok=True)
        picture(number).save(tmp_path / "plain" / f"{number:02d}.png")
    out = tmp_path / "run"
    metrics, said = tiny(out, tmp_path / "cache", dataset="folder", data_dir=tmp_path / "plain", batch_size=8, **BRCD)
    assert "teacher" not in metrics and "student" not in metrics and set(metrics["costs"]) == {"teacher", "student"}
    note = "Evaluation was skipped: the data set has no labels. The student is the one of the last epoch."
    assert note in said and note in (out / "report.html").read_text()
    codes = jax_brcd.load(out / "student_asymmetric").encode(tmp_path / "plain" / "00.png")
    assert len(codes) == 1 and codes.space == jax_brcd.load(out / "teacher").space
    symmetric, asymmetric = (safetensors.numpy.load_file(out / f"student_{search}.safetensors")
                             for search in ("symmetric", "asymmetric"))
    assert symmetric.keys() == asymmetric.keys()
    assert all(np.array_equal(symmetric[name], asymmetric[name]) for name in symmetric)


def test_weights_are_known_by_what_they_hold(cache, usual, tmp_path):
    weights, out = tmp_path / "teacher.safetensors", tmp_path / "run"
    shutil.copy(usual[0] / "teacher.safetensors", weights)
    settings = {"teacher_weights": str(weights), "teacher_epochs": None}
    metrics, _ = tiny(out, cache, **settings)
    moved = str(weights.rename(tmp_path / "moved.safetensors"))
    for name in (moved, str(weights)):  # moved, and gone
        assert tiny(out, cache, **settings | {"teacher_weights": name})[1] == [f"{out}: already there; nothing was run again."]
    state = safetensors.numpy.load_file(moved)
    state["hash_head.bias"] = state["hash_head.bias"] + 1
    safetensors.numpy.save_file(state, moved)
    line = refused(out, cache, **settings | {"teacher_weights": moved})
    assert f"holds a run with teacher_weights {weights} (now {moved})" in line
    shutil.copy(moved, weights)
    assert f"{out}: its data has changed since: weights of the teacher; name another out" in refused(out, cache, **settings)
    assert tiny(tmp_path / "fresh", cache, **settings)[0]["teacher"] != metrics["teacher"]


# Directories of something else


@pytest.mark.parametrize(("text", "message"), [
    ("{", "config.json: broken (Expecting"), ("[]", "broken (no settings and data of a run)"), ("3", "broken (no settings"),
    ('{"settings": 3, "data": {}}', "broken (no settings"), ('{"settings": {}}', "broken (no settings"),
    ('{"bits": 16, "dataset": "digits"}', "written by an older jax_brcd, which kept no record of the data it used"),
    ('{"framework": "torch", "bits": 16}', "holds a run of torch_ref; name another out"),
    ('{"backbone": "toy", "bits": 16}', "the folder of an encoder, and no run's")])
def test_a_directory_that_says_no_run_of_this_version_is_refused(cache, tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    assert message in refused(tmp_path, cache)
    assert (tmp_path / "config.json").read_text() == text and len(list(tmp_path.iterdir())) == 1


def test_a_mark_of_divergence_that_is_broken_is_refused(cache, copied):
    (copied / "diverged.json").write_text("{")
    assert f"{copied / 'diverged.json'}: broken" in refused(copied, cache, lr=1e-9)


def test_a_run_written_before_a_setting_was_there_is_gone_on_with(cache, copied):
    claim = json.loads((copied / "config.json").read_text())
    del claim["settings"]["teacher_kl_weight"], claim["head_came"], claim["student"], claim["continued"]
    (copied / "config.json").write_text(json.dumps(claim | {"something": "later"}))
    assert tiny(copied, cache)[1] == [f"{copied}: already there; nothing was run again."]
    assert "teacher_kl_weight 0.001 (now 0.5)" in refused(copied, cache, teacher_kl_weight=0.5)


REFUSED_OF_NEW = pytest.mark.parametrize(("settings", "message"), [
    ({"embeddings_dropout": 0.5}, "embeddings_dropout 0.5: teacher_objective cibhash of teacher toy does not look at it"),
    ({"patience": None, "min_epochs": 3}, "min_epochs 3: nothing stops early"),
    ({**BRCD, "remove_false_negatives": True}, "remove_false_negatives True: robust does this already"),
    ({"method": "kl+brcd", "remove_false_negatives": True}, "brcd_remove_false_negatives True: brcd_robust does this already"),
    ({"method": "sp", "variant": "released", "relations_on": "features", "train_backbone": True},
     "relations_on features: as released it compares code")])


@REFUSED_OF_NEW
def test_a_finished_run_of_an_earlier_version_opens_with_what_is_refused_of_new_runs(cache, copied, settings, message):
    claim = json.loads((copied / "config.json").read_text())
    claim["settings"] |= create_config(**OPTIONS | settings).flat()
    (copied / "config.json").write_text(json.dumps(claim))
    assert tiny(copied, cache, **settings)[1] == [f"{copied}: already there; nothing was run again."]
    assert "holds a run with" in refused(copied, cache, **settings, bits=8)


# Before anything long starts


@REFUSED_OF_NEW
def test_what_is_refused_of_new_runs_is_refused_before_data_is_loaded(tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr(stage_context, "load_dataset", lambda *arguments, **told: pytest.fail("data was loaded"))
    assert message in refused(tmp_path / "run", tmp_path / "cache", **settings)


@pytest.mark.parametrize(("settings", "message"), [
    ({"method": "packd", "resident_mib": 0, "fresh_views": True}, "do not travel with a step; give a larger --resident-mib"),
    ({"teacher_objective": "itq", "bits": 64}, "--bits 64"), ({"k": 798}, "--k 798: the database of digits holds 797"),
    ({"student": "vit_b_32"}, "--student vit_b_32: takes multiples of 32 pixels, but toy sees 16"),
    ({**BRCD, "clusters": 798}, "--clusters 798"), ({"method": "rkd", "alpha": 0.5}, "--alpha: not a setting of method 'rkd'"),
    ({"method": "brcd+rkd", "method_weights": "1"}, "method-weights"),
    ({"teacher_weights": "imagenet"}, "no weights 'imagenet' of 'toy'"), ({"student_weights": "held-out"}, "held-out"),
    ({"teacher_weights": "/absent"}, "--teacher-weights /absent: no such weight file"),
    ({"dataset": "folder", "data_dir": "/absent"}, "/absent: no such folder")])
def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path, capsys, settings, message):
    with trainings() as trained:
        line = refusal(distill.main, words(tmp_path / "run", tmp_path / "cache", **settings), capsys)
    assert message in line and trained == []
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache" / "stages").exists()
    assert not (tmp_path / "cache" / "features").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_an_epoch_that_encodes_views_is_one_program_where_that_can_be_interrupted(tmp_path, monkeypatch, fresh):
    """On a CPU it may take an hour, so its steps are programs of their own."""
    scanned, original = {}, stage_context.fit

    def watched(stage, *arguments, **told):
        scanned[name_of(stage)] = stage.scanned
        return original(stage, *arguments, **told)

    monkeypatch.setattr(stage_context, "fit", watched)
    tiny(tmp_path / "run", tmp_path / "cache", method="kl", fresh_views=fresh)
    assert scanned == dict.fromkeys(("teacher", "student"), not fresh or backbone_scans())


@pytest.mark.parametrize("method", ["none", "kl"])
def test_a_teacher_encodes_views_for_a_method_that_asks_for_them(tmp_path, monkeypatch, method):
    asked, original = [], HashTeacher.source
    monkeypatch.setattr(HashTeacher, "source", lambda *arguments: asked.append(1) or original(*arguments))
    tiny(tmp_path / "run", tmp_path / "cache", method=method)
    assert len(asked) == (method != "none")


def test_a_run_that_may_stop_early_is_another_than_one_that_may_not(cache, tmp_path):
    whole = {"lr_schedule": "one-cycle", "epochs": 3}
    tiny(tmp_path, cache, **whole)
    assert "patience None (now 5)" in refused(tmp_path, cache, **whole, patience=5)
    claim = json.loads((tmp_path / "config.json").read_text())
    for told in (None, 5):  # as earlier versions told where there was none
        claim["settings"]["patience"] = told
        (tmp_path / "config.json").write_text(json.dumps(claim))
        assert tiny(tmp_path, cache, **whole)[1] == [f"{tmp_path}: already there; nothing was run again."]
    with trainings() as trained:
        tiny(tmp_path / "again", cache, **whole, patience=None)
    assert trained == [], "it is the same student"


def test_the_students_temperature_changes_no_teacher(cache, usual, tmp_path):
    """A test of row 20: what was measured before was the teacher's temperature too."""
    for setting, value in (("temperature", 0.7), ("kl_weight", 0.5)):
        with trainings() as trained:
            found, _ = tiny(tmp_path / setting, cache, **{setting: value})
        assert trained == ["student"] and found["teacher"] == usual[1]["teacher"] and found["student"] != usual[1]["student"]
    with trainings() as trained:
        found, _ = tiny(tmp_path / "teacher's", cache, teacher_temperature=0.7)
    assert trained == ["teacher", "student"] and found["teacher"] != usual[1]["teacher"]


def test_files_that_are_no_runs_are_not_written_over(cache, tmp_path):
    (tmp_path / "metrics.json").write_text("mine")
    with trainings() as trained, pytest.raises(InputError, match="holds metrics.json and no config.json of a run"):
        tiny(tmp_path, cache)
    assert trained == [] and (tmp_path / "metrics.json").read_text() == "mine"
