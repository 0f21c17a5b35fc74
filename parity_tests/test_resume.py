"""A run that is killed at any moment goes on and ends with the numbers of an undisturbed one."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from toy_runs import distilling, environment_of_toys

pytestmark = pytest.mark.long

# Toy backbones, so that a process takes seconds
OPTIONS = ["--teacher", "toy", "--student", "small_toy", "--bits", "16", "--views", "2", "--pretraining-epochs", "2",
           "--teacher-epochs", "2", "--epochs", "3", "--min-epochs", "0", "--validation-interval", "1", "--batch-size", "256",
           "--checkpoint-seconds", "0"]
SECONDS = 300


@pytest.fixture(scope="module")
def environment():
    return environment_of_toys()


def command(folder: pathlib.Path) -> list[str]:
    return [sys.executable, *distilling(plots=True), *OPTIONS, "--out", str(folder / "run"), "--cache-dir",
            str(folder / "cache")]


def finish(folder, environment):
    done = subprocess.run(command(folder), env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    return done.stdout, metrics


def scores(metrics):
    """All but how fast the machine was."""
    return {name: value for name, value in metrics.items() if name != "costs"}


def newest(folder, moment: str) -> int:
    """The highest number in the names that match below the folder, of which each stays for a moment; without any, 0."""
    numbers = (re.search(r"\d+$", path.stem) for path in folder.glob(moment) if "tmp" not in path.name)
    return max((1 + int(number[0]) for number in numbers if number), default=0)


def kill_when(started, folder, environment, moment: str) -> None:
    """Starts the command and kills it outright as soon as a newer path below the folder matches `moment`."""
    before, deadline = newest(folder, moment), time.monotonic() + SECONDS
    running = started(command(folder), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while newest(folder, moment) <= before:
        assert running.poll() is None, f"ended before {moment}"
        assert time.monotonic() < deadline, f"never came to {moment}"
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()


def test_a_run_killed_in_every_stage_ends_like_an_undisturbed_one(tmp_path, environment, started):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    printed, expected = finish(undisturbed, environment)
    assert "teacher" in printed and "student, asymmetric" in printed and "report.html" in printed
    assert "The frozen student" not in printed  # this one learns whole
    for moment in ("cache/stages/pretraining-*/checkpoints/*", "cache/features/*/view_*.npy",
                   "cache/stages/teacher-*/checkpoints/*", "cache/stages/student-*/checkpoints/*",
                   "cache/stages/student-*/checkpoints/*"):
        kill_when(started, disturbed, environment, moment)
        assert not (disturbed / "run" / "metrics.json").exists()
    _, found = finish(disturbed, environment)
    assert scores(found) == scores(expected)
    for line, twin in zip(*((folder / "run" / "history.jsonl").read_text().splitlines()
                            for folder in (undisturbed, disturbed)), strict=True):
        record, other = json.loads(line), json.loads(twin)
        assert record | {"seconds": 0} == other | {"seconds": 0}

    names = {path.name for path in (disturbed / "run").iterdir()}
    assert {"config.json", "metrics.json", "history.jsonl", "codes.npz", "report.html", "teacher.safetensors",
            "student_symmetric.safetensors", "student_asymmetric.safetensors", "plots", "teacher", "student_symmetric",
            "student_asymmetric"} == names

    before = (disturbed / "run" / "metrics.json").stat().st_mtime_ns
    printed, _ = finish(disturbed, environment)
    assert "already there" in printed and (disturbed / "run" / "metrics.json").stat().st_mtime_ns == before
