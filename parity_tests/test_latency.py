"""The latency suite's own parts: clocks of other programs, the mAP of each program's bits, and what keeps a browser away."""

import dataclasses

import numpy as np
from encoders import random_encoder

from benchmarks import browser, latency
from benchmarks.suite import Settings
from benchmarks.timing import Contender, interleaved
from jax_brcd.data import ImageDataset, Images
from jax_brcd.retrieval import HammingIndex, PackedCodes


def test_a_contender_with_a_clock_of_its_own_is_timed_by_it():
    told = iter([9.0, 0.5, 1.0, 2.0, 3.0, 100.0, 4.0, 5.0])
    contender = Contender("page", lambda: next(told), own_clock=True)
    (taken,) = interleaved([contender], samples=2, sample_seconds=1.0, pause=lambda _: None).values()
    assert (taken.first, taken.calls) == (9.0, 2)
    assert taken.samples == (2.5, 4.5), "the mean of two calls, after one that is not counted"


def test_a_query_in_a_page_takes_the_pages_seconds_and_those_of_the_search():
    class Page:
        seconds = 1000.0

    codes = PackedCodes(np.arange(16, dtype=np.uint8)[:, None], 8)
    program = latency.Program("a", lambda file: codes.packed[:1], codes=None, encode=None)
    assert 0 < program.query(b"", HammingIndex(codes)) < 10
    assert 1000 < dataclasses.replace(program, page=Page()).query(b"", HammingIndex(codes)) < 1010


def test_each_program_has_the_map_of_its_own_bits(monkeypatch):
    """One keeps the first channel's highest bits, where the classes lie, and the other the last, which is noise."""
    monkeypatch.setattr(latency, "DATABASE", 60)
    draw = np.random.default_rng(0)

    def part(count):
        labels = draw.integers(2, size=count)
        images = draw.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        images[:, 0, 0, 0] = labels * 255
        return Images(images, np.eye(2, dtype=np.uint8)[labels])

    dataset = ImageDataset("made", "drawn", part(4), part(80), part(4), part(20), ("a", "b"), False, default_k=20)
    programs = [latency.Program(name, None, lambda images, channel=channel: images[:, 0, 0, channel : channel + 1], None)
                for name, channel in (("good", 0), ("bad", 2))]
    found = latency.measured_maps(latency.Case("a", random_encoder(8), dataset), programs)
    assert found["good"] == "mAP@15 1.0000 of 20 queries in 60 codes"
    assert 0.3 < float(found["bad"].split()[1]) < 0.8
    assert latency.measured_maps(latency.Case("a", random_encoder(8)), programs) == {}


def test_a_browser_that_cannot_be_measured_is_told_why(tmp_path, monkeypatch):
    monkeypatch.setattr(browser.machine, "installed", lambda name: True)
    monkeypatch.setattr(browser.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "chromium" else None)
    assert "needs --browser-runtime" in browser.why_not(Settings().browser_runtime)
    for name in browser.RUNTIME[1:]:
        tmp_path.joinpath(name).touch()
    assert browser.why_not(tmp_path) == f"{tmp_path} does not hold {browser.RUNTIME[0]}"
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / browser.RUNTIME[0]).touch()
    assert browser.why_not(tmp_path) is None
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    assert browser.why_not(tmp_path) == "there is no program chromium"
