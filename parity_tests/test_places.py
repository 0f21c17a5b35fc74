"""Where things are written: what cannot lie there is refused in one line, errors say which file, killed writers leave nothing."""

import errno
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from encoders import random_encoder

import jax_brcd
from jax_brcd import distill, evaluate, teacher
from jax_brcd.retrieval.packing import PackedCodes
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, atomic_path, lock_beside, locked, make_folder, replacing_folder, write_json
from jax_brcd.settings.command_line import run_command
from jax_brcd.stages.folder import StageFolder
from jax_brcd.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def encoder():
    return random_encoder(8)


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """The working directory, with a file, a folder and a link that leads nowhere in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("absent")
    yield tmp_path
    assert (tmp_path / "file").read_text() == "mine" and os.listdir(tmp_path / "folder") == []
    assert os.readlink(tmp_path / "link") == "absent" and not (tmp_path / "absent").exists()


LONG = "x" * 250


@pytest.mark.parametrize(("place", "message"), [
    ("link", "link: is a link to absent, which is not there; make that folder, or name another"),
    ("link/deep", "link is a link to absent, which is not there; make that folder, or name another"),
    ("file", "file: is a file; name a folder"),
    ("file/deep", "file is a file; name a folder"),
    ("a\0b", "'a\\x00b': holds a NUL character, which no file's name does; mend the path"),
])
def test_no_encoder_is_saved_where_none_can_lie(encoder, odd, place, message):
    with pytest.raises(InputError) as refusal:
        encoder.save(place)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("place", [".", "", "../folder", "../up"])
def test_the_working_directory_is_not_replaced(encoder, odd, monkeypatch, place):
    (odd / "up").symlink_to("folder")
    monkeypatch.chdir(odd / "folder")
    with pytest.raises(InputError, match="the working directory lies there and would be lost; name a folder in it, or another"):
        encoder.save(place)
    assert os.listdir() == []


@pytest.mark.parametrize(("place", "message"), [
    ("folder", "folder: is a folder; name a file"), ("link", "link: is a link to absent, which is not there; name another file"),
    ("file/deep", "file: is a file; name a folder"), ("a\0b", "holds a NUL character"),
])
def test_no_file_is_written_where_none_can_lie(odd, place, message):
    codes = PackedCodes.of(np.ones((1, 8), np.float32) * -1)
    for write in (codes.save, lambda path: write_json(path, 1)):
        with pytest.raises(InputError) as refusal:
            write(place)
        assert message in str(refusal.value)
    assert len(os.listdir(odd)) == 3


def refused(main, *arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(main, list(map(str, arguments)))
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1, lines
    return lines[0]


def test_commands_say_which_option_names_what_cannot_be(encoder, odd, capsys):
    for main in (distill.main, teacher.main):
        for option in ("--out", "--cache-dir"):
            other = () if option == "--cache-dir" else ("--cache-dir", "cache")
            line = refused(main, option, "file", *other, capsys=capsys)
            assert line == f"error: {option} file: is a file; name a folder"
        line = refused(main, "--out", "link", "--cache-dir", "cache", capsys=capsys)
        assert line == "error: --out link: is a link to absent, which is not there; make that folder, or name another"
        assert "error: --out file/deep: file is a file" in refused(main, "--out", "file/deep", capsys=capsys)
    pair = ("--queries", encoder.save("encoder"), "--database", "encoder", "--dataset", "digits")
    assert refused(evaluate.main, *pair, "--save-codes", "folder", capsys=capsys) == "error: --save-codes folder: is a folder; name a file"
    assert refused(evaluate.main, *pair, "--cache-dir", "file", capsys=capsys) == "error: --cache-dir file: is a file; name a folder"


def test_long_names_are_names(encoder, tmp_path):
    assert jax_brcd.load(encoder.save(tmp_path / LONG)).bits == 8
    write_json(tmp_path / f"{LONG}.json", 1)
    with locked(lock_beside(tmp_path / LONG)):
        assert lock_beside(tmp_path / LONG) != lock_beside(tmp_path / f"{LONG}y")
    with pytest.raises(OSError, match="File name too long") as error:
        write_json(tmp_path / "x" / (LONG * 2), 1)
    assert "x" * 500 in error.value.filename


NUMBERS = np.random.default_rng(0).normal(size=2**18)  # two megabytes


@pytest.mark.parametrize("write", [
    lambda path: np.save(path, NUMBERS), lambda path: np.savez_compressed(path, numbers=NUMBERS),
    lambda path: path.write_bytes(NUMBERS.tobytes()),
], ids=["save", "savez", "write"])
def test_a_disk_that_fills_up_is_told_with_the_file(small_disk, write, capsys):
    path = small_disk / "numbers.npz"

    def main(argv):
        with atomic_path(path) as temporary:
            write(temporary)

    line = refused(main, capsys=capsys)
    assert line.startswith(f"error: {path}: ") and ("No space left on device; free space" in line or "disk is full" in line)
    assert os.listdir(small_disk) == []


def test_errors_of_other_files_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError) as error, atomic_path(tmp_path / "file"):
        (tmp_path / ".a.model.safetensors").read_text()
    assert error.value.filename == str(tmp_path / ".a.model.safetensors")
    with pytest.raises(ConnectionResetError), atomic_path(tmp_path / "file"):
        raise ConnectionResetError(errno.ECONNRESET, "gone")


CHECKPOINTS = """
import pathlib, sys
import jax.numpy as jnp, numpy as np
from jax_brcd.settings.command_line import run_command
from jax_brcd.training.checkpoints import Checkpoints

