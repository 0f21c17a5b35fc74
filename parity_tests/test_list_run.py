"""A run on list files at 224 pixels, from JPEG files to the report, killed in the middle of an epoch."""

import json
import signal
import subprocess
import sys
import time

import pytest
from image_trees import write_lists
from toy_runs import distilling, environment_of_toys

pytestmark = pytest.mark.long

# Toy backbones of 224 pixels, so that a process takes seconds
OPTIONS = ["--teacher", "large_toy", "--teacher-weights", "random", "--student", "large_toy", "--student-weights", "random",
           "--bits", "16", "--clusters", "3", "--k", "5", "--fresh-views", "--resident-mib", "0", "--teacher-epochs", "1",
           "--epochs", "2", "--min-epochs", "0", "--validation-interval", "1", "--batch-size", "3", "--checkpoint-seconds", "0"]
TRAIN, DATABASE, TEST = 12, 16, 8
STEPS = 4  # of an epoch
SECONDS = 300


def test_a_run_at_224_killed_in_the_middle_of_an_epoch_ends_like_an_undisturbed_one(tmp_path, started):
    """Every step is saved here; the killed run goes on after the last saved step of its epoch, in the published style: new
    views every epoch, and images that travel a step at a time."""
    tree = write_lists(tmp_path / "tree", TRAIN, DATABASE, TEST, width=300, height=240)
    environment = environment_of_toys()

    def command(name):
        return [sys.executable, *distilling(), "--dataset", "list", "--data-dir", str(tree), *OPTIONS, "--out",
                str(tmp_path / name), "--cache-dir", str(tmp_path / f"cache-{name}")]

    def finish(name):
        done = subprocess.run(command(name), env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "The frozen student encodes new views each epoch; --views " in done.stdout
        history = [json.loads(line) | {"seconds": 0} for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        return json.loads((tmp_path / name / "metrics.json").read_text()) | {"costs": None}, history

    expected, expected_history = finish("undisturbed")
    assert expected["protocol"]["split"] == "lists, test list halved" and expected["protocol"]["training"] == TRAIN
    assert 0 < expected["student"]["symmetric"]["map"] <= 1

    running = started(command("killed"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stages, deadline = tmp_path / "cache-killed" / "stages", time.monotonic() + SECONDS

    def last():
        return max((int(path.name) for path in stages.glob("student-*/checkpoints/*") if path.name.isdigit()), default=0)

    while last() <= STEPS:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert STEPS < last() < 2 * STEPS, "killed inside the second epoch"

    found, history = finish("killed")
    assert found == expected and history == expected_history
