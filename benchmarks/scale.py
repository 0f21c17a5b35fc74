"""python -m benchmarks.scale: a student trained whole on a long list of JPEGs, by two processes of which one is killed.

The recipe of docs/training.md in small: images travel with their steps, a checkpoint is written within the epoch, and after the
kill both commands are given again and go on from it. The memory of both processes is read all along.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import machine
from benchmarks.jobs import processes
from benchmarks.quality_report import DOTS_PER_INCH
from jax_brcd.report.plots import BLUE, ORANGE, VERMILION
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import atomic_path, read_json, write_json
from jax_brcd.runtime.workers import cores
from jax_brcd.settings.command_line import OneLineParser, run_command

SIDE, CLASSES, A_FOLDER, HELD = 40, 10, 1000, 1000  # pixels; classes; images a folder; images of database and test each
EVERY = 0.5  # seconds between readings
LATER = 20.0  # seconds from the first checkpoint to the kill
PATIENCE = 120.0  # seconds that the other process may take to end once its partner is gone
RECIPE = ["--preset", "cifar10-32-whole", "--dataset", "list", "--train-images", "published", "--teacher", "vit_lite_4_8",
          "--teacher-weights", "random", "--teacher-neighbours", "0", "--student", "resnet8", "--student-weights", "random",
          "--teacher-size", "32", "--student-size", "32", "--epochs", "2", "--validation-interval", "1", "--resident-mib", "0",
          "--checkpoint-seconds", "5", "--label-format", "class-numbers", "--k", "100"]


@dataclasses.dataclass(frozen=True)
class Reading:
    """The memory of one process, those that it started included, at a moment: MiB of its own, and of files that are mapped, which
    the system may take back and which each process counts again."""

    second: float
    process: int
    own: float
    mapped: float


def generate(folder: pathlib.Path, count: int) -> None:
    """Writes `count` training images, and a database and test queries, with their lists; nothing where they are there."""
    if (folder / "test.txt").exists():
        return
    everything = count + 2 * HELD
    with processes(cores()) as pool:
        list(pool.map(_write_images, [folder] * (everything // A_FOLDER + 1), range(0, everything + 1, A_FOLDER),
                      [everything] * (everything // A_FOLDER + 1)))
    parts = {"train": range(count), "database": range(count, count + HELD), "test": range(count + HELD, everything)}
    for name, numbers in parts.items():  # the test list last, which says that all is there
        with atomic_path(folder / f"{name}.txt") as temporary:
            temporary.write_text("".join(f"{_name(number)} {number % CLASSES}\n" for number in numbers))


def _name(number: int) -> str:
    return f"images/{number // A_FOLDER:04d}/{number:07d}.jpg"


def _write_images(folder: pathlib.Path, first: int, everything: int) -> None:
    """Images of a few waves, whose directions are their class's, under noise."""
    from PIL import Image

    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    for number in range(first, min(first + A_FOLDER, everything)):
        draw, angle = np.random.default_rng(number), np.pi * (number % CLASSES) / CLASSES
        phases, waves = draw.uniform(0, 2 * np.pi, 3), draw.uniform(2, 4, 3)
        along = np.cos(angle) * rows + np.sin(angle) * columns
        pixels = 128 + 80 * np.sin(2 * np.pi * waves * along[..., None] + phases) + draw.normal(0, 20, (SIDE, SIDE, 3))
        path = folder / _name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=85)


def started(folder: pathlib.Path, data: pathlib.Path, port: int) -> list[subprocess.Popen]:
    """The two processes of the run, each with its log."""
    processes = []
    for number in range(2):
        command = [sys.executable, "-m", "jax_brcd.distill", *RECIPE, "--data-dir", str(data), "--cache-dir", str(folder / "cache"),
                   "--out", str(folder / "run"), "--processes", "2", "--process-id", str(number),
                   "--coordinator", f"127.0.0.1:{port}"]
        with open(folder / f"process_{number}.log", "a") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"}))
    return processes


