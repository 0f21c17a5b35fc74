"""The stages as commands of their own: teacher, student and evaluate beside distill, and what they leave for Python."""

import json
import shutil

import numpy as np
import pytest
from image_trees import picture, write_lists
from toy_runs import BRCD, OPTIONS, answer, assert_same_tensors, refusal, scores, tiny, trainings

import jax_brcd
from jax_brcd import distill, evaluate, student, teacher
from jax_brcd.report.results import MEASURES
from jax_brcd.retrieval.packing import PackedCodes
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import read_json, write_json
from jax_brcd.stages.configuration import create_config, students_settings

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("toy_backbones")]


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """A run by distill: its directory and its metrics."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, tiny(out, cache, **BRCD)[0]


@pytest.fixture(scope="module")
def other(cache, tmp_path_factory):
    """A run of another teacher."""
    out = tmp_path_factory.mktemp("runs") / "other"
    return out, tiny(out, cache, seed=3)[0]


def teachers(out, cache, **settings):
    """The command line of the teacher alone."""
    return told({name: value for name, value in OPTIONS.items() if name not in students_settings()}, out, cache, settings)


def told(own, out, cache, settings):
    settings = {**own, "out": out, "cache_dir": cache, **settings}
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def students(out, cache, folder, **settings):
    """The command line of a student of that teacher."""
    own = {name: value for name, value in OPTIONS.items()
           if not name.startswith(("teacher", "pretraining", "bits", "train_backbone"))}
    return [*told(own, out, cache, settings), "--no-train-backbone", "--teacher", str(folder)]


def test_teacher_and_student_give_the_numbers_of_distill(whole, cache, tmp_path, capsys):
    """In a cache of their own, and then taken from distill's."""
    for place in (tmp_path / "own cache", cache):
        with trainings() as trained:
            table = answer(teacher.main, teachers(tmp_path / place.name / "teacher", place), capsys)
            assert f"{whole[1]['teacher']['map']:.4f}" in table and "student," not in table
            folder = tmp_path / place.name / "teacher" / "teacher"
            table = answer(student.main, students(tmp_path / place.name / "student", place, folder, **BRCD), capsys)
        assert trained == ([] if place == cache else ["teacher", "student"])
        found = json.loads((tmp_path / place.name / "student" / "metrics.json").read_text())
        assert scores(found) == scores(whole[1])
        assert "hash head included; it was not trained further here" in table
        for role in ("teacher", "student_symmetric", "student_asymmetric"):
            assert_same_tensors(tmp_path / place.name / "student" / f"{role}.safetensors", whole[0] / f"{role}.safetensors")
        assert (tmp_path / place.name / "student" / "codes.npz").read_bytes() == (whole[0] / "codes.npz").read_bytes()


def test_the_teachers_directory_can_become_a_whole_runs(cache, whole, tmp_path, capsys):
    answer(teacher.main, teachers(tmp_path / "run", cache), capsys)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "student" not in metrics and not (tmp_path / "run" / "student_symmetric").exists()
    assert "already there" in answer(teacher.main, teachers(tmp_path / "run", cache), capsys)
    assert "--bits 16 (now 12)" in refusal(teacher.main, teachers(tmp_path / "run", cache, bits=12), capsys)
    found, _ = tiny(tmp_path / "run", cache, **BRCD)
    assert found == whole[1]
    assert "student, symmetric" in answer(teacher.main, teachers(tmp_path / "run", cache), capsys)  # it is there already


def test_a_teacher_alone_is_not_held_to_what_a_method_needs(tmp_path, capsys):
    """The default method has ten clusters, which eight images do not."""
    lists = write_lists(tmp_path / "lists", 8, 8, 4)
    arguments = teachers(tmp_path / "run", tmp_path / "cache", dataset="list", data_dir=lists, k=2, batch_size=4)
    assert "teacher" in answer(teacher.main, arguments, capsys)
    line = refusal(student.main, students(tmp_path / "student", tmp_path / "cache", tmp_path / "run" / "teacher",
                                          dataset="list", data_dir=lists, k=2, method="brcd"), capsys)
    assert "--clusters 10" in line and not (tmp_path / "student").exists()


def test_how_a_teacher_was_made_elsewhere_is_no_setting_of_this_run(whole, tmp_path, capsys):
    """Its objective may have looked at what it does not look at now."""
    folder = shutil.copytree(whole[0] / "teacher", tmp_path / "teacher")
    config = read_json(folder / "config.json")
    config["provenance"]["settings"] |= {"teacher_objective": "itq", "teacher_lr": 0.5, "teacher_temperature": 0.7}
    write_json(folder / "config.json", config)
    assert "student," in answer(student.main, students(tmp_path / "run", tmp_path / "cache", folder, method="kl"), capsys)


