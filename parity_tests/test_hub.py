"""Repositories fetched from a hub on this machine, with every way in which that can fail."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import time

import huggingface_hub.constants
import huggingface_hub.file_download
import numpy as np
import pytest
import safetensors.numpy
from hub_server import serving

from jax_brcd.hub import HubName, fetch, is_hub_name
from jax_brcd.models.weights import read_weight_file
from jax_brcd.runtime.errors import InputError

NAME, WEIGHTS = "hf:user/name", {"a": np.arange(3000, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
CONFIG = {"model_type": "toy", "hidden_size": 3}


def write(folder, *, parts=1, config=CONFIG, weights=WEIGHTS):
    """A folder as save_pretrained leaves it; its tensors dealt out to `parts` files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if parts == 1:
        safetensors.numpy.save_file(weights, folder / "model.safetensors")
        return folder
    files = {tensor: f"model-{number % parts + 1:05}-of-{parts:05}.safetensors" for number, tensor in enumerate(weights)}
    for file in set(files.values()):
        safetensors.numpy.save_file({name: weights[name] for name in files if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    write(tmp_path / "hub" / "user" / "name")
    with serving(tmp_path / "hub", tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def offline(monkeypatch):
    """A function that takes the hub away: "told" by HF_HUB_OFFLINE, or "unreachable"."""

    def go(how):
        if how == "told":
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        else:
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")

    return go


def refusal(name=NAME):
    with pytest.raises(InputError) as caught:
        fetch(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("text", "repository", "revision"), [
    ("hf:facebook/dinov2-small", "facebook/dinov2-small", None), ("hf:gpt2", "gpt2", None),
    ("hf:a/b.c_d@v1.0", "a/b.c_d", "v1.0"), ("hf:a/b@refs/pr/3", "a/b", "refs/pr/3"), ("hf:a/b@" + 40 * "0", "a/b", 40 * "0")])
def test_a_name_has_a_repository_and_perhaps_a_revision(text, repository, revision):
    name = HubName.parse(text)
    assert name == (repository, revision) and str(name) == text and is_hub_name(text)
    assert name.is_commit == (revision == 40 * "0")


@pytest.mark.parametrize("text", [
    "hf:", "hf://a/b", "hf:a/b/c", "hf:a b", "hf:a/b@", "hf:a/../b", "hf:a/b@../c", "hf:a--b", "a/b", "hf:-a/b", "hf:a/b@/c",
    "hf:a/\u00fc"])
def test_what_is_no_name_of_a_repository_is_refused(text):
    with pytest.raises(InputError, match="names no repository of the hub; write hf:user/name, or hf:user/name@revision"):
        HubName.parse(text)


@pytest.mark.parametrize("parts", [1, 2])
def test_weights_are_fetched_once_and_known_by_digest_and_commit(hub, tmp_path, capfd, parts):
    if parts > 1:
        (hub.root / "user/name/model.safetensors").unlink()
        write(hub.root / "user/name", parts=parts)
    told = []
    fetched = fetch(NAME, progress=lambda *now: told.append(now))
    files = {path.name: path.read_bytes() for path in (hub.root / "user/name").iterdir()}
    assert contents(fetched.folder) == sorted(files) and fetched.commit == hub.commit("user/name")
    assert fetched.sha256 == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()
                              if name.endswith(".safetensors")} and len(fetched.sha256) == parts
    assert fetched.origin == {"repository": "user/name", "revision": "main", "commit": fetched.commit, "sha256": fetched.sha256}
    read = read_weight_file(fetched.folder)
    assert read.config == CONFIG and read.tensors.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        np.testing.assert_array_equal(read.tensors[name], tensor)
    sent = hub.sent
    assert sent == sum(map(len, files.values())) == sum(done for _, done, total in told if done == total)
    assert told[0][0].startswith("download user/name/model")
    assert fetch(NAME) == fetched and hub.sent == sent
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("how", ["told", "unreachable"])
def test_what_was_fetched_serves_offline_with_a_remark(hub, offline, how):
    fetched, asked = fetch(NAME), hub.asked
    offline(how)
    again = fetch(NAME)
    assert again[:4] == fetched[:4] and hub.asked == asked
    why = "the hub is not asked while HF_HUB_OFFLINE is set" if how == "told" else "http://127.0.0.1:9 cannot be reached"
    assert len(again.remarks) == 1 and why in again.remarks[0] and f"commit {fetched.commit}" in again.remarks[0]


@pytest.mark.parametrize("how", ["told", "unreachable"])
def test_offline_one_line_says_at_once_which_files_to_put_where(hub, offline, tmp_path, how):
    offline(how)
    began = time.monotonic()
    line = refusal()
    place = tmp_path / "cache/models--user--name/snapshots/main"
    page = f"{huggingface_hub.constants.ENDPOINT}/user/name/tree/main"
    assert line.endswith(f"; or put config.json and model.safetensors from {page} into {place} by hand")
    assert time.monotonic() - began < 15
    write(place)
    put = fetch(NAME)  # and then the same call works
    assert (put.folder, put.commit) == (place, None) and "commit unknown" in put.remarks[0]


def test_a_whole_commit_that_is_there_is_never_asked_for(hub):
    commit = fetch(NAME).commit
    asked = hub.asked
    found = fetch(f"{NAME}@{commit}")
    assert found.commit == commit and not found.remarks and hub.asked == asked


def test_a_branch_is_fetched_anew_when_it_has_moved_and_the_old_commit_stays(hub, offline):
    old = fetch(NAME)
    write(hub.root / "user/name", weights={"a": np.zeros(7, np.float32)})
    new = fetch(NAME)
    assert new.commit != old.commit and read_weight_file(new.folder).tensors["a"].shape == (7,)
    assert fetch(f"{NAME}@{old.commit}").sha256 == old.sha256
    offline("told")
    assert fetch(NAME).commit == new.commit


def test_a_copy_stays_in_use_where_a_newer_commit_could_not_be_fetched(hub, offline):
    old = fetch(NAME)
    write(hub.root / "user/name", weights={"a": np.zeros(7, np.float32)})
    hub.fault = {"model.safetensors": "wrong"}
    assert "came with sha256" in refusal()
    offline("told")
    assert fetch(NAME).commit == old.commit


@pytest.mark.parametrize(("status", "line"), [
    (401, "the hub refuses access (HTTP 401); log in by `hf auth login` with a token that grants it"),
    (503, "the hub answers with HTTP 503; try again later")])
def test_a_hub_that_answers_otherwise_is_told_with_what_it_said(hub, status, line):
    hub.status = status
    assert refusal().startswith(f"{NAME}: {line}; or put ")


def test_a_repository_or_revision_that_is_not_there_is_told(hub, tmp_path):
    assert refusal("hf:user/other") == (
        "hf:user/other: the hub has no such repository, or a private one; check the name, or log in by `hf auth login`")
    assert refusal(f"{NAME}@v2") == (
        f"{NAME}@v2: it has no revision 'v2'; name a branch, tag or commit of {hub.endpoint}/user/name")
    assert not (tmp_path / "cache").exists()


def test_a_gated_repository_says_where_access_is_granted(hub):
    hub.fault = {"model.safetensors": "gated"}
    assert refusal() == (f"{NAME}: cannot fetch model.safetensors: its authors grant access on request; ask for it at "
                         f"{hub.endpoint}/user/name, then log in by `hf auth login`")


def test_only_safetensors_are_fetched(hub, tmp_path):
    folder = hub.root / "user/name"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    line = refusal()
    assert line.startswith(f"{NAME}: holds its weights as pytorch_model.bin alone, and only safetensors are read; convert them")
    assert "AutoModel.from_pretrained('user/name').save_pretrained('FOLDER')" in line and hub.sent == 0
    assert line.endswith("; or name a pull request of its page that adds them, as in hf:user/name@refs/pr/1")
    (folder / "pytorch_model.bin").rename(folder / "open_clip_model.safetensors")
    assert refusal() == f"{NAME}: holds no model.safetensors (but open_clip_model.safetensors)"
    (folder / "config.json").unlink()
    assert "holds no config.json and no model.safetensors" in refusal()


@pytest.mark.parametrize(("weight_map", "line"), [
    ({"a": "model-00009-of-00009.safetensors"}, "names model-00009-of-00009.safetensors, which it lacks"),
    ({"a": "../../config.safetensors"}, "which is no safetensors file beside it"),
    ({"a": "weights.bin"}, "which is no safetensors file"),
    ({"a": 3}, "which is no safetensors file"), ({}, "names no files"), (None, "no index of weights in several files")])
def test_an_index_that_names_no_files_of_its_folder_is_refused(hub, weight_map, line):
    folder = hub.root / "user/name"
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert line in refusal()


@pytest.mark.parametrize(("fault", "chunk", "line"), [
    ("short", 10**7, "peer closed connection"), ("short", 1000, "the server ends too early each time"),
    ("wrong", 1000, "came with sha256 ")])
def test_a_download_that_is_not_the_file_leaves_nothing(hub, tmp_path, fault, chunk, line, capfd, monkeypatch):
    """huggingface_hub starts anew for ever where something came each time."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", chunk)
    hub.fault = {"model.safetensors": fault}
    found = refusal()
    assert line in found and f"or put config.json and model.safetensors from {hub.endpoint}/user/name/tree/main" in found
    assert not [name for name in contents(tmp_path / "cache") if "/blobs/" in name or "/snapshots/" in name or "/refs/" in name]
    assert capfd.readouterr() == ("", "")
    hub.fault = {}
    assert fetch(NAME).commit


def test_a_damaged_copy_is_fetched_again_and_offline_told(hub, offline):
    fetched = fetch(NAME)
    path = fetched.folder / "model.safetensors"
    whole = path.read_bytes()
    path.resolve().write_bytes(whole[:-1] + b"!")
    assert fetch(NAME) == fetched and path.read_bytes() == whole
    path.resolve().write_bytes(whole[:-1])
    offline("told")
    assert f"{path} is damaged; delete it" in refusal()


def test_a_full_disk_is_told_as_such(hub, small_disk, monkeypatch):
    write(hub.root / "user/name", weights={"a": np.zeros(10**6, np.float32)})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(small_disk))
    with pytest.raises(OSError) as caught:
        fetch(NAME)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename
    assert not [name for name in contents(small_disk) if "/blobs/" in name]


def test_without_huggingface_hub_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refusal() == "the hub is reached through huggingface_hub; pip install 'jax_brcd[hub]'"


def test_the_variables_of_the_environment_that_huggingface_hub_has_are_heeded(hub, tmp_path):
    """In a process of its own, since it reads them once."""
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    program = ("import sys; from jax_brcd.hub import fetch; assert 'huggingface_hub' not in sys.modules; "
               f"print(fetch('{NAME}').folder)")
    for offline in ("0", "1"):
        done = subprocess.run([sys.executable, "-c", program], env={**environment, "HF_HUB_OFFLINE": offline},
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert done.stdout.strip() == str(tmp_path / "home/hub/models--user--name/snapshots" / hub.commit("user/name"))
