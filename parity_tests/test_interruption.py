"""Ctrl-C: it ends a command at once or at the next step of what it does, wherever it lands, and leaves callers' handlers alone."""

import gc
import signal
import subprocess
import sys
import threading
import weakref

import jax
import numpy as np
import optax
import pytest
from jobs import toy_stage

from jax_brcd.clusters.choice import choose_clusters
from jax_brcd.data.decoding import decode_all
from jax_brcd.data.download import download
from jax_brcd.retrieval import cosine_neighbours, hamming_top_k
from jax_brcd.runtime import interruption
from jax_brcd.runtime.digests import digest
from jax_brcd.runtime.interruption import check, heard
from jax_brcd.settings.command_line import run_command
from jax_brcd.stages.command import session
from jax_brcd.stages.configuration import create_config
from jax_brcd.teachers.objectives.itq import iterative_quantisation
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.loop import TrainState, fit, start, stepped_epoch
from jax_brcd.views.batches import epoch_batches
from jax_brcd.views.encoding import streamed


@pytest.fixture(autouse=True)
def usual_handler():
    """Python's own, as in a program that begins."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctrl_c(*_):
    signal.raise_signal(signal.SIGINT)


class Thing:
    """Something that may be referred to weakly."""


class Dying(Thing):
    """Interrupted as it goes."""

    def __del__(self):
        ctrl_c()


def in_the_garbage_collector():
    gc.callbacks.append(ctrl_c)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(ctrl_c)


def in_a_weak_references_callback():
    thing = Thing()
    kept = weakref.ref(thing, ctrl_c)
    del thing
    assert kept() is None


@pytest.mark.parametrize("swallow", [in_the_garbage_collector, in_a_weak_references_callback, Dying])
def test_what_python_swallows_is_raised_at_the_next_step(swallow, capsys):
    with pytest.raises(KeyboardInterrupt), heard():
        swallow()  # and nothing comes of it
        assert capsys.readouterr().err == ""
        check()
    check()  # it was for that block alone
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_each_ctrl_c_is_raised_at_once():
    with heard():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                ctrl_c()


def test_what_a_library_makes_of_an_interruption_is_one_all_the_same():
    with pytest.raises(KeyboardInterrupt), heard():
        try:
            ctrl_c()
        except KeyboardInterrupt:
            raise RuntimeError("a worker has gone") from None
    with pytest.raises(RuntimeError, match="on its own"), heard():
        raise RuntimeError("on its own")


def test_a_callers_handler_stays(capsys):
    heard_by_caller = []
    for handler in (lambda *_: heard_by_caller.append(1), signal.SIG_IGN):
        signal.signal(signal.SIGINT, handler)
        with heard():
            assert signal.getsignal(signal.SIGINT) is handler
            ctrl_c()
            check()
        with pytest.raises(SystemExit) as stop:
            run_command(lambda argv: ctrl_c())
        assert stop.value.code == 0 and signal.getsignal(signal.SIGINT) is handler
    assert heard_by_caller == [1, 1] and capsys.readouterr().err == ""


def test_threads_hear_nothing():
    seen = []

    def work():
        with heard():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_commands_called_from_python_hear_it_too():
    with pytest.raises(KeyboardInterrupt), session(create_config(compile_cache=False)):
        Dying()
        check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


COMMAND = """
import gc, os, signal
from jax_brcd.runtime import interruption
from jax_brcd.settings.command_line import run_command

def main(argv):
    for step in range(9):
        interruption.check()
        print(step)
        if step == 2:
            gc.callbacks.append(lambda phase, _: os.kill(os.getpid(), signal.SIGINT))
            gc.collect()
            gc.callbacks.pop()

run_command(main)
"""


def test_a_command_whose_ctrl_c_was_swallowed_ends_in_one_line():
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 130 and done.stdout.split() == ["0", "1", "2"]
    assert done.stderr == "error: interrupted; the same command goes on from the last checkpoint\n"


WORKER = """
import multiprocessing, os, signal, time
from jax_brcd.runtime.workers import end_with_parent

def work():
    end_with_parent()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

worker = multiprocessing.get_context("fork").Process(target=work)
worker.start()
worker.join()
print(worker.exitcode)
"""


def test_a_worker_that_decodes_ends_at_once_without_a_word():
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "1\n" and done.stderr == ""


IMAGES = np.zeros((8, 2, 2, 3), np.uint8)
CODES = np.where(np.random.default_rng(0).normal(size=(8, 16)) > 0, np.float32(1), np.float32(-1))


def a_stage(folder):
    toy = toy_stage(name="toy", loss=lambda *_: pytest.fail("a step was taken"), n_images=8, batch_size=4, epochs=1, seed=0,
                    optimizer=optax.sgd(0.1), constants={}, kept_views=None)
    fit(toy, start(toy, {"x": np.zeros(2, np.float32)}, {}), Checkpoints(folder / "stage"))


def steps(folder):
    batches = epoch_batches(8, 4, epoch=0, seed=0, views=None)
    stepped_epoch(None, None, TrainState({}, {}, ()), {}, batches, jax.random.key(0))


def a_download(folder):
    (folder / "source").write_text("text")
    download((folder / "source").as_uri(), folder / "there", algorithm="md5", checksum="")


@pytest.mark.parametrize("work", [
    a_stage, steps, a_download,
    lambda folder: list(streamed(lambda batch: pytest.fail("a batch was encoded"), IMAGES, description="images")),
    lambda folder: choose_clusters(CODES, "auto", cluster_range=(2, 4), seed=0),
    lambda folder: hamming_top_k(CODES, CODES, 2),
    lambda folder: cosine_neighbours(CODES, 2),
    lambda folder: digest(IMAGES),
    lambda folder: iterative_quantisation(CODES, np.eye(16), 5),
    lambda folder: list(decode_all([str(folder / "absent.png")], workers=0)),
], ids=["stage", "steps", "download", "encoding", "clusters", "search", "neighbours", "digest", "itq", "decoding"])
def test_long_work_ends_at_its_next_step(work, tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "_asked", True)
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path)
    assert not (tmp_path / "there").exists()