def main(argv):
    checkpoints = Checkpoints(pathlib.Path(sys.argv[1]) / "stage")
    numbers = np.random.default_rng(0).normal(size=(200, 2**13)).astype(np.float32)
    for again in range(6):
        try:
            checkpoints.save({str(row): jnp.asarray(values) for row, values in enumerate(numbers)}, {"epoch": 1})
        except OSError:
            if again == 5:
                raise

run_command(main)
"""


def test_a_folder_that_several_make_at_once_is_no_file(tmp_path):
    """As processes of one run do, and runs that want the same stage."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(100):
            folder, together = tmp_path / str(number) / "a" / "b", threading.Barrier(4)

            def make(_, folder=folder, together=together):
                together.wait()
                return make_folder(folder)

            with ThreadPoolExecutor(4) as threads:
                assert set(threads.map(make, range(4))) == {folder}
    finally:
        sys.setswitchinterval(usual)


def test_a_checkpoint_that_fills_the_disk_ends_in_its_line_alone(small_disk):
    """TensorStore writes in threads, which speak up when the first of them has failed."""
    done = subprocess.run([sys.executable, "-c", CHECKPOINTS, small_disk], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr == (f"error: {small_disk / 'stage'}: No space left on device; free space or mend the path, then run the same "
                           "command again to go on\n")


def test_what_fails_with_a_checkpoint_is_not_told_again_later(tmp_path, monkeypatch, caplog):
    """A thread may hold the errors of other writes until long after the save, and asyncio tells of each that nobody took."""
    def save(*arguments, **told):
        raise full

    full, other = (ValueError(text) for text in ("RESOURCE_EXHAUSTED: Error writing \"99/0\" [os_error_code='28']", "another"))
    checkpoints = Checkpoints(tmp_path / "stage")
    monkeypatch.setattr(checkpoints._manager, "save", save)
    with pytest.raises(OSError, match="No space left on device"):
        checkpoints.save({"values": np.zeros(1)}, {"epoch": 1})
    for error in (full, other):
        logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=error)
    assert [record.exc_info[1] for record in caplog.records] == [other]


# What killed writers leave

