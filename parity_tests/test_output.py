"""What a command prints, to whom: readers that go early, full disks, bars on terminals, exit statuses."""

import io
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_brcd.data.dataset import one_hot
from jax_brcd.runtime.errors import InputError, Naming
from jax_brcd.settings import command_line
from jax_brcd.settings.command_line import Bars, bars, run_command, say

# A command that prints, works on after its reader has gone, and writes down that it came to its end
WORKING = """
import pathlib, sys, time
from jax_brcd.runtime.errors import Naming
from jax_brcd.settings.command_line import bars, run_command, say

def main(argv):
    with bars() as progress:
        for step in range(4):
            say(Naming(f"step {step} of `batch_size`"))
            progress("work", step, 4)
            time.sleep(0.2)
        pathlib.Path(sys.argv[1]).write_text("all written")
        say("the table")

run_command(main)
"""
# The command itself, with a run that only says what it says
DISTILL = """
import pathlib, sys, time
import jax_brcd.stages.run as stages
from jax_brcd import distill
from jax_brcd.settings.command_line import run_command

def run(config, *, progress, say):
    for step in range(30):
        say("x" * 4096)  # more than a pipe holds
        progress("train", step, 30)
    pathlib.Path(sys.argv[1]).write_text("all written")
    return {"protocol": {}, "teacher": {}, "student": {}}

stages.run = run
import jax_brcd.stages.command as command
command.results_table = lambda metrics: "the table"
run_command(distill.main, ["--no-compile-cache"])
"""


def piped(script, tmp_path, tail, *words):
    """The status of the left side of a pipe, what came out at its end, and what else was written to stderr."""
    (tmp_path / "program.py").write_text(script)
    line = f'"$0" "$1" "$2" {tail}; echo "status ${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", line, sys.executable, tmp_path / "program.py", tmp_path / "written", *words],
                          capture_output=True, text=True, timeout=300, check=False)
    *out, status = done.stdout.splitlines()
    return status, out, done.stderr


@pytest.mark.parametrize("script", [WORKING, DISTILL], ids=["cheap", "distill"])
@pytest.mark.parametrize("tail", ["| head -1", "2>&1 | head -1", "| true", "2>&1 | true"])
def test_a_reader_that_goes_ends_nothing_and_is_no_error(tmp_path, script, tail):
    status, out, errors = piped(script, tmp_path, tail)
    assert status == "status 0" and errors == ""
    assert len(out) == ("head" in tail) and (tmp_path / "written").read_text() == "all written"
    assert not out or out[0] in ("step 0 of --batch-size", "x" * 4096)


def test_help_may_be_cut_too(tmp_path):
    status, out, errors = piped("from jax_brcd.settings.command_line import run_command\nfrom jax_brcd import distill\n"
                                "run_command(distill.main, ['--help'])", tmp_path, "| head -1")
    assert status == "status 0" and errors == "" and out[0].startswith("usage: python -m jax_brcd.distill")


def test_an_error_keeps_its_status_where_nobody_reads_it(tmp_path):
    script = ("from jax_brcd.settings.command_line import run_command\nfrom jax_brcd import distill\n"
              "run_command(distill.main, ['--bits', '0'])")
    assert piped(script, tmp_path, "2>&1 | true")[0] == "status 2"
    assert piped(script, tmp_path, "| true")[0::2] == ("status 2", "error: --bits 0: too small; give 1 or more\n")


