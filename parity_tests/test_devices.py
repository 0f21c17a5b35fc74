"""Runs spread over devices and processes: the losses of one device, and checkpoints that go on anywhere.

Devices are four that XLA makes of the host; processes are two on this machine with collectives over its network.
"""

import concurrent.futures
import json
import re
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from toy_runs import distilling, environment_of_toys, of_devices

from jax_brcd.runtime.devices import session
from jax_brcd.runtime.errors import InputError

pytestmark = pytest.mark.long

SECONDS = 300

# A student trained whole on new views: twenty images in sixes, which four devices do not divide, and a partial last batch.
# Arguments: directory, epoch (of two) before which it is interrupted, whether images travel with each step (or ""), processes,
# process, coordinator
STUDENT = """
import json, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax_brcd.runtime import devices
from jax_brcd.training import loop as training
from jax_brcd.training.schedule import Schedule
from jax_brcd.views.source import Source
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.views.encoding import encode
from jax_brcd.methods import TeacherKnowledge, create_method
from jax_brcd.models import HashModel
from jax_brcd.models.resnet import BasicBlock, ResNet
from jax_brcd.models.vit import VisionTransformer
from jax_brcd.stages.student import student_stage
from jax_brcd.training.loop import fit, start
from jax_brcd.views.sources import KeptTeacher, PixelViews
from jax_brcd.views.streaming import StepImages, Stream

directory, stop, streamed, *place = sys.argv[1:]
run_epoch, epochs_run = training._run_epoch, []


def interrupted(*arguments):
    epochs_run.append(1)
    if len(epochs_run) > int(stop):
        raise KeyboardInterrupt
    return run_epoch(*arguments)


training._run_epoch = interrupted
random = np.random.default_rng(0)
images = random.integers(256, size=(20, 8, 8, 3), dtype=np.uint8)
codes = random.choice([-1.0, 1.0], (20, 8)).astype(np.float32)
with devices.session(int(place[0]), int(place[1]), place[2]):
    teacher, rngs = VisionTransformer(16, 8, 1, 2, 16, 32, rngs=nnx.Rngs(0)), nnx.Rngs(0)
    student = HashModel(ResNet(BasicBlock, (1,), width=8, image_size=16, small_stem=True, rngs=rngs), 8, rngs=rngs)
    views = PixelViews(StepImages() if streamed else jnp.asarray(images), jax.random.key(0), ViewConfig(size=16), train=True)
    kept = KeptTeacher(jnp.asarray(random.choice([-1, 1], (4, 20, 8)), jnp.int8))
    method = create_method("brcd", clusters=2, cluster_restarts=1)
    stage, parameters, carry = student_stage(
        student, kept, method, TeacherKnowledge.of(codes, method.needs, seed=0),
        source=Source(views, 20, stream=Stream(images) if streamed else None),
        schedule=Schedule(batch_size=6, epochs=2, seed=0, scan=False, checkpoint_seconds=0.0), train_backbone=True,
        learning_rate=1e-4, temperature=0.3, kl_weight=0.001, method_seed=0)
    fitted = None
    try:
        fitted = fit(stage, start(stage, parameters, carry), Checkpoints(pathlib.Path(directory)))
    except KeyboardInterrupt:
        pass
    features = encode(teacher, images, size=16, description="")
    found = {"devices": jax.device_count(), "features": features.tolist()}
    if fitted:
        found["losses"] = [[record[name] for name in ("loss", "contrastive", "distillation")] for record in fitted.history]
        found["statistics"] = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(fitted.state.carry["statistics"])]
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def environment():
    return environment_of_toys()


def running(environment, devices: int, *command: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *command], env=environment | of_devices(devices), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def printed(process: subprocess.Popen) -> str:
    try:
        out, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()  # one that still waits for the other
    assert process.returncode == 0, errors[-3000:]
    return "".join(line for line in out.splitlines(keepends=True) if not line.startswith("[Gloo]"))  # it names its peers


def printed_together(pair: list[subprocess.Popen]) -> list[str]:
    """Of processes that wait for one another: neither may be held up by output that nobody reads."""
    with concurrent.futures.ThreadPoolExecutor(len(pair)) as readers:
        return list(readers.map(printed, pair))


def address() -> str:
    """A port of this machine that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def train(environment, directory, *, stop: int = 2, devices: int = 1):
    return json.loads(printed(running(environment, devices, "-c", STUDENT, str(directory), str(stop), "", "1", "0", "")))


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory):
    """Two epochs on one device."""
    return train(environment, tmp_path_factory.mktemp("one"))