WRITER = """
import os, sys
from jax_brcd.runtime.files import atomic_path, replacing_folder
with atomic_path("metrics.json") as file, replacing_folder("teacher") as folder:
    file.write_text("half")
    (folder / "model.safetensors").write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""


def writer(started, folder: pathlib.Path) -> subprocess.Popen:
    """A process that has half written a file and a folder, and waits."""
    running = started([sys.executable, "-c", WRITER], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdout.readline() == b"written\n"
    return running


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(tmp_path, started):
    killed, living = writer(started, tmp_path), writer(started, tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(os.listdir(tmp_path)) == 4
    write_json(tmp_path / "other.json", 1)
    with atomic_path(tmp_path / "metrics.json") as ours, replacing_folder(tmp_path / "teacher") as folder:
        write_json(tmp_path / "other.json", 2)
        assert ours.exists() and folder.exists()
        names = os.listdir(tmp_path)
        assert len([name for name in names if name.startswith(".metrics.json.")]) == 2  # the living one's, and ours
        assert len([name for name in names if name.startswith(".teacher.")]) == 2 and len(names) == 5
    living.communicate()  # it goes on, and is done
    assert living.returncode == 0 and (tmp_path / "teacher" / "model.safetensors").read_text() == "half"
    assert sorted(os.listdir(tmp_path)) == ["metrics.json", "other.json", "teacher"]


KILLED = """
import os, pathlib, signal
from jax_brcd.runtime import files
rename = pathlib.Path.rename
files._exchange = lambda one, other: False  # as on file systems that cannot
pathlib.Path.rename = lambda self, to: os.kill(os.getpid(), signal.SIGKILL) if self.name == "new" else rename(self, to)
with files.replacing_folder("teacher"):
    pass
"""


def test_what_a_killed_process_was_about_to_replace_comes_back(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "model.safetensors").write_text("the only one")
    assert subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "teacher").exists()
    write_json(tmp_path / "file.json", 1)
    assert (tmp_path / "teacher" / "model.safetensors").read_text() == "the only one"
    assert sorted(os.listdir(tmp_path)) == ["file.json", "teacher"]


def test_what_only_looks_like_a_leftover_stays(tmp_path):
    (tmp_path / ".cache.abcdefgh").mkdir()
    (tmp_path / ".cache.abcdefgh" / "lock").write_text("")
    (tmp_path / ".notes.abcdefgh").write_text("mine")
    (tmp_path / ".empty.abcdefgh").mkdir()
    before = sorted(os.listdir(tmp_path))
    write_json(tmp_path / "file.json", 1)
    assert sorted(os.listdir(tmp_path)) == [*before, "file.json"] and (tmp_path / ".cache.abcdefgh" / "lock").exists()


def test_a_folder_is_written_where_locks_are_not_to_be_had(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with atomic_path(tmp_path / "file.json") as temporary:
        write_json(tmp_path / "other.json", 1)
        assert temporary.exists()  # nobody can know that its process is dead
    assert sorted(os.listdir(tmp_path)) == ["file.json", "other.json"]


def test_a_checkpoint_that_was_never_committed_goes_when_the_stage_goes_on(tmp_path):
    def folder(epochs):
        return StageFolder(tmp_path, "toy", {}, epochs)

    for name in ("1", "2.orbax-checkpoint-tmp"):
        (folder(3).checkpoints / name).mkdir(parents=True)
    folder(5).begin()  # takes what the stage of fewer epochs has committed
    assert os.listdir(folder(5).checkpoints) == ["1"] and len(os.listdir(folder(3).checkpoints)) == 2
    folder(3).begin()
    assert os.listdir(folder(3).checkpoints) == ["1"]


def test_a_path_of_text_and_a_path_are_checked_alike():
    for path in ("a\0b", pathlib.Path("a\0b"), "~/a\0b"):
        with pytest.raises(InputError, match="NUL"):
            as_path(path)