def test_output_to_a_full_disk_ends_in_one_line(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    status, _, errors = piped(WORKING, tmp_path, "> /dev/full")
    assert status == "status 2" and errors.startswith("error: No space left on device; free space") and errors.count("\n") == 1


class Gone(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")

    def isatty(self):
        return True


def status_of(main):
    with pytest.raises(SystemExit) as stop:
        run_command(main)
    return stop.value.code


def test_work_goes_on_when_neither_stream_has_a_reader(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", Gone())
    done = []

    def main(argv):
        with bars() as progress:
            for step in range(3):
                say("text")
                progress("work", step, 2)
                done.append(step)

    assert status_of(main) == 0 and done == [0, 1, 2]
    assert status_of(lambda argv: print("not by say")) == 0


def test_a_pipe_that_breaks_elsewhere_is_an_error(capsys):
    """As that of a worker process which was killed: what was to be done is not done."""
    def main(argv):
        raise BrokenPipeError(32, "Broken pipe")

    assert status_of(main) == 2
    assert capsys.readouterr().err == ("error: another process that this one works with has gone ([Errno 32] Broken pipe); "
                                       "run the same command again to go on\n")


def test_statuses_are_those_of_the_program(capsys, monkeypatch):
    def refuse(argv):
        raise InputError("more than `resident_mib`;\ngive less", field="batch_size", value=3)

    assert status_of(lambda argv: None) == 0
    assert status_of(lambda argv: sys.exit(5)) == 5
    assert status_of(refuse) == 2
    assert capsys.readouterr().err == "error: --batch-size 3: more than --resident-mib; give less\n"
    with pytest.raises(RuntimeError, match="a fault of ours keeps its traceback"):
        run_command(lambda argv: (_ for _ in ()).throw(RuntimeError("a fault of ours keeps its traceback")))
    monkeypatch.setattr(sys, "stdout", None)  # as where the shell closed it
    assert status_of(lambda argv: say("nobody hears")) == 0


def test_too_little_memory_ends_in_one_line(capsys):
    def of_python(argv):
        raise MemoryError

    assert status_of(lambda argv: one_hot(np.broadcast_to(0, 2**30), 2**30)) == 2
    assert capsys.readouterr().err == ("error: not enough memory: Unable to allocate 1.00 EiB for an array with shape "
                                       "(1073741824, 1073741824) and data type uint8\n")
    assert status_of(of_python) == 2
    assert capsys.readouterr().err == "error: not enough memory\n"


def test_too_little_memory_on_the_device_ends_in_one_line_too(capsys):
    def of_many_lines(argv):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nPeak buffers:\n\tBuffer 1:")

    remedy = "; where it trains, a smaller --batch-size or --resident-mib needs less on the device\n"
    assert status_of(lambda argv: jnp.zeros(2**50, jnp.uint8)) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: not enough memory: RESOURCE_EXHAUSTED: Out of memory") and line.endswith(remedy)
    assert status_of(of_many_lines) == 2
    assert capsys.readouterr().err == f"error: not enough memory: RESOURCE_EXHAUSTED: Out of memory.{remedy}"
    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault of ours"):
        run_command(lambda argv: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("INTERNAL: a fault of ours")))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_bars_are_drawn_on_terminals_alone(monkeypatch):
    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with bars() as progress:
            for done in range(3):
                progress("encode images", done, 5)
            progress("train", 5, 5)
        assert ("encode images" in stream.getvalue() and "train" in stream.getvalue()) is drawn
        assert drawn or stream.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    Bars(shown=False)("encode images", 1, 5)
    assert sys.stderr.getvalue() == ""


def test_names_of_files_that_are_no_text_are_shown_as_escapes(monkeypatch):
    strict = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", strict)
    say("passed over: caf\udce9.jpg, caf\xe9.jpg")
    assert strict.buffer.getvalue().decode() == "passed over: caf\\udce9.jpg, caf\xe9.jpg\n"


def test_settings_are_spelled_as_options_where_a_text_names_them_and_not_in_names_that_users_gave(capsys):
    say(Naming("with `student_size` 224"))
    say("/photos/the `best` one.jpg")
    assert capsys.readouterr().out == "with --student-size 224\n/photos/the `best` one.jpg\n"


def test_a_log_has_a_line_of_progress_once_in_a_minute(monkeypatch):
    now = iter([0.0, 10.0, 59.0, 60.0, 80.0, 100.0, 121.0, 130.0, 200.0, 201.0])
    monkeypatch.setattr(command_line, "time", types.SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with bars() as progress:
        for done in (100, 150, 200):  # went on from 100
            progress("student", done, 1_000)
        for done in (0, 2, 5):
            progress("evaluate", done, 10)
        for done, total in ((10, 10), (10, 1000), (11, 1000)):  # the end, and other work of that name
            progress("evaluate", done, total)
    assert sys.stderr.getvalue() == "student: 200 of 1000 [00:50<06:40]\nevaluate: 5 of 10 [00:41<00:41]\nevaluate: 10 of 1000 [00:00<?]\n"


def test_a_terminal_that_goes_stops_no_work(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress = Bars()
    progress("encode images", 1, 5)
    monkeypatch.setattr(Terminal, "write", Gone.write)
    monkeypatch.setattr(Terminal, "flush", Gone.flush)
    for done in range(2, 6):
        progress("train", done, 5)
    progress.close()


LEFT = """
import atexit, sys
import jax
from jax_brcd.settings.command_line import run_command
jax.distributed.is_initialized = lambda: sys.argv[1] == "joined"
atexit.register(print, "waited for the others")
def main(argv):
    raise ConnectionError("reset by peer")
run_command(main)
"""


@pytest.mark.parametrize("joined", [True, False])
def test_a_process_whose_partner_has_gone_does_not_wait_for_it(joined):
    ended = subprocess.run([sys.executable, "-c", LEFT, "joined" if joined else "alone"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
    assert "another process that this one works with has gone (reset by peer); run the same command again" in ended.stderr
    assert ("waited for the others" in ended.stdout) is not joined
