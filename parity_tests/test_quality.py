"""The study of methods: which runs it makes, what it chooses on validation, and what its tables say of given results."""

import dataclasses
import pathlib

import numpy as np
import pytest

from benchmarks import quality, quality_report
from benchmarks.quality import STUDY, Run, brcd, chosen
from jax_brcd.methods import METHODS
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import read_json
from jax_brcd.stages.configuration import create_config


def planned(*parts):
    return [run for part in parts or STUDY for run in STUDY[part](list(METHODS), [16, 64], [0, 1])]


def result(symmetric, asymmetric=0.4, validation=(0.0, 0.0)):
    score = {"precision": 0.3, "tie_aware_map": 0.25}
    return {"protocol": {"dataset": "cifar10", "split": "published", "queries": 5000, "database": 50000, "k": 1000,
                         "ties": "stable"},
            "teacher": {"map": 0.5, **score}, "symmetric": {"map": symmetric, **score},
            "asymmetric": {"map": asymmetric, **score},
            "validation": dict(zip(("symmetric", "asymmetric"), validation, strict=True)),
            "epochs": 60}


def test_every_method_is_run_at_all_bits_and_seeds():
    runs = planned("methods")
    assert len(runs) == len({run.name for run in runs}) == len(METHODS) * 2 * 2


def test_every_planned_run_is_one_that_the_command_accepts():
    for run in planned():
        create_config(**run.settings, bits=run.bits, seed=run.seed, dataset="cifar10")


def test_equal_runs_are_made_once():
    """BRCD's default stands in four parts of the study."""
    names = [run.name for part in ("methods", "ablation", "variants", "sensitivity") for run in planned(part)
             if run.settings == {"method": "brcd"} and (run.bits, run.seed) == (64, 0)]
    assert len(names) == 1 + 1 + 1 + 5 and len(set(names)) == 1  # five of the settings varied have their default once
    assert brcd(alpha=0.8, margin=0.1) == {"method": "brcd", "margin": 0.1}


def test_every_method_has_as_many_settings_to_choose_from():
    runs = planned("search")
    counts = {method: len({run.name for run in runs if run.label == method}) for method in METHODS}
    assert set(counts.values()) == {6}


def test_the_best_on_validation_is_chosen_whatever_the_test_says():
    search = [Run("search", "kl", 64, 0, {"method": "kl", **settings}) for settings in ({}, {"lr": 3e-3})]
    results = {search[0].name: result(0.9, validation=(0.1, 0.4)), search[1].name: result(0.1, validation=(0.2, 0.3))}
    again = chosen(search, results, [0, 1])
    assert [(run.part, run.settings.get("lr"), run.seed) for run in again] == [
        ("chosen, symmetric", 3e-3, 0), ("chosen, symmetric", 3e-3, 1),
        ("chosen, asymmetric", None, 0), ("chosen, asymmetric", None, 1)]
    records = [{**dataclasses.asdict(run), "result": results[dataclasses.replace(run, seed=0).name]} for run in search + again]
    assert "| kl | 2 | lr 0.003 | 0.1000 ± 0.0000 | defaults | 0.4000 ± 0.0000 |" in quality_report.search_table(records)


def test_tables_show_means_deviations_and_the_share_of_the_teacher(tmp_path):
    runs = [Run("methods", method, 64, seed, {"method": method}) for method in ("brcd", "none") for seed in (0, 1)]
    records = [{**dataclasses.asdict(run), "result": result(0.3 + 0.02 * run.seed)} for run in runs]
    quality_report.write(tmp_path, records)
    text = (tmp_path / "quality.md").read_text()
    deviation = np.std([0.30, 0.32], ddof=1)
    assert f"| brcd | 0.3100 ± {deviation:.4f} | 0.2500 ± 0.0000 | 0.620 |" in text
    assert "### mAP@1000\n\n| method | symmetric, 64 bits | asymmetric, 64 bits |" in text
    assert f"| brcd | 0.3100 ± {deviation:.4f} | 0.4000 ± 0.0000 |\n" in text
    assert "k = 1000, ties stable" in text
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG") and not (tmp_path / "ablation.png").exists()


def test_a_setting_that_moves_the_teacher_too_shows_in_its_row():
    runs = [Run("sensitivity", f"temperature {value}", 64, 0, brcd(temperature=value)) for value in (0.3, 1.0)]
    records = [{**dataclasses.asdict(run), "result": result(0.3)} for run in runs]
    records[1]["result"] = {**records[1]["result"], "teacher": {**records[1]["result"]["teacher"], "map": 0.4}}
    text = quality_report.summary(records)
    assert "| temperature 0.3 | 64 | 0.5000 | 0.3000 | 0.4000 | 0.600 | 0.800 |" in text
    assert "| temperature 1.0 | 64 | 0.4000 | 0.3000 | 0.4000 | 0.750 | 1.000 |" in text


def test_the_tables_in_the_repository_are_those_of_its_records():
    place = pathlib.Path(quality.__file__).parent / "results" / "quality"
    assert (place / "quality.md").read_text() == quality_report.summary(read_json(place / "quality.json")["runs"])


def test_a_study_leaves_its_records_tables_and_figures(tmp_path, monkeypatch):
    def carried_out(study, runs):
        runs = list(runs)
        for run in runs:
            plot = study.folder / run.name / "plots" / "bit_masks.png"
            plot.parent.mkdir(parents=True, exist_ok=True)
            plot.write_bytes(f"{run.name}".encode())
        return {run.name: result(0.3) for run in runs}

    monkeypatch.setattr(quality.Study, "carry_out", carried_out)
    for name in ("vit_lite_7_4", "resnet18_32"):
        (tmp_path / f"{name}.safetensors").touch()
    words = ["--data-dir", "data", "--weights", str(tmp_path), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    quality.main([*words, "--bits", "16", "64"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "quality.json", "quality.md", "methods.png", "ablation.png", "variants.png", "sensitivity.png", "bit_masks.png"}
    assert (tmp_path / "out" / "bit_masks.png").read_text() == "method=brcd-bits=64-seed=0"
    records = read_json(tmp_path / "out" / "quality.json")["runs"]
    assert {record["part"] for record in records} == {*STUDY, "chosen, symmetric", "chosen, asymmetric"}


@pytest.mark.parametrize(("words", "message"), [
    (["--methods", "brcdd"], "did you mean 'brcd'"), (["--parts", "ablatoin"], "did you mean 'ablation'"),
    (["--weights", "absent"], "no such weight file"),
])
def test_a_study_that_cannot_be_is_refused(words, message):
    with pytest.raises(InputError, match=message):
        quality.main(["--data-dir", "data", *words])
