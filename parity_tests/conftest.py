"""Fixtures shared by all tests: golden numbers and the material beside the repository; and what the suite costs.

All workers and the processes that tests start share one directory of compiled programs for the session. A worker gives its
memory back when it has grown, and the last lines of a session name the largest process.
"""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import uuid

import milvus_server
import numpy as np
import pytest

GROWTH_KIB = 600 * 2**10  # of a process, after which it forgets what it compiled
LARGEST = pytest.StashKey[list]()
ALONE = uuid.uuid4().hex  # the name of a session of one process

# Set before anything imports JAX, and inherited by workers and by the processes that tests start
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
else:
    COMPILED = None
# Compiling takes most of the time of programs that run once. LLVM's optimisations change no value but in its last bits, and XLA's
# new emitters of fused operations take two to four times as long as the old ones. The run of README and docs is compiled as users'
# are; everything is where this variable is set to 0.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1" and importlib.metadata.version("jaxlib").startswith("0.10."):
    # XLA refuses options that it does not know
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads would only wait for one another
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def shared_path(*parts: str) -> pathlib.Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(('../shared', *parts))}, which is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def shared():
    """A function from parts of a path below ../shared to that path; skips where it is absent."""
    return shared_path


@pytest.fixture(scope="session", params=[0, 1, 2], ids=lambda i: f"golden{i}")
def golden(request):
    """Inputs, losses and gradients of the published PyTorch code, one set after the other."""
    with np.load(shared_path("golden", f"shared_{request.param}.npz"), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def kib(who: int = resource.RUSAGE_SELF) -> int:
    """The largest that this process (or the largest of those it started) has been."""
    return resource.getrusage(who).ru_maxrss


def kib_now() -> int:
    """What this process holds, where the system tells."""
    with contextlib.suppress(OSError):
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return 0


def forget() -> None:
    """Gives back the memory of compiled programs and of what only cycles hold."""
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    stash = item.config.stash
    if kib_now() > stash.get(HELD, 0) + GROWTH_KIB:
        forget()
        stash[HELD] = kib_now()


HELD = pytest.StashKey[int]()


def pytest_collection_modifyitems(items):
    """Files of long tests begin first, so that no worker is left with one when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish(session):
    """What is imported and collected stays to the end: cycles are looked for among the rest alone, and not at every thousandth
    object that tracing makes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    for item in session.items:
        mark = item.get_closest_marker("beside")
        if mark is not None and not session.config.option.collectonly and milvus_server.why_not() is None:
            command = [sys.executable, "-m", "pytest", str(item.path), *mark.args, "-q", "-n0", "-p", "no:cacheprovider"]
            milvus_server.begin_once(command, item.path.parents[1], place_beside(item.name))


def place_beside(name: str) -> pathlib.Path:
    """What all workers of a session know the process of a test by that began with the session."""
    return pathlib.Path(tempfile.gettempdir()) / f"{name}-{os.environ.get('PYTEST_XDIST_TESTRUNUID', ALONE)}"


@pytest.fixture
def beside(request):
    """Where tests of a server leave what they say, as the mark names them: they mostly wait, so they began with the session."""
    if reason := milvus_server.why_not():
        pytest.skip(reason)
    place = place_beside(request.node.name)
    yield place
    shutil.rmtree(place, ignore_errors=True)


def pytest_sessionfinish(session):
    sizes = [kib(), kib(resource.RUSAGE_CHILDREN)]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["sizes"] = sizes
    else:
        session.config.stash.setdefault(LARGEST, []).append(("main", sizes))
    if COMPILED:
        shutil.rmtree(COMPILED, ignore_errors=True)


def pytest_testnodedown(node, error):
    node.config.stash.setdefault(LARGEST, []).append((node.gateway.id, getattr(node, "workeroutput", {}).get("sizes", [0, 0])))


def pytest_terminal_summary(terminalreporter, config):
    for name, sizes in config.stash.get(LARGEST, []):
        own, started = (size / 2**20 for size in sizes)
        terminalreporter.write_line(f"largest process of {name}: {own:.1f} GiB, of those it started: {started:.1f} GiB")


@pytest.fixture(scope="module")
def toy_backbones():
    """Toys from outside the package among the backbones, for the tests of a file that asks for them."""
    from toy_runs import toys  # which imports JAX

    with toys():
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache directory for the runs of a file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def started():
    """A function that starts a process as subprocess.Popen does; what a test leaves running is killed as it ends."""
    processes = []

    def start(*arguments, **settings):
        processes.append(subprocess.Popen(*arguments, **settings))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, which may be filled or made read-only by `mount -o remount`."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)