def test_students_of_two_teachers_have_directories_of_their_own(whole, other):
    names = set()
    for out, _ in (whole, other):
        carried = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("jax_brcd.stages.command.carry_out", lambda job, config, carried=carried: carried.append(config))
            student.main(["--teacher", str(out / "teacher")])
        config = carried[0]
        assert config.teacher.teacher == "toy" and config.objective.bits == 16 and config.teacher_epochs(head_came=True) == 0
        names.add(config.out)
    assert len(names) == 2


def test_a_preset_that_is_named_for_a_student_stands_whatever_the_teachers_objective_proposes(whole, tmp_path, monkeypatch):
    folder = shutil.copytree(whole[0] / "teacher", tmp_path / "teacher")
    told = read_json(folder / "config.json")
    told["provenance"]["settings"] |= {"teacher_objective": "crovca", "teacher_lr": 0.25}
    write_json(folder / "config.json", told)
    carried = []
    monkeypatch.setattr("jax_brcd.stages.command.carry_out", lambda job, config: carried.append(config))
    for preset in ("cifar10-32-whole", None):
        student.main([*([] if preset is None else ["--preset", preset]), "--teacher", str(folder)])
    named, usual = carried
    assert named.data.view_recipe == "crop-flip" and usual.data.view_recipe == "crovca"
    assert {config.teacher.teacher_lr for config in carried} == {0.25}


# Evaluation


def measures(table):
    """The figures in the row of an evaluation, behind the names of both encoders."""
    return table.splitlines()[2].split()[2:]


def test_an_evaluation_gives_the_rows_of_the_run(whole, capsys):
    """What ranks by Hamming distance to the last digit printed, what ranks by real numbers as near as these are computed."""
    out, metrics = whole
    pairs = {"asymmetric": ("student_asymmetric", "teacher"), "symmetric": ("student_symmetric", "student_symmetric")}
    for search, (queries, database) in pairs.items():
        with trainings() as trained:
            table = answer(evaluate.main, ["--queries", out / queries, "--database", out / database], capsys)
        row = {name: value for name, value in metrics["student"][search].items() if value is not None}
        assert list(row) == [name for name in MEASURES if (search, name) != ("asymmetric", "cosine_map")] and trained == []
        for (name, value), found in zip(row.items(), measures(table), strict=True):
            by_distance = name in ("map", "tie_aware_map", "precision")
            assert found == f"{value:.4f}" if by_distance else abs(float(found) - value) < 3e-4
        assert "digits, split: 600 pretraining" in table and "k = 100, ties stable; 16 bits, seed 0" in table
    table = answer(evaluate.main, ["--queries", out / "teacher", "--database", out / "teacher"], capsys)
    assert measures(table)[0] == f"{metrics['teacher']['map']:.4f}"
    assert abs(float(measures(table)[3]) - metrics["teacher"]["cosine_map"]) < 3e-4


def test_saved_codes_serve_as_a_database(whole, other, tmp_path, capsys):
    out, codes = whole[0], tmp_path / "codes" / "teacher.safetensors"
    first = answer(evaluate.main, ["--queries", out / "student_asymmetric", "--database", out / "teacher", "--save-codes",
                                   codes], capsys)
    again = answer(evaluate.main, ["--queries", out / "student_asymmetric", "--database", codes], capsys)
    assert measures(first) == measures(again)
    packed = PackedCodes.load(codes)
    assert packed.space == jax_brcd.load(out / "teacher").space and packed.bits == 16
    np.testing.assert_array_equal(packed.packed, np.load(out / "codes.npz")["teacher_database"])
    line = refusal(evaluate.main, ["--queries", other[0] / "student_asymmetric", "--database", codes], capsys)
    assert packed.space in line


def test_encoders_of_different_spaces_are_refused_before_any_image_is_read(whole, other, capsys, monkeypatch):
    monkeypatch.setattr("jax_brcd.stages.context.load_dataset", lambda *arguments, **told: pytest.fail("images were read"))
    for queries, database in ((whole[0] / "student_symmetric", whole[0] / "teacher"),
                              (other[0] / "student_asymmetric", whole[0] / "teacher"),
                              (whole[0] / "student_asymmetric", whole[0] / "student_symmetric"),
                              (whole[0] / "teacher", other[0] / "teacher")):
        line = refusal(evaluate.main, ["--queries", queries, "--database", database], capsys)
        assert all(f"'{jax_brcd.load(place).space}'" in line for place in (queries, database)), line


