"""The study of students trained whole: its students can be trained, equal ones are one, and its tables say what was found."""

import pathlib
import pickle
import re
import shutil

import jax
import numpy as np
import pytest
import torch
from toy_runs import OPTIONS

from benchmarks import whole, whole_report
from benchmarks.teachers import Trained
from benchmarks.whole_step import Case, TorchEpochs, jax_epochs
from jax_brcd.methods import METHODS
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import write_json
from jax_brcd.settings.command_line import run_command
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.context import StageDiverged
from jax_brcd.stages.folder import StageFolder
from jax_brcd.stages.learning import check_images, check_learning, check_new
from jax_brcd.stages.run import run

ASKED = whole.Asked(list(whole.TEACHERS), [16, 64], [0, 1, 2], [*METHODS, *whole.SUMS], list(whole.RATES), {"epochs": 15})


def students(*parts):
    return [student for part in parts or whole.STUDY for student in whole.STUDY[part](ASKED)]


def test_every_student_of_the_study_can_be_trained():
    for student in {student.name: student for student in students()}.values():
        weights = {"teacher_weights": "there", "student_weights": "there"}
        config = create_config(whole.PRESET, **weights | dict(student.settings), bits=student.bits, seed=student.seed)
        check_learning(config)
        check_new(config)
        check_images(config, images=50_000)
        config.method.check(images=50_000, streamed=False)


def test_equal_students_are_one_whichever_part_asks_for_them():
    named = {part: {student.name for student in students(part)} for part in whole.STUDY}
    assert named["recipe"] == {f"{teacher}-bits={bits}-seed={seed}" for teacher in whole.TEACHERS for bits in (16, 64) for seed in (0, 1, 2)}
    assert named["alone"] == {f"{name}-teacher-neighbours=0" for name in named["recipe"]}
    assert "itq-bits=64-seed=0-teacher-neighbours=0" in named["search"] & named["variants"]
    assert "itq-bits=64-seed=0-lr=0.0007-teacher-neighbours=0" in named["search"]
    assert named["chances"] == {
        f"cibhash-bits=64-seed={seed}-batch-size=128-bits-temperature=1.0-lr=0.0015-method=bits-teacher-neighbours=0" for seed in (0, 1, 2)}
    assert {"itq-bits=64-seed=2-epochs=5", "cibhash-bits=64-seed=0-batch-size=128-epochs=5-lr=0.0015"} <= named["short"]
    other = whole.Taught("search", "mse", "itq", 64, 0, {"epochs": 5, "method": "mse"})
    assert other.name == "itq-bits=64-seed=0-epochs=5" and other.trained == Trained("all", "itq", 64, 0)


def test_other_images_are_seen_in_as_many_steps():
    assert whole.lengths({"epochs": 15}) == {
        "5,000 images in as many steps": {"epochs": 150, "validation_interval": 50, "train_images": 5_000},
        "20,000 images in as many steps": {"epochs": 38, "validation_interval": 12, "train_images": 20_000},
        "5 epochs": {"epochs": 5, "validation_interval": 5, "train_images": "all"},
        "30 epochs": {"epochs": 30, "validation_interval": 10, "train_images": "all"},
        "60 epochs": {"epochs": 60, "validation_interval": 20, "train_images": "all"}}
    short = whole.lengths({"epochs": 5, "train_images": 20_000})
    assert short["50,000 images in as many steps"] == {"epochs": 2, "validation_interval": 5, "train_images": "all"}
    assert short["2 epochs"] == {"epochs": 2, "validation_interval": 5, "train_images": 20_000}
    asked = whole.Asked(["itq"], [64], [0], ["mse"], [2e-3], {"epochs": 5, "train_images": 20_000})
    named = {student.label: student.name for student in whole.of_variants(asked)}
    assert named["50,000 images in as many steps"] == "itq-bits=64-seed=0-epochs=2-teacher-neighbours=0"
    assert named["2 epochs"] == "itq-bits=64-seed=0-epochs=2-teacher-neighbours=0-train-images=20000"


