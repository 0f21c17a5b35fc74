"""The benchmark of scale: its images and lists, the readings of memory, and what its table and figure say."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import scale
from jax_brcd.data import load_dataset
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import read_json, write_json


def test_images_and_lists_are_those_of_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "HELD", 4)
    monkeypatch.setattr(scale, "A_FOLDER", 8)
    scale._write_images(tmp_path, 0, 18)
    scale._write_images(tmp_path, 8, 18)
    scale._write_images(tmp_path, 16, 18)
    monkeypatch.setattr(scale, "_write_images", lambda *pieces: None)
    monkeypatch.setattr(scale, "processes", _Here)
    scale.generate(tmp_path, 10)
    data = load_dataset("list", data_dir=tmp_path, cache_dir=tmp_path / "cache", label_format="class-numbers", square_side=40)
    assert [len(part) for part in (data.train, data.database)] == [10, 4] and len(data.test) + len(data.validation) == 4
    np.testing.assert_array_equal(data.train.labels.argmax(axis=1), np.arange(10))
    with Image.open(tmp_path / scale._name(3)) as image:
        assert image.size == (40, 40) and np.asarray(image).std() > 20


class _Here:
    """In place of a pool, whose processes would not know what was put in place of other things."""

    def __init__(self, jobs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    map = staticmethod(map)


def test_the_memory_of_a_process_and_of_those_it_started_is_read():
    code = ("import subprocess, sys, time; block = bytearray(64 * 2**20); block[::4096] = b'x' * len(block[::4096]);"
            "print('ready', flush=True); time.sleep(60)")
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stdout.readline() == "ready\n"
        (reading,) = scale.readings([process], 0.0)
        os.killpg(process.pid, 9)
    assert 64 < reading.own < 200 and reading.process == 0 and reading.mapped > 1
    assert list(scale.readings([process], 0.0)) == []


def test_the_table_and_the_figure_say_what_was_read():
    events = {"started": 0.0, "killed": 30.0, "other ended": 31.0, "started again": 31.5, "ended": 90.0}
    measured = {images: {"events": events, "went_on": ["after 0 epochs and 34 steps"],
                         "readings": [(second, process, 100.0 + process + second, 50.0) for second in (1.0, 20.0, 40.0, 80.0)
                                      for process in (0, 1)]} for images in ("1000", "4000")}
    assert scale.summary(measured).splitlines()[-1] == "| 4,000 | 90 | 30 s | 1.0 s | after 0 epochs and 34 steps | 181 MiB |"
    axis, = scale.figure(measured).axes
    labels = [line.get_label() for line in axis.get_lines()]
    assert "4,000 images, process 1" in labels and "1,000 images, process 0" in labels


def test_sizes_of_another_day_go_on_and_those_of_another_machine_are_not_mixed(tmp_path, monkeypatch):
    run = {"events": {"started": 0.0, "killed": 30.0, "other ended": 31.0, "started again": 31.5, "ended": 90.0}, "went_on": [],
           "readings": [(second, process, 100.0, 50.0) for second in (1.0, 40.0) for process in (0, 1)]}
    done = []
    monkeypatch.setattr(scale, "generate", lambda folder, images: done.append(images))
    monkeypatch.setattr(scale, "measure", lambda folder, data: run)
    words = ["--out", str(tmp_path), "--runs", str(tmp_path / "runs"), "--images"]
    scale.main([*words, "10"])
    told = read_json(tmp_path / "scale.json")
    write_json(tmp_path / "scale.json", {**told, "machine": {**told["machine"], "date": "2020-01-01"}})
    scale.main([*words, "10", "20"])
    assert done == [10, 20] and read_json(tmp_path / "scale.json")["runs"].keys() == {"10", "20"}
    write_json(tmp_path / "scale.json", {**told, "machine": {**told["machine"], "cpu": "another"}})
    scale.main([*words, "10"])  # of which nothing is to be measured
    with pytest.raises(InputError, match="scale.json: of another machine or command"):
        scale.main([*words, "10", "30"])
    assert done == [10, 20]