def test_an_evaluation_takes_the_protocol_of_the_encoders_run_unless_told(whole, tmp_path, capsys):
    lists = write_lists(tmp_path / "lists", 12, 16, 8)
    metrics, _ = tiny(tmp_path / "run", tmp_path / "cache", dataset="list", data_dir=lists, k=5, batch_size=6)
    encoder = tmp_path / "run" / "student_symmetric"
    table = answer(evaluate.main, ["--queries", encoder, "--database", encoder], capsys)
    assert "list, split: lists, test list halved; 4 test queries, database of 16; k = 5" in table
    assert measures(table)[0] == f"{metrics['student']['symmetric']['map']:.4f}"
    assert "k = 7" in answer(evaluate.main, ["--queries", encoder, "--database", encoder, "--k", "7"], capsys)
    elsewhere = answer(evaluate.main, ["--queries", encoder, "--database", encoder, "--dataset", "digits"], capsys)
    assert "digits, split: 600 pretraining" in elsewhere and "k = 100" in elsewhere
    moved = shutil.move(lists, tmp_path / "moved")
    again = answer(evaluate.main, ["--queries", encoder, "--database", encoder, "--data-dir", moved], capsys)
    assert measures(again) == measures(table)


def test_an_evaluation_under_another_split_takes_no_choice_of_training_images_over(whole, tmp_path, monkeypatch, capsys):
    """Which that split may not have; under the same one it decides which test images are queries."""
    folder, asked = shutil.copytree(whole[0] / "student_symmetric", tmp_path / "encoder"), []
    told = read_json(folder / "config.json")
    told["provenance"]["settings"] |= {"dataset": "cifar10", "train_images": "all"}
    write_json(folder / "config.json", told)

    def load(name, **settings):
        asked.append((name, settings["split"], settings["train_images"]))
        raise InputError("not loaded here")

    monkeypatch.setattr("jax_brcd.stages.context.load_dataset", load)
    other = ["--split", "cifar10-II"]
    for arguments in ([], ["--split", "published"], other, [*other, "--train-images", "20"]):
        assert "not loaded here" in refusal(evaluate.main, ["--queries", folder, "--database", folder, *arguments], capsys)
    assert asked == [("cifar10", "published", "all"), ("cifar10", "published", "all"), ("cifar10", "cifar10-II", "published"),
                     ("cifar10", "cifar10-II", 20)]


def test_what_is_no_encoder_and_no_codes_is_refused(whole, tmp_path, capsys):
    out = whole[0]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    shutil.copytree(out / "teacher", tmp_path / "corrupt")
    (tmp_path / "corrupt" / "model.safetensors").write_bytes(b"nothing")
    short = tmp_path / "short.safetensors"
    PackedCodes.of(np.ones((3, 16), np.float32) * -1).save(short)
    longer = tmp_path / "longer.safetensors"
    PackedCodes.of(np.ones((797, 17), np.float32) * -1).save(longer)
    for folder, message in ((out, "a run's directory, and no encoder's"), (tmp_path / "absent", "no encoder's folder"),
                            (tmp_path / "broken", "broken"),
                            (tmp_path / "corrupt", "truncated or no safetensors")):
        for main, arguments, option in (
                (evaluate.main, ["--queries", folder, "--database", out / "teacher"], "--queries"),
                (student.main, students(tmp_path / "run", tmp_path / "cache", folder), "--teacher")):
            line = refusal(main, arguments, capsys)
            assert message in line and line.startswith(f"error: {option} {folder}: ")
    assert not (tmp_path / "run").exists()
    for database, message in ((out / "codes.npz", "not a whole file of packed codes"),
                              (tmp_path / "absent", "no such encoder's folder or file of codes"),
                              (out / "config.json", "not a whole file"),
                              (short, "3 codes, but the database of digits holds 797"),
                              (longer, "queries of 16 bits cannot be searched in codes of 17"), (out, "a run's directory")):
        assert message in refusal(evaluate.main, ["--queries", out / "teacher", "--database", database], capsys)
    assert "--database" in refusal(evaluate.main, ["--queries", out / "teacher"], capsys)
    assert "--k 798" in refusal(evaluate.main, ["--queries", out / "teacher", "--database", out / "teacher", "--k", "798"],
                                capsys)
    assert "--bits" in refusal(evaluate.main, ["--queries", out / "teacher", "--database", out / "teacher", "--bits", "8"],
                               capsys)
    assert "--lr" in refusal(teacher.main, ["--lr", "0.1"], capsys)
    assert "--teacher-lr" in refusal(student.main, ["--teacher", str(out / "teacher"), "--teacher-lr", "0.1"], capsys)