def result(teacher, symmetric, asymmetric, validation=0.5):
    def row(value):
        return {"map": value, "soft_map": value + 0.01, "tie_aware_map": value}

    return {"protocol": {"dataset": "cifar10", "split": "published", "queries": 5, "database": 50, "training": 30, "k": 10, "ties": "stable"},
            "teacher": row(teacher), "symmetric": row(symmetric), "asymmetric": row(asymmetric), "validation": validation,
            "parameters": 1234, "device": "cpu", "epochs": 15, "seconds": 1.0,
            "validations": [{"epoch": 5, "both_map": 0.25}, {"epoch": 10, "both_map": validation}]}


def test_each_method_chooses_its_rate_by_the_validation_queries():
    search = [student for student in students("search") if student.label == "kl"]
    scores = {student.name: 0.1 + 0.1 * number for number, student in enumerate(search)}
    scores[search[1].name] = 0.9  # of the first teacher the second rate, of the other the last
    results = {name: result(1.0, 1.0, 1.0, score) for name, score in scores.items()} | {search[0].name: {"diverged": "it is nan"}}
    found = whole.chosen(search, results, [0, 7])
    assert [(one.teacher, one.settings["lr"], one.seed, one.part) for one in found] == [
        (teacher, rate, seed, "methods") for seed in (0, 7) for teacher, rate in (("itq", 2e-3), ("cibhash", 6e-3))]


def test_what_is_known_is_not_trained_again(tmp_path):
    wanted = students("sizes")[:2]
    known = {student.name: result(0.5, 0.5, 0.5) for student in wanted}
    write_json(tmp_path / "whole.json", {"recipe": whole.RECIPE, "outcomes": known})
    study = whole.Study(tmp_path / "runs", tmp_path / "whole.json", {}, 1)
    study.carry_out(wanted, "study")
    assert whole.outcomes(tmp_path / "whole.json") == known and not (tmp_path / "runs").exists()


def test_a_result_is_kept_before_its_training_is_deleted_whatever_becomes_of_the_others(tmp_path, monkeypatch):
    """So that what fails while it is written is taken from the finished training by the same command."""
    first, second, third = students("sizes")[:3]
    (tmp_path / "runs" / "teachers" / first.trained.name / "teacher").mkdir(parents=True)
    (tmp_path / "runs" / "teachers" / first.trained.name / "teacher" / whole.WEIGHTS).touch()

    def teach(runs, shared, student):
        (runs / "students" / student.name).mkdir(parents=True, exist_ok=True)
        if student == second:
            raise RuntimeError("out of luck")
        return student.name, result(0.5, 0.5, 0.5)

    monkeypatch.setattr(whole, "teach", teach)
    monkeypatch.setattr(whole, "as_they_end", lambda jobs, work, each: (work(*arguments) for arguments in each))
    study = whole.Study(tmp_path / "runs", tmp_path / "whole.json", {}, 1)
    with monkeypatch.context() as full, pytest.raises(OSError, match="no space"):
        full.setattr(whole, "write_json", lambda *_: (_ for _ in ()).throw(OSError("no space")))
        study.carry_out([first], "study")
    assert (tmp_path / "runs" / "students" / first.name).is_dir()
    with pytest.raises(RuntimeError, match="out of luck"):
        study.carry_out([first, second, third], "study")
    assert list(whole.outcomes(tmp_path / "whole.json")) == [first.name]
    assert [path.name for path in (tmp_path / "runs" / "students").iterdir()] == [second.name]


def test_results_of_another_recipe_are_refused(tmp_path):
    path = tmp_path / "whole.json"
    write_json(path, {"recipe": whole.RECIPE | {"epochs": 3}, "outcomes": {}})
    with pytest.raises(InputError, match="whole.json: its students learnt by another recipe than cifar10-32-whole is now; move it away"):
        whole.outcomes(path)


def test_what_is_kept_of_a_student_are_the_scores_of_a_run(toy_backbones, cache, tmp_path):
    config = create_config(**OPTIONS | {"cache_dir": cache, "out": tmp_path / "run", "keep": "both", "method": "mse"})
    metrics = run(config)
    found = whole.outcome(config, tmp_path / "scores.json")
    told = {"teacher": metrics["teacher"], **metrics["student"]}
    for name in ("teacher", "symmetric", "asymmetric"):
        assert found[name] == {measure: told[name][measure] for measure in ("map", "tie_aware_map", "soft_map")}
    assert found["parameters"] == metrics["costs"]["student"]["parameters"] and found["protocol"] == metrics["protocol"]
    assert whole.outcome(config, tmp_path / "scores.json") == found


