"""The study of students trained whole: its students can be trained, equal ones are one, and its tables say what was found."""

import numpy as np
import pytest
import torch

from benchmarks import whole, whole_report
from benchmarks.teachers import Trained
from benchmarks.whole_step import Case, TorchEpochs, jax_epochs
from jax_brcd.methods import METHODS
from jax_brcd.runtime.files import write_json
from jax_brcd.settings.command_line import run_command
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.learning import check_learning

ASKED = whole.Asked(list(whole.TEACHERS), [16, 64], [0, 1, 2], [*METHODS, *whole.SUMS], list(whole.RATES), {"epochs": 15})


def students(*parts):
    return [student for part in parts or whole.STUDY for student in whole.STUDY[part](ASKED)]


def test_every_student_of_the_study_can_be_trained():
    for student in {student.name: student for student in students()}.values():
        weights = {"teacher_weights": "there", "student_weights": "there"}
        config = create_config(whole.PRESET, **weights | dict(student.settings), bits=student.bits, seed=student.seed)
        check_learning(config, images=50_000)
        config.method.check(images=50_000, bits=student.bits, streamed=False)


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
        "5 epochs": {"epochs": 5, "validation_interval": 5}, "30 epochs": {"epochs": 30, "validation_interval": 10},
        "60 epochs": {"epochs": 60, "validation_interval": 20}}
    short = whole.lengths({"epochs": 5, "train_images": 20_000})
    assert short["50,000 images in as many steps"] == {"epochs": 2, "validation_interval": 5}
    assert short["2 epochs"] == {"epochs": 2, "validation_interval": 5, "train_images": 20_000}


def result(teacher, symmetric, asymmetric, validation=0.5):
    def row(value):
        return {"map": value, "soft_map": value + 0.01, "tie_aware_map": value}

    return {"protocol": {"dataset": "cifar10", "split": "published", "queries": 5, "database": 50, "training": 30, "k": 10, "ties": "stable"},
            "teacher": row(teacher), "symmetric": row(symmetric), "asymmetric": row(asymmetric), "validation": validation,
            "cost": {"parameters": 1234, "images_per_second": 10.0}, "device": "cpu", "epochs": 15, "seconds": 1.0,
            "validations": [{"epoch": 5, "both_map": 0.25}, {"epoch": 10, "both_map": validation}]}


def test_each_method_chooses_its_rate_by_the_validation_queries():
    search = [student for student in students("search") if student.label == "kl"]
    scores = {student.name: 0.1 + 0.1 * number for number, student in enumerate(search)}
    scores[search[1].name] = 0.9  # of the first teacher the second rate, of the other the last
    results = {name: result(1.0, 1.0, 1.0, score) for name, score in scores.items()}
    found = whole.chosen(search, results, [0, 7])
    assert [(one.teacher, one.settings["lr"], one.seed, one.part) for one in found] == [
        (teacher, rate, seed, "methods") for seed in (0, 7) for teacher, rate in (("itq", 2e-3), ("cibhash", 6e-3))]


def test_what_is_known_is_not_trained_again(tmp_path):
    wanted = students("sizes")[:2]
    known = {student.name: result(0.5, 0.5, 0.5) for student in wanted}
    write_json(tmp_path / "whole.json", {"outcomes": known})
    study = whole.Study(tmp_path / "runs", tmp_path / "whole.json", {}, 1)
    study.carry_out(wanted, "study")
    assert whole.outcomes(tmp_path / "whole.json") == known and not (tmp_path / "runs").exists()