def test_images_without_labels_are_not_evaluated_by(whole, tmp_path, capsys):
    (tmp_path / "plain").mkdir()
    for number in range(8):
        picture(number).save(tmp_path / "plain" / f"{number}.png")
    line = refusal(evaluate.main, ["--queries", whole[0] / "teacher", "--database", whole[0] / "teacher", "--dataset", "folder",
                                   "--data-dir", tmp_path / "plain"], capsys)
    assert "--dataset folder: folder has no labels to evaluate by" in line


# From Python


def test_the_design_runs_as_printed(whole, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    query = images[2]
    encoder = jax_brcd.load(str(whole[0] / "student_asymmetric"))
    codes = encoder.encode(images)
    encoder.save(tmp_path / "somewhere")
    distances, positions = jax_brcd.HammingIndex(codes).search(encoder.encode(query), k=3)
    assert encoder.space == jax_brcd.load(whole[0] / "teacher").space != jax_brcd.load(whole[0] / "student_symmetric").space
    assert codes.bits == 16 and codes.packed.shape == (5, 2) and codes.unpack().shape == (5, 16)
    assert codes.space == encoder.space
    assert distances[0, 0] == 0 and positions.shape == (1, 3)
    again = jax_brcd.load(tmp_path / "somewhere")
    np.testing.assert_array_equal(again.encode(images).packed, codes.packed)
    assert again.preprocessing.mean == (0.5, 0.4, 0.3)  # the toys' own


def test_an_encoder_says_where_it_comes_from(whole):
    out, metrics = whole
    for role, found in (("teacher", metrics["teacher"]), ("student_symmetric", metrics["student"]["symmetric"])):
        provenance = jax_brcd.load(out / role).provenance
        assert provenance["metrics"] == found and provenance["protocol"] == metrics["protocol"]
        assert provenance["version"] == jax_brcd.__version__ and "labels of database" in provenance["data"]
        assert provenance["settings"]["bits"] == 16


def test_an_encoder_gives_the_codes_that_the_run_was_measured_by(whole):
    """Normalised as the toys ask, in the run and by the encoder alike."""
    from jax_brcd.data import load_dataset

    dataset = load_dataset("digits", cache_dir=".")
    with np.load(whole[0] / "codes.npz") as codes:
        for role, part, name in (("teacher", "database", "teacher_database"), ("student_symmetric", "test", "symmetric_test"),
                                 ("student_asymmetric", "test", "asymmetric_test")):
            encoded = jax_brcd.load(whole[0] / role).encode(getattr(dataset, part).images)
            np.testing.assert_array_equal(encoded.packed, codes[name])


def test_a_student_that_learns_whole_and_new_views_run_with_modules_from_outside(cache, tmp_path):
    for settings in ({"train_backbone": True}, {"fresh_views": True},
                     {"fresh_views": True, "train_backbone": True, "method": "sskd"}):
        name = "-".join(settings)
        metrics, _ = tiny(tmp_path / name, cache, **settings)
        assert 0 < metrics["student"]["symmetric"]["map"] <= 1
        assert jax_brcd.load(tmp_path / name / "student_symmetric").backbone == "small_toy"


def test_every_default_directory_is_told_by_what_distinguishes_runs():
    assert create_config().out.name == "digits-vit_lite_4_8-resnet8-64bits-brcd-seed0"
    assert callable(distill.main)


def test_a_teacher_goes_on_alone_only_where_no_student_was_taught_by_it(cache, whole, tmp_path, capsys):
    """The students beside it would be another teacher's."""
    before = sorted((path, path.stat().st_mtime_ns) for path in whole[0].rglob("*"))
    with trainings() as trained:
        line = refusal(teacher.main, teachers(whole[0], cache, teacher_epochs=2), capsys)
    assert "holds student_symmetric and student_asymmetric of a teacher with --teacher-epochs 1 (now 2)" in line
    assert trained == [] and sorted((path, path.stat().st_mtime_ns) for path in whole[0].rglob("*")) == before
    answer(teacher.main, teachers(tmp_path / "run", cache), capsys)
    with trainings() as trained:
        table = answer(teacher.main, teachers(tmp_path / "run", cache, teacher_epochs=2), capsys)
    assert trained == ["teacher"] and "Teacher: goes on from the checkpoint in" in table and ", after 1 epochs." in table
