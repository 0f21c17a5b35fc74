"""The benchmarks compute what they claim to, on sizes that take no time; no test looks at how fast anything is."""

import ctypes
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from orphans import await_end

from benchmarks import (
    augment,
    compiled,
    encode,
    end_to_end,
    evaluate,
    jobs,
    latency,
    loss,
    memory,
    multi_index,
    plots,
    published,
    run,
    search,
    signals,
    tables,
    targets,
    train_step,
    training,
    whole_step,
)
from benchmarks.results import Row, Skipped, measure, read_results, record_suite, rows_of
from benchmarks.suite import Settings, Suite
from benchmarks.timing import Contender, Measurement, interleaved
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import write_json
from jax_brcd.settings.command_line import run_command
from torch_ref import retrieval

pytestmark = pytest.mark.long

MODULES = {"loss": loss, "augment": augment, "encode": encode, "train_step": train_step, "evaluate": evaluate,
           "latency": latency, "whole_step": whole_step, "end_to_end": end_to_end, "search": search,
           "multi_index": multi_index}
MACHINE = {"cpu": "CPU", "cores": 2, "memory_gib": 8.0, "instructions": ["avx2"], "accelerator": None, "system": "Linux",
           "python": "3", "versions": {"jax": "0"}, "xla_flags": "", "date": "2024-01-01"}


@pytest.fixture
def settings(tmp_path):
    return Settings(quick=True, samples=1, machine="tiny", results=tmp_path)


@pytest.fixture
def without_compiling(monkeypatch):
    """torch.compile takes half a minute a program; what is compiled is tested as it stands."""
    monkeypatch.setattr(compiled, "why_not", lambda: "switched off in this test")


def a_row(case="case", contender="jax_brcd", seconds=(1.0, 2.0, 4.0), **fields):
    return Row(case, contender, Measurement(seconds, seconds[0]), **fields)


# What is compared


@pytest.mark.parametrize(("images", "bits"), [(2, 8), (33, 16), (64, 64)])
@pytest.mark.parametrize("other", [published.objective, compiled.objective], ids=["published style", "matrix products"])
def test_every_pytorch_objective_gives_the_loss_and_gradients_of_torch_ref(images, bits, other):
    batch = loss.batch_of(images, bits, seed=images)
    batch["logits_i"][:, 0] = 0.0  # a code of zero
    value, gradients = loss.torch_call(batch, other)()
    expected, expected_gradients = loss.torch_call(batch, loss.reference_objective)()
    # float32 sums over up to 128 rows in another order
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()) + 1e-7)


def test_contenders_with_other_values_are_refused():
    batch = loss.batch_of(4, 8)
    calls = {loss.OURS: loss.jax_call(batch), loss.EAGER: loss.torch_call(batch, compiled.objective)}
    loss.check_agreement(calls)
    with pytest.raises(ArithmeticError, match="different losses"):
        loss.check_agreement({**calls, loss.EAGER: lambda: (0.0, None)})


def test_every_map_is_that_of_torch_ref_where_nothing_ties():
    query = np.ones((1, 64), np.float32)
    database = np.where(np.arange(64) < np.arange(64)[:, None], -1.0, 1.0).astype(np.float32)  # at distances 0, 1, 2, ...
    order = np.random.default_rng(0).permutation(64)
    labels = np.eye(2, dtype=np.float32)[np.random.default_rng(1).integers(2, size=64)]
    search = (query, database[order], labels[:1], labels, 20)
    expected = retrieval.mean_average_precision(*search)
    assert published.mean_average_precision(*search) == pytest.approx(expected)
    assert evaluate.batched(*search) == pytest.approx(expected, rel=1e-6)


# How it is timed