def test_a_report_of_nothing_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command(whole.main, ["--data-dir", "nowhere", "--report", "--out", str(tmp_path), "--parts", "sizes"])
    assert stopped.value.code == 2 and "whole.json: holds no results of sizes; leave --report out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_tables_say_what_was_found(tmp_path):
    rate, records = {"lr": 2e-3}, []
    for seed in (0, 1):
        records.append({"part": "recipe", "label": "recipe", "teacher": "itq", "bits": 64, "seed": seed, "settings": {},
                        "result": result(0.5, 0.5 + 0.05 * seed, 0.45)})
        records.append({"part": "chances", "label": "chances", "teacher": "cibhash", "bits": 64, "seed": seed, "settings": {},
                        "result": result(0.4, 0.4, 0.44)})
        records.append({"part": "alone", "label": "alone", "teacher": "itq", "bits": 32, "seed": seed, "settings": {},
                        "result": result(0.5, 0.6, 0.55)})
        records.append({"part": "short", "label": "10 epochs", "teacher": "itq", "bits": 64, "seed": seed, "settings": {},
                        "result": result(0.5, 0.5, 0.55) | {"epochs": 10 - seed}})
        for label, score in (("mse", 0.5), ("brcd", 0.4)):
            records.append({"part": "methods", "label": label, "teacher": "itq", "bits": 64, "seed": seed, "settings": rate,
                            "result": result(0.5, score + 0.01 * seed, score)})
    whole_report.write(tmp_path, records)
    lines = (tmp_path / "whole.md").read_text().splitlines()
    assert ("| itq, 64 bits | 2 | 0.5000 ± 0.0000 | 0.5100 | 0.5250 ± 0.0354 | 1.050 ± 0.071 | 0.5350 | 0.4500 ± 0.0000 | "
            "0.900 ± 0.000 | 0.4600 |") in lines
    assert ("| cibhash, 64 bits | 2 | 0.4000 ± 0.0000 | 0.4100 | 0.4000 ± 0.0000 | 1.000 ± 0.000 | 0.4100 | 0.4400 ± 0.0000 | "
            "1.100 ± 0.000 | 0.4500 |") in lines
    assert ("| itq, 32 bits | 2 | 0.5000 ± 0.0000 | 0.5100 | 0.6000 ± 0.0000 | 1.200 ± 0.000 | 0.6100 | 0.5500 ± 0.0000 | "
            "1.100 ± 0.000 | 0.5600 |") in lines
    assert lines.count("15 epochs of 30 images, on cpu.") == 8 and lines.count("9 or 10 epochs of 30 images, on cpu.") == 1
    assert "| 10 epochs | itq | 2 | 0.5000 ± 0.0000 | 1.000 ± 0.000 | 0.5100 | 0.5500 ± 0.0000 | 1.100 ± 0.000 | 0.5600 |" in lines
    assert "| itq, 64 bits | 0.2500 ± 0.0000 | 0.5000 ± 0.0000 |" in lines
    methods = [line.split(" | ")[0] for line in lines if " | itq | 0.002 | " in line]
    assert methods == ["| mse", "| brcd"]
    assert ("- itq, symmetric: mse by 0.1000 before brcd; a method's deviation over the seeds is 0.0071 in the root of the mean "
            "square") in lines
    assert (tmp_path / "methods.png").stat().st_size and not (tmp_path / "sizes.png").exists()
    assert "| brcd | itq | 2 | -0.1000 ± 0.0000 | -0.1000 ± 0.0000 |" in lines
    lucky = {"part": "methods", "label": "kl", "teacher": "itq", "bits": 64, "seed": 0, "settings": rate, "result": result(0.5, 0.9, 0.9)}
    whole_report.write(tmp_path, [*records, lucky])
    assert ("- itq, symmetric: mse by 0.1000 before brcd; a method's deviation over the seeds is 0.0071 in the root of the mean "
            "square; those of fewer seeds (1) are not compared") in (tmp_path / "whole.md").read_text().splitlines()
    whole_report.write(tmp_path, [record for record in records if record["seed"] == 0])
    assert ("- itq, symmetric: mse by 0.1000 before brcd; of one seed each, so how far seeds differ is not known"
            in (tmp_path / "whole.md").read_text().splitlines())


def test_the_figure_of_methods_names_every_teacher():
    """Also one whose students do not have the first method."""
    taught = (("itq", "brcd"), ("itq", "mse"), ("cibhash", "mse"))
    records = [{"label": label, "teacher": teacher, "result": result(0.5, 0.4, 0.4)} for teacher, label in taught]
    figure = whole_report.methods_figure(records)
    for axis in figure.axes:
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["itq teacher", "cibhash teacher"]


CASE = Case("resnet8", 32, 4, 2)


def test_both_frameworks_learn_the_same_students_from_the_same_images():
    theirs = TorchEpochs(CASE, best=False)
    ours = jax_epochs(CASE, "float32")
    assert sum(each.numel() for each in theirs.model.parameters()) == 81_552
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