def readings(processes: list[subprocess.Popen], began: float) -> Iterator[Reading]:
    """What the processes hold now, those that they started included."""
    children: dict[int, list[int]] = {}
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            words = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(words[1]), []).append(int(status.parent.name))
    for number, process in enumerate(processes):
        own = mapped = 0
        waiting = [process.pid]
        while waiting:
            pid = waiting.pop()
            waiting += children.get(pid, [])
            try:
                told = dict(re.findall(r"^(Rss\w+):\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
            except OSError:
                continue
            own += int(told.get("RssAnon", 0))
            mapped += int(told.get("RssFile", 0)) + int(told.get("RssShmem", 0))
        if own:
            yield Reading(time.monotonic() - began, number, own / 1024, mapped / 1024)


def is_within_the_epoch(folder: pathlib.Path) -> bool:
    """Whether the student's stage has a finished checkpoint, which the first epoch of so many images has long before its end."""
    found = folder.glob("cache/stages/student-*/checkpoints/*")
    return any(path.is_dir() and path.name.isdigit() for path in found)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def measure(folder: pathlib.Path, data: pathlib.Path) -> dict:
    """Runs, kills the second process within the first epoch, and runs again to the end; what was read and when."""
    for name in ("run", "cache"):  # of an earlier attempt, whose checkpoints would be taken for this one's
        shutil.rmtree(folder / name, ignore_errors=True)
    for log in folder.glob("process_*.log"):
        log.unlink()
    began, taken = time.monotonic(), []
    processes = started(folder, data, free_port())
    events = {"started": 0.0}

    def watch() -> None:
        taken.extend(readings(processes, began))
        time.sleep(EVERY)

    try:
        reached: float | None = None  # when the first checkpoint was there
        while reached is None or time.monotonic() < reached + LATER:
            watch()
            if reached is None and is_within_the_epoch(folder):
                reached = time.monotonic()
            if any(process.poll() is not None for process in processes):
                raise RuntimeError(f"a process ended before it was killed; see {folder}/process_0.log")
        processes[1].send_signal(signal.SIGKILL)
        events["killed"] = time.monotonic() - began
        while processes[0].poll() is None and time.monotonic() - began < events["killed"] + PATIENCE:
            watch()
        events["other ended"] = time.monotonic() - began if processes[0].poll() is not None else None
        for process in processes:
            process.kill()
            process.wait()
        events["started again"] = time.monotonic() - began
        processes = started(folder, data, free_port())
        while any(process.poll() is None for process in processes):
            watch()
        events["ended"] = time.monotonic() - began
        if any(process.returncode for process in processes):
            raise RuntimeError(f"ended with {[process.returncode for process in processes]}; see {folder}/process_0.log")
    finally:
        for process in processes:
            process.kill()
    log = (folder / "process_0.log").read_text()
    gone_on = re.findall(r"^Student: goes on .*?(after \d+ epochs(?: and \d+ steps)?)", log, re.MULTILINE)
    rounded = [[round(value, 1) for value in dataclasses.astuple(one)] for one in taken]
    return {"events": events, "went_on": gone_on, "readings": rounded}


def figure(measured: dict) -> Figure:
    """Memory of both processes over time, and what happened when."""
    drawn = Figure(figsize=(9, 4), layout="constrained")
    axis = drawn.subplots()
    for images, runs in measured.items():
        for number, color in enumerate((BLUE, ORANGE)):
            points = np.array([[second, own] for second, process, own, _ in runs["readings"] if process == number])
            again = runs["events"]["started again"]
            for part in (points[points[:, 0] < again], points[points[:, 0] >= again]):
                axis.plot(*part.T, color=color, linestyle="-" if images == max(measured, key=int) else ":",
                          label=f"{int(images):,} images, process {number}" if part[0, 0] < again else None)
    events = measured[max(measured, key=int)]["events"]
    axis.axvline(events["killed"], color=VERMILION, linestyle="--", linewidth=0.8)
    again = events["started again"] - events["killed"]
    axis.text(events["killed"], axis.get_ylim()[1], f" process 1 killed, both started again {again:.1f} s later", color=VERMILION,
              fontsize=8, va="top")
    axis.set(xlabel="seconds", ylabel="MiB of a process's own", ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return drawn


def summary(measured: dict) -> str:
    """A line for each number of images."""
    lines = ["| images | seconds in all | killed after | the other ended after | went on | largest memory of a process |",
             "|---:|---:|---:|---:|---|---:|"]
    for images, runs in measured.items():
        events = runs["events"]
        other = "never" if events["other ended"] is None else f"{events['other ended'] - events['killed']:.1f} s"
        lines.append(f"| {int(images):,} | {events['ended']:.0f} | {events['killed']:.0f} s | {other} | "
                     f"{', '.join(runs['went_on'])} | {max(one[2] for one in runs['readings']):,.0f} MiB |")
    return "\n".join(lines) + "\n"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(prog="python -m benchmarks.scale", description=__doc__, allow_abbrev=False)
    parser.add_argument("--images", nargs="+", type=int, default=[25_000, 100_000],
                        help="training images, a run each (default: 25000 100000)")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/scale"),
                        help="folder of images and runs (default: %(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results/scale"),
                        help="folder of the JSON, the table and the figure (default: %(default)s)")
    return parser.parse_args(argv)


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two files of results are of one command on one machine, on whatever days."""
    def told(results: dict[str, Any]) -> tuple[Any, Any]:
        return {**results["machine"], "date": ""}, results["command"]

    return told(one) == told(other)


def main(argv: list[str] | None = None) -> None:
    """Measures what has not been measured and writes the results."""
    options = parse(argv)
    results = options.out / "scale.json"
    of_all = {"machine": machine.description(), "command": ["python", "-m", "jax_brcd.distill", *RECIPE]}
    known = read_json(results) if results.exists() else {**of_all, "runs": {}}
    measured = known["runs"]
    if {str(images) for images in options.images} - measured.keys() and not _alike(known, of_all):
        raise InputError(f"{results}: of another machine or command, which it names once for all runs; give another --out")
    for images in options.images:
        folder = options.runs / str(images)
        if str(images) in measured:
            continue
        generate(folder / "data", images)
        measured[str(images)] = measure(folder, folder / "data")
        write_json(results, {**of_all, "runs": measured})
    with atomic_path(options.out / "scale.md") as temporary:
        temporary.write_text(summary(measured))
    with atomic_path(options.out / "scale.png") as temporary:
        figure(measured).savefig(temporary, format="png", dpi=DOTS_PER_INCH)
    print(summary(measured))


if __name__ == "__main__":
    run_command(main)