def test_what_is_kept_of_a_student_that_diverges_is_why(toy_backbones, cache, tmp_path):
    config = create_config(**OPTIONS | {"cache_dir": cache, "out": tmp_path / "run", "keep": "both", "method": "mse", "lr": 1e38})
    assert re.fullmatch(r"student: .* of epoch 1", whole.outcome(config, tmp_path / "scores.json")["diverged"])


def test_an_error_of_a_stage_comes_back_from_another_process(tmp_path):
    folder = StageFolder(tmp_path, "student", {"lr": 1.0})
    error = pickle.loads(pickle.dumps(StageDiverged("the loss is nan", folder)))
    assert (str(error), error.folder) == ("the loss is nan", folder)


def test_a_report_of_nothing_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command(whole.main, ["--data-dir", "nowhere", "--report", "--out", str(tmp_path), "--parts", "sizes"])
    assert stopped.value.code == 2 and "whole.json: holds no results of sizes; leave --report out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_tables_say_what_was_found(tmp_path):
    rate, records = {"lr": 2e-3}, []
    for seed in (0, 1):
        records.append({"part": "recipe", "label": "recipe", "teacher": "itq", "bits": 64, "seed": seed, "settings": {},
                        "result": result(0.5, 0.5 + 0.05 * seed, 0.45) | {"seconds": 1200.4 + 900 * seed}})
        records.append({"part": "chances", "label": "chances", "teacher": "cibhash", "bits": 64, "seed": seed, "settings": {},
                        "result": result(0.4, 0.4, 0.44)})
        records.append({"part": "alone", "label": "alone", "teacher": "itq", "bits": 32, "seed": seed, "settings": {},
                        "result": result(0.5, 0.6, 0.55)})
        records.append({"part": "short", "label": "10 epochs", "teacher": "itq", "bits": 64, "seed": seed, "settings": {},
                        "result": result(0.5, 0.5, 0.55) | {"epochs": 10 - seed}})
        for label, score in (("mse", 0.5), ("brcd", 0.4)):
            records.append({"part": "methods", "label": label, "teacher": "itq", "bits": 64, "seed": seed, "settings": rate,
                            "result": result(0.5, score + 0.01 * seed, score)})
    lost = {"part": "search", "label": "bits", "teacher": "itq", "bits": 64, "seed": 0, "settings": {}, "result": {"diverged": "it is nan"}}
    whole_report.write(tmp_path, [*records, lost])
    lines = (tmp_path / "whole.md").read_text().splitlines()
    assert ("| itq, 64 bits | 2 | 0.5000 ± 0.0000 | 0.5100 | 0.5250 ± 0.0354 | 1.050 ± 0.071 | 0.5350 | 0.4500 ± 0.0000 | "
            "0.900 ± 0.000 | 0.4600 | 1,200 to 2,100 |") in lines
    assert ("| cibhash, 64 bits | 2 | 0.4000 ± 0.0000 | 0.4100 | 0.4000 ± 0.0000 | 1.000 ± 0.000 | 0.4100 | 0.4400 ± 0.0000 | "
            "1.100 ± 0.000 | 0.4500 | 1 |") in lines
    assert ("| itq, 32 bits | 2 | 0.5000 ± 0.0000 | 0.5100 | 0.6000 ± 0.0000 | 1.200 ± 0.000 | 0.6100 | 0.5500 ± 0.0000 | "
            "1.100 ± 0.000 | 0.5600 | 1 |") in lines
    assert lines.count("15 epochs of 30 images, on cpu.") == 8 and lines.count("9 or 10 epochs of 30 images, on cpu.") == 1
    assert "| 10 epochs | itq | 2 | 0.5000 ± 0.0000 | 1.000 ± 0.000 | 0.5100 | 0.5500 ± 0.0000 | 1.100 ± 0.000 | 0.5600 |" in lines
    assert "| itq, 64 bits | 0.2500 ± 0.0000 | 0.5000 ± 0.0000 |" in lines
    methods = [line.split(" | ")[0] for line in lines if " | itq | 0.002 | " in line]
    assert methods == ["| mse", "| brcd"]
    assert "- itq, symmetric: mse by 0.1000 ± 0.0000 before brcd, over 2 seeds" in lines
    assert lines[-1] == "| bits | itq | 64 | 0 | it is nan |"
    assert (tmp_path / "methods.png").stat().st_size and not (tmp_path / "sizes.png").exists()
    assert "| brcd | itq | 2 | -0.1000 ± 0.0000 | -0.1000 ± 0.0000 |" in lines
    lucky = {"part": "methods", "label": "kl", "teacher": "itq", "bits": 64, "seed": 0, "settings": rate, "result": result(0.5, 0.9, 0.9)}
    whole_report.write(tmp_path, [*records, lucky])
    lines = (tmp_path / "whole.md").read_text().splitlines()
    assert "- itq, symmetric: mse by 0.1000 ± 0.0000 before brcd, over 2 seeds; those of other teachers (1) are not compared" in lines
    assert [line.split(" | ")[0] for line in lines if " | itq | 0.002 | " in line] == ["| mse", "| brcd", "| kl"]
    whole_report.write(tmp_path, [record for record in records if record["seed"] == 0])
    assert ("- itq, symmetric: mse by 0.1000 before brcd, of one seed, so how far seeds differ is not known"
            in (tmp_path / "whole.md").read_text().splitlines())