def test_contenders_are_timed_in_turns_and_short_ones_in_blocks():
    now, order = [0.0], []

    def call(name, seconds):
        order.append(name)
        now[0] += seconds

    def pause(seconds):
        now[0] += seconds

    contenders = [Contender("slow", lambda: call("slow", 3.0)), Contender("fast", lambda: call("fast", 0.25)),
                  Contender("part", lambda: call("part", 1.0), share=0.1)]
    taken = interleaved(contenders, samples=2, sample_seconds=1.0, clock=lambda: now[0], pause=pause)
    warm, turn = ["slow"] * 2 + ["fast"] * 2 + ["part"] * 2, ["slow"] + ["fast"] * 5 + ["part"]
    assert order == warm + turn * 2
    assert {name: each.samples for name, each in taken.items()} == {
        "slow": pytest.approx((3.0, 3.0)), "fast": pytest.approx((0.25, 0.25)), "part": pytest.approx((10.0, 10.0))}
    assert [taken[name].calls for name in ("slow", "fast", "part")] == [1, 4, 1]


def test_turns_end_with_the_budget_but_not_before_three():
    now = [0.0]

    def call():
        now[0] += 5.0

    taken = interleaved([Contender("a", call)], samples=9, budget=1.0, clock=lambda: now[0], pause=lambda _: None)
    assert len(taken["a"].samples) == 3


def test_compile_time_is_the_first_call_less_a_later_one():
    now, calls = [0.0], [0]

    def call():
        calls[0] += 1
        now[0] += 7.0 if calls[0] == 1 else 2.0

    (row,) = measure("case", [Contender("a", call, compiled=True, share=0.5)], items=8, samples=3, clock=lambda: now[0],
                     pause=lambda _: None)
    assert (row.compile_seconds, row.seconds.median, row.rate) == pytest.approx((5.0, 4.0, 2.0))


def test_a_ratio_is_of_medians_and_of_the_best_on_the_other_side():
    target = targets.Target("what", "against", "loss", ("case", "ours"), ("case", ("slow", "fast")), 3)
    rows = [a_row(contender="ours", seconds=(1.0, 2.0, 30.0), items=2), a_row(contender="slow", seconds=(50.0,)),
            a_row(contender="fast", seconds=(3.0, 4.0, 5.0)), a_row(case="other", contender="fast", seconds=(0.1,))]
    verdict = targets.judge(target, rows)
    assert verdict.theirs.contender == "fast"
    assert verdict.ratio == pytest.approx(4.0 / (2.0 / 2))
    assert (verdict.low, verdict.high) == pytest.approx((3.5 / (16 / 2), 4.5 / (1.5 / 2)))
    assert verdict.met and not targets.judge(dataclasses.replace(target, least=4.1), rows).met


def test_memory_is_compared_the_other_way_round():
    target = targets.Target("what", "against", "loss", ("case", "ours"), ("case", ("theirs",)), 20, quantity="memory")
    rows = [a_row(contender="ours", peak_bytes=10), a_row(contender="theirs", peak_bytes=190)]
    assert targets.judge(target, rows).ratio == 19.0
    assert targets.judge(target, rows).met is False


def test_a_projection_adds_up_its_parts():
    parts = [end_to_end.Part("a", "ours", lambda: None, 2, 100, "steps", compiled=True),
             end_to_end.Part("b", "ours", lambda: None, 5, 5, "images"),
             end_to_end.Part("b", "theirs", lambda: None, 1, 1000, "images")]
    rows = [a_row("part: a", "ours", (4.0,), items=2, compile_seconds=7.0), a_row("part: b", "ours", (1.0,), items=5),
            a_row("part: b", "theirs", (9.0,), items=5)]
    total = end_to_end.project(parts, rows, "ours", note="")
    assert total.seconds.median == pytest.approx(4.0 / 2 * 100 + 7.0 + 1.0)
    assert end_to_end.project(parts, rows, "theirs", note="").seconds.median == pytest.approx(9.0 / 5 * 1000)


def test_peak_memory_is_what_the_call_needs_and_not_what_was_there():
    if not memory.CLEAR_REFS.exists():
        pytest.skip("this system does not reset the high-water mark of a process")
    kept = np.ones(4_000_000)
    peak = memory.peak_bytes(lambda: (np.ones(10_000_000), np.ones(10_000_000)))
    assert kept.any() and 155e6 < peak < 200e6  # two arrays of 80 MB, and a little of everything else
    peak, reason = memory.peak_in_child("loss", loss.OURS, 64, 64)
    assert not reason and peak < 2**28
    peak, reason = memory.peak_in_child("loss", "nobody", 64, 64)
    assert peak is None and "nobody" in reason