def layout(directory) -> list[str]:
    """What is in the newest checkpoint, but for files that carry numbers drawn at random in their names."""
    directory = max((path for path in directory.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    files = (str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    return sorted({re.sub(r"[0-9a-f]{16,}", "#", file) for file in files})


def assert_same(ours, theirs):
    """To 1e-5: sums of float32 numbers in another order."""
    assert len(ours["losses"]) == len(theirs["losses"]) == 2
    np.testing.assert_allclose(ours["losses"], theirs["losses"], rtol=1e-5)
    for statistics, others in zip(ours["statistics"], theirs["statistics"], strict=True):
        np.testing.assert_allclose(statistics, others, rtol=1e-5, atol=1e-5)


def test_four_devices_train_and_encode_like_one_and_one_goes_on_with_their_checkpoint(environment, undisturbed, tmp_path):
    """The first of the two epochs is theirs. Negatives come from the whole batch, and so do batch norm's statistics."""
    spread = train(environment, tmp_path, stop=1, devices=4)
    assert (undisturbed["devices"], spread["devices"]) == (1, 4)
    np.testing.assert_allclose(spread["features"], undisturbed["features"], rtol=1e-5, atol=1e-5)
    written = layout(tmp_path)
    assert_same(train(environment, tmp_path), undisturbed)
    assert written == layout(tmp_path)


@pytest.mark.parametrize("streamed", ["", "streamed"], ids=["images on the devices", "images that travel"])
def test_two_processes_train_like_one_and_one_goes_on_with_their_checkpoint(environment, undisturbed, tmp_path, streamed):
    place = address()
    pair = [running(environment, 1, "-c", STUDENT, str(tmp_path), "1", streamed, "2", str(number), place)
            for number in range(2)]
    first, second = printed_together(pair)
    assert second == ""  # only the first prints
    together = json.loads(first)
    assert together["devices"] == 2
    np.testing.assert_allclose(together["features"], undisturbed["features"], rtol=1e-5, atol=1e-5)
    assert_same(train(environment, tmp_path), undisturbed)


def test_two_processes_finish_a_run_and_one_goes_on_with_it(environment, tmp_path):
    """The whole command, a toy teacher and a frozen student: kept features, validation, checkpoints, both searches, report."""
    command = [*distilling(), "--bits", "16", "--views", "2", "--teacher", "toy", "--teacher-weights", "random", "--teacher-epochs",
               "2", "--student", "vit_lite_4_8", "--no-train-backbone", "--epochs", "2", "--validation-interval", "1",
               "--checkpoint-seconds", "0", "--batch-size", "256", "--clusters", "3", "--cluster-restarts", "1",
               "--out", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache")]
    place = address()
    pair = [running(environment, 1, *command, "--processes", "2", "--process-id", str(number), "--coordinator", place)
            for number in range(2)]
    first, second = printed_together(pair)
    assert "student, asymmetric" in first and second == ""
    assert "encodes 2 views of each image once." in first  # a student without batch norm
    metrics = tmp_path / "run" / "metrics.json"
    together = json.loads(metrics.read_text())
    metrics.unlink()
    for finished in (tmp_path / "cache" / "stages").glob("*/stage.json"):
        finished.unlink()  # so that every stage goes on from the checkpoints that two processes wrote
    again = printed(running(environment, 1, *command))
    alone = json.loads(metrics.read_text())
    assert "already there" not in again
    assert {**alone, "costs": None} == {**together, "costs": None}
    assert alone["costs"]["teacher"]["flops"] == pytest.approx(together["costs"]["teacher"]["flops"], rel=0.01)


WAITING = """
import sys, time
from jax_brcd.runtime.devices import session
with session(2, int(sys.argv[1]), sys.argv[2]):
    print("connected", file=sys.stderr, flush=True)
    time.sleep(600)
"""


def test_processes_that_are_told_to_end_do(environment):
    place = address()
    pair = [running(environment, 1, "-c", WAITING, str(number), place) for number in range(2)]
    try:
        for process in pair:
            assert any(line == "connected\n" for line in process.stderr)
        for process in pair:
            process.terminate()
        for process in pair:
            process.communicate(timeout=SECONDS)
            assert process.returncode == -signal.SIGTERM
    finally:
        for process in pair:
            process.kill()


@pytest.mark.parametrize(("place", "message"), [
    ((2, 2, "127.0.0.1:9876"), "process_id 2: the 2 processes are numbered from 0; give 1 or less"),
    ((2, 0, "here"), "coordinator here: not HOST:PORT"),
])
def test_a_place_that_cannot_be_is_refused(place, message):
    with pytest.raises(InputError, match=message), session(*place):
        pass


@pytest.fixture
def alone_of_two(monkeypatch):
    """What joins the other process, without it."""
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **settings: None)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    monkeypatch.setattr("orbax.checkpoint.multihost.sync_global_processes", lambda name: None)
    monkeypatch.setattr("jax_brcd.runtime.devices.wait_for_all", lambda name: None)


@pytest.mark.parametrize(("told", "raised"), [
    ("UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error [127.0.0.1]:12985: Connection reset by peer\nmore",
     ConnectionError),
    ("RESOURCE_EXHAUSTED: out of memory", jax.errors.JaxRuntimeError)])
def test_a_process_whose_partner_has_gone_says_so(alone_of_two, told, raised):
    with pytest.raises(raised, match=told.splitlines()[0].split(":")[0]) as caught, session(2, 0, "127.0.0.1:9876"):
        raise jax.errors.JaxRuntimeError(told)
    assert "more" not in str(caught.value) or raised is not ConnectionError