def test_students_are_compared_only_where_they_had_the_very_teacher():
    """A seed's teacher is another one on another machine, and its students with it."""
    def of(label, seed, teacher, score):
        return {"part": "methods", "label": label, "teacher": "itq", "bits": 64, "seed": seed, "settings": {"lr": 2e-3},
                "result": result(teacher, score, score)}

    records = [of("brcd", 0, 0.51, 0.49), of("brcd", 1, 0.52, 0.41), of("mse", 0, 0.50, 0.40), of("mse", 1, 0.52, 0.44),
               of("bits", 1, 0.52, 0.45), of("bits", 0, 0.50, 0.42)]
    assert whole_report.winners(records).splitlines()[0] == (
        "- itq, symmetric: bits by 0.0150 ± 0.0071 before mse, over 2 seeds; those of other teachers (1) are not compared")
    table = whole_report.gains_table(records, "mse").splitlines()
    assert table[2:] == ["| bits | itq | 2 | +0.0150 ± 0.0071 | +0.0150 ± 0.0071 |"]


def test_the_tables_in_the_repository_are_those_of_its_records(tmp_path):
    place = pathlib.Path(whole.__file__).parent / "results" / "whole"
    shutil.copy(place / "whole.json", tmp_path)
    whole.main(["--data-dir", "nowhere", "--report", "--out", str(tmp_path), "--parts", "recipe", "short", "alone", "chances", "sizes",
                "search", "variants", "parts of BRCD", "--rates", "0.002", "--epochs", "5", "--train-images", "20000"])
    assert (tmp_path / "whole.md").read_text() == (place / "whole.md").read_text()


def test_the_figure_of_methods_names_every_teacher():
    """Also one whose students do not have the first method."""
    taught = (("itq", "brcd"), ("itq", "mse"), ("cibhash", "mse"))
    records = [{"label": label, "teacher": teacher, "result": result(0.5, 0.4, 0.4)} for teacher, label in taught]
    figure = whole_report.methods_figure(records)
    for axis in figure.axes:
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["itq teacher", "cibhash teacher"]


CASE = Case("resnet8", 32, 4, 2)


def test_both_frameworks_step_students_of_one_size():
    theirs, ours = TorchEpochs(CASE, best=False), jax_epochs(CASE, "float32")
    learnt = sum(leaf.size for leaf in jax.tree.leaves(ours.state.parameters["model"]))
    assert sum(each.numel() for each in theirs.model.parameters()) == learnt == 81_552
    for losses in (theirs(), ours()["loss"]):
        assert len(losses) == CASE.steps and np.isfinite(losses).all() and 0.2 < losses[0] < 2


def test_pytorchs_views_are_moved_over_black_and_flipped():
    torch.manual_seed(0)
    epochs = TorchEpochs(CASE, best=False)
    images = epochs.images[:4]
    views = (epochs.views(images) * epochs.std + epochs.mean) * 255
    assert views.is_contiguous(memory_format=torch.channels_last)
    padded = torch.nn.functional.pad(images.float(), (4, 4, 4, 4))
    for image, view in zip(padded, views, strict=True):
        crops = [image[:, row : row + 32, column : column + 32] for row in range(9) for column in range(9)]
        assert min(float((each - view).abs().max()) for crop in crops for each in (crop, crop.flip(2))) < 1e-3