def test_a_thread_handles_signals_where_it_did_before_another_stack_was_laid_under_it():
    """As OpenVINO lays one under each model that it compiles."""
    if sys.platform != "linux":
        pytest.skip("only Linux's stack_t is known here")
    before, other = signals.signal_stack(), ctypes.create_string_buffer(1 << 17)
    with signals.own_signal_stack():
        laid = signals.SignalStack(ctypes.addressof(other), 0, len(other))
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(laid), None) == 0
        assert signals.signal_stack().pointer == ctypes.addressof(other)
    after = signals.signal_stack()
    assert (after.pointer, after.flags, after.size) == (before.pointer, before.flags, before.size)


# Suites


@pytest.mark.parametrize("name", MODULES)
def test_every_suite_has_help(name, capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    with pytest.raises(SystemExit) as stop:
        MODULES[name].SUITE.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "--quick" in text and "--data-dir" in text and f"benchmarks.{name}" in text


def test_the_registry_names_every_suite():
    assert set(run.SUITES) == set(MODULES) and all(MODULES[name].SUITE.name == name for name in run.SUITES)


TINY = {
    "loss": lambda settings: loss.measure_loss(settings, loss.Sizes(cases=((8, 16),), memory=(), published_up_to=8)),
    "augment": lambda settings: augment.measure_augment(settings, (augment.Size(32, 32, 8, worker_batch=4),)),
    "encode": lambda settings: encode.measure_encode(settings, (encode.Case("resnet8", 32, 2),)),
    "evaluate": lambda settings: evaluate.measure_evaluate(settings, (evaluate.Size(20, 2_000, 5),)),
    "search": lambda settings: search.measure_search(settings, search.Size(2_000, 40, 0)),
    "multi_index": lambda settings: multi_index.measure_multi_index(
        settings, multi_index.Size(3_000, (multi_index.Kind(5, 0.05), multi_index.Kind()), k=(3,), together=40, alone=2)),
    "latency": lambda settings: latency.measure_latency(settings, [latency.random_case("student", "resnet8")], codes=1_000),
    "train_step": lambda settings: train_step.measure_train_step(
        settings, tuple(dataclasses.replace(case, steps=1) for case in train_step.FULL)),
    "whole_step": lambda settings: whole_step.measure_whole_step(settings, (whole_step.Case("resnet8", 32, 4, 2),)),
    "end_to_end": lambda settings: end_to_end.measure_end_to_end(settings, steps=1, torch_steps=1, images=4, queries=2),
}


@pytest.mark.parametrize("name", TINY)
def test_a_suite_records_its_rows_and_draws_them(name, settings, without_compiling, monkeypatch, capsys):
    for module in (training, train_step, end_to_end):
        for name_of, smaller in {"TEACHER": "vit_lite_4_8", "STUDENT": "resnet8", "BATCH": 8, "VIEWS": 2, "CLUSTERS": 2}.items():
            if hasattr(module, name_of):
                monkeypatch.setattr(module, name_of, smaller)
    monkeypatch.setattr("benchmarks.timing.SAMPLE_SECONDS", 0.0)
    Suite(name, "", TINY[name]).run(settings)
    recorded = json.loads(settings.path.read_text())["suites"][name]
    rows = rows_of(read_results(settings.path), name)
    assert rows and recorded["machine"]["cores"] >= 1 and recorded["duration"] > 0
    assert all(row.seconds.median > 0 and row.rate > 0 for row in rows)
    assert any(row.contender.startswith("jax_brcd") for row in rows)
    assert any(other in row.contender.lower() for row in rows for other in ("torch", "xla"))
    plot = settings.results / "tiny" / f"{name}.png"
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert rows[0].case in capsys.readouterr().out


@pytest.mark.parametrize(("quick", "instructions", "measured"), [
    (True, ["avx2"], False), (True, ["avx2", "avx512_bf16"], True), (False, ["avx2"], True)])
def test_a_quick_run_leaves_out_emulated_bfloat16(settings, without_compiling, monkeypatch, quick, instructions, measured):
    monkeypatch.setattr("benchmarks.machine.instructions", lambda: instructions)
    monkeypatch.setattr(encode, "measure", lambda case, contenders, **settings: [each.name for each in contenders])
    monkeypatch.setattr(encode, "check_agreement", lambda contenders: None)
    found = list(TINY["encode"](dataclasses.replace(settings, quick=quick)))
    assert ("PyTorch bf16 autocast" in found) is measured
    assert any(isinstance(row, Skipped) and "no bfloat16 instructions" in row.reason for row in found) is not measured


def test_memory_is_measured_where_the_published_style_is_too_slow_to_time(settings, without_compiling, monkeypatch):
    monkeypatch.setattr(memory, "peak_in_child", lambda suite, name, *size: (len(name), ""))
    sizes = loss.Sizes(cases=((8, 16),), memory=((8, 16),), published_up_to=4)
    rows = {row.contender: row for row in loss.measure_loss(settings, sizes) if isinstance(row, Row)}
    assert rows[loss.PUBLISHED].seconds is None and rows[loss.OURS].seconds is not None
    assert {name: row.peak_bytes for name, row in rows.items()} == {name: len(name) for name in rows}
    assert "peak memory" in tables.line(rows[loss.PUBLISHED])


def test_memory_of_whole_training_is_measured_of_what_is_timed(settings, without_compiling, monkeypatch):
    monkeypatch.setattr(memory, "peak_in_child",
                        lambda suite, name, *case: (None, "no /proc") if name == whole_step.EAGER else (len(case) * len(name), ""))
    monkeypatch.setattr(whole_step, "has_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    case = whole_step.Case("resnet8", 32, 4, 2)
    found = list(whole_step.measure_whole_step(dataclasses.replace(settings, quick=False), (case,)))
    assert {row.contender: row.peak_bytes for row in found if isinstance(row, Row)} == {
        whole_step.OURS: 4 * len(whole_step.OURS), whole_step.EAGER: None}
    assert Skipped(f"peak memory of {whole_step.EAGER}, {case.name}", "no /proc") in found
    for name in (whole_step.OURS, whole_step.EAGER):
        epochs = whole_step.memory_call(name, *map(str, dataclasses.astuple(case)))
        assert len(jax.tree.leaves(epochs())[0] if name == whole_step.OURS else epochs()) == case.steps


def test_the_targets_are_rows_that_the_suites_measure():
    measured = {
        "loss": {(loss.case_name(*case), name) for case in loss.QUICK.cases for name in loss.QUICK.contenders},
        "augment": {(size.name, name) for size in augment.QUICK
                    for name in (augment.OURS, augment.WORKERS, augment.THREADS, augment.ONE)},
        "encode": {(case.name, name) for case in encode.QUICK for name in (encode.FLOAT, "PyTorch fp32, compiled")},
        "train_step": {(case.name, name) for case in train_step.FULL
                       for name in (train_step.OURS, train_step.BEST, train_step.PUBLISHED)},
        "whole_step": {(case.name, name) for case in whole_step.FULL
                       for name in (whole_step.OURS, whole_step.EAGER, whole_step.COMPILED)},
        "evaluate": {(size.name, name) for size in evaluate.QUICK for name in (evaluate.OURS, evaluate.PUBLISHED)},
        "search": {(case, name) for case in search.SIZE.cases for name in (search.OURS, search.FAISS)},
        "multi_index": {(multi_index.QUICK.case(kind, what), name) for kind in multi_index.QUICK.kinds for k in multi_index.QUICK.k
                        for what in (multi_index.one_at_a_time(k), multi_index.QUICK.at_once(f"k {k}"))
                        for name in (multi_index.OURS, multi_index.FLAT)},
        "latency": {(f"{case}, encode", name) for case in ("teacher vit_b_16", "student resnet18", "student efficientnet_b0")
                    for name in (latency.ONNX, latency.INT8, latency.EAGER, latency.COMPILED)},
        "end_to_end": {(end_to_end.CASE, name) for name in (end_to_end.OURS, end_to_end.THEIRS)},
    }
    for target in targets.TARGETS:
        assert target.ours in measured[target.suite]
        assert {(target.theirs[0], name) for name in target.theirs[1]} <= measured[target.suite]
    assert set(loss.QUICK.memory) <= set(loss.QUICK.cases)


def test_what_was_measured_before_a_failure_is_recorded(settings):
    def fails(_):
        yield a_row()
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        Suite("loss", "", fails).run(settings)
    recorded = read_results(settings.path)["suites"]["loss"]
    assert len(recorded["rows"]) == 1 and "out of luck" in recorded["skipped"][0]["reason"]


def test_an_interrupted_suite_leaves_its_earlier_rows_and_is_still_to_be_measured(settings):
    record_suite(settings.path, "loss", [a_row(), a_row(), a_row()], [], machine=MACHINE)
    results = read_results(settings.path) | {"pending": ["loss", "encode"]}
    write_json(settings.path, results)

    def interrupted(_):
        yield a_row()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Suite("loss", "", interrupted).run(settings)
    assert read_results(settings.path) == results


def test_the_whole_run_is_skipped_with_a_reason_where_its_data_is_absent(settings, tmp_path):
    assert "needs --data-dir" in end_to_end.what_is_missing(settings)
    assert "does not hold CIFAR-10" in end_to_end.what_is_missing(dataclasses.replace(settings, data_dir=tmp_path))
    (tmp_path / end_to_end.cifar10.NAMES_FILE).write_text("")
    with_data = dataclasses.replace(settings, data_dir=tmp_path, weights_dir=tmp_path)
    assert "does not hold vit_lite_7_4.safetensors" in end_to_end.what_is_missing(with_data)


# Results


def test_rows_come_back_from_json_as_they_were(tmp_path):
    rows = [a_row(items=64, unit="images", compile_seconds=3.0, peak_bytes=9, note="n", sweep=("64 bits", "images", 8)),
            Row("memory only", "ours", peak_bytes=5)]
    record_suite(tmp_path / "m.json", "loss", rows, [Skipped("a", "b")], machine=MACHINE)
    assert rows_of(read_results(tmp_path / "m.json"), "loss") == rows
    assert rows_of(read_results(tmp_path / "m.json"), "encode") == []


def test_results_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "m.json"
    record_suite(path, "loss", [a_row()], [], machine=MACHINE)
    before = path.read_bytes()
    with pytest.raises(ValueError):  # a number that JSON cannot hold
        record_suite(path, "encode", [a_row(seconds=(float("nan"),))], [], machine=MACHINE)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["m.json"]
    record_suite(path, "encode", [a_row()], [], machine=MACHINE)
    assert set(read_results(path)["suites"]) == {"loss", "encode"}


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 0}'])
def test_a_file_that_holds_no_results_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "m.json"
    path.write_text(content)
    with pytest.raises(InputError, match="move it away"):
        record_suite(path, "loss", [a_row()], [], machine=MACHINE)
    assert path.read_text() == content


def test_the_summary_shows_every_target_met_or_not_or_not_measured(tmp_path):
    path = tmp_path / "m.json"
    record_suite(path, "loss", [a_row("64 images, 64 bits", seconds=(0.001,), unit="steps"),
                                a_row("64 images, 64 bits", "PyTorch, published style", seconds=(0.02,), unit="steps")],
                 [Skipped("1,024 images", "a reason")], machine=MACHINE)
    results = record_suite(path, "augment", [a_row("32 to 32 pixels", seconds=(1.0,), items=4, unit="images"),
                                             a_row("32 to 32 pixels", "torchvision v2, workers", (1.5,), items=4,
                                                   unit="images")],
                           [], machine=MACHINE)
    verdicts = targets.verdicts(results)
    lines = tables.summary(results, verdicts).splitlines()
    assert len(verdicts) == len(targets.TARGETS) and sum(line.startswith("|") for line in lines) == len(verdicts) + 2
    assert lines[2].endswith(">= 10x | 20x (20 to 20) | 1 ms | 20 ms | yes |")
    assert ">= 2x | 1.5x (1.5 to 1.5) | 4 images/s | 2.67 images/s | **no** |" in lines[5]
    assert lines[3].endswith("not measured |") and any("a reason" in line for line in lines)
    assert "Measured on CPU, 2 cores, 8 GiB, avx2" in lines[-1]
    plots.summary_figure(verdicts).savefig(tmp_path / "figure.png")


@pytest.mark.parametrize(("seconds", "text"), [(3e-6, "3 us"), (0.0123, "12.3 ms"), (90.0, "90 s"), (600.0, "10 min"),
                                               (9000.0, "2.5 h")])
def test_durations_are_readable(seconds, text):
    assert tables.duration(seconds) == text


# The command


def test_a_run_measures_all_suites_and_goes_on_where_it_was_interrupted(settings, monkeypatch, capsys):
    measured = []

    def run_suite(name, settings):
        if len(measured) == 2 and name not in measured:
            measured.append("interrupted")
            raise KeyboardInterrupt
        measured.append(name)
        record_suite(settings.path, name, [a_row()], [], machine=MACHINE)
        return True

    monkeypatch.setattr(run, "run_suite", run_suite)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    command = ["--quick", "--machine", "tiny", "--results", str(settings.results), "--samples", "1"]
    with pytest.raises(KeyboardInterrupt):
        run.main(command)
    assert measured == [*run.SUITES[:2], "interrupted"]
    run.main(command)
    assert measured[3:] == list(run.SUITES[2:])
    assert settings.path.with_suffix(".md").read_text() in capsys.readouterr().out
    assert settings.path.with_suffix(".png").exists()
    run.main(command)
    assert measured[-len(run.SUITES):] == list(run.SUITES)
    run.main([*command, "--suite", "encode"])
    assert measured[-2:] == [run.SUITES[-1], "encode"]


def test_a_suite_that_fails_leaves_the_others_and_ends_in_one_line(settings, monkeypatch, capsys):
    def run_suite(name, settings):
        record_suite(settings.path, name, [a_row()], [], machine=MACHINE)
        return name != "encode"

    monkeypatch.setattr(run, "run_suite", run_suite)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    with pytest.raises(SystemExit) as stop:
        run_command(run.main, ["--machine", "tiny", "--results", str(settings.results)])
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: encode: failed")
    assert set(read_results(settings.path)["suites"]) == set(run.SUITES)


def test_settings_reach_the_suites_as_a_command_line(settings):
    words = run.arguments(settings)
    assert words[words.index("--machine") + 1] == "tiny" and "--quick" in words and "--data-dir" not in words
    assert words[words.index("--results") + 1] == str(settings.results)


def test_an_unknown_suite_is_answered_with_the_nearest():
    command = [sys.executable, "-m", "benchmarks.run", "--suite", "encod"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 2 and answer.stderr.startswith("error: unknown suite 'encod': did you mean 'encode'?")


# Jobs


def test_jobs_share_the_cores_evenly():
    assert [jobs.share_of([3, 4, 5, 6], place, 2) for place in range(2)] == [{3, 4}, {5, 6}]
    assert [jobs.share_of([0, 1, 2], place, 2) for place in range(2)] == [{0, 1}, {2, 0}]
    assert jobs.share_of([7], 2, 3) == {7}


def test_what_jobs_give_comes_as_they_end():
    assert sorted(jobs.as_they_end(2, divmod, [(7, 4), (9, 5)])) == [(1, 3), (1, 4)]
    with pytest.raises(ZeroDivisionError):
        list(jobs.as_they_end(1, divmod, [(1, 0)]))


LEFT = """
import time
from benchmarks.jobs import processes
if __name__ == "__main__":
    with processes(2) as pool:
        print(*pool.map(abs, [-1, -2]), *pool._processes, flush=True)
        time.sleep(60)
"""


def test_jobs_end_when_the_one_that_began_them_is_killed(tmp_path, started):
    script = tmp_path / "left.py"
    script.write_text(LEFT)
    root = pathlib.Path(__file__).parents[1]
    begun = started([sys.executable, str(script)], stdout=subprocess.PIPE, text=True,
                    env={**os.environ, "PYTHONPATH": str(root)})
    one, two, *workers = begun.stdout.readline().split()
    assert (one, two) == ("1", "2") and workers
    begun.kill()
    begun.wait()
    await_end(workers)
