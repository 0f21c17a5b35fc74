"""Runs from the hub's weights, offline too; and encoders that are published, found again and searched with."""

import hashlib
import json
import shutil
import sys

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.numpy
from encoders import noise, same
from flax import nnx
from hub_server import serving
from PIL import Image
from toy_runs import PIXELS, Toy, content, refusal, scores, tiny, words

import jax_brcd
from jax_brcd import distill, evaluate
from jax_brcd.encoder import create_encoder, folder_of, read_config
from jax_brcd.hub import fetch
from jax_brcd.models import BACKBONES, Preprocessing, Variant, create_backbone, create_hash_model, model_state
from jax_brcd.models.variants import HubWeights
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.progress import silent
from jax_brcd.stages.claim import fetch_weights
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.sight import brought_encoder

NAME = "hf:user/toy"
FROM_HUB = {"teacher_weights": NAME, "student_weights": "pretrained"}


@pytest.fixture(scope="module")
def toys():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
        for name, width in (("toy", 8), ("small_toy", 5)):
            BACKBONES.register(name)(Variant(
                lambda *, rngs, width=width: Toy(width, rngs), Preprocessing(PIXELS),
                {"pretrained": HubWeights(f"user/{name}", "plain")}, config={"model_type": "toy", "width": width}))
        yield


def put(folder, name, seed=5):
    """Random weights of a toy as a folder of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: np.ascontiguousarray(value) for key, value in model_state(create_backbone(name, rngs=nnx.Rngs(seed))).items()}
    (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))
    safetensors.numpy.save_file(state, folder / "model.safetensors")


@pytest.fixture(scope="module")
def hub(toys, tmp_path_factory):
    place = tmp_path_factory.mktemp("hub")
    for name in ("toy", "small_toy"):
        put(place / "root/user" / name, name)
    with serving(place / "root", place / "cache") as hub:
        yield hub


@pytest.fixture(scope="module")
def made(hub, tmp_path_factory):
    """A run whose teacher and student come from what was fetched, offline: its directory, its cache, what it found and said."""
    place = tmp_path_factory.mktemp("run")
    for name in ("toy", "small_toy"):
        fetch(f"hf:user/{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        return place / "run", place / "stages", *tiny(place / "run", place / "stages", **FROM_HUB)


def test_a_run_keeps_where_its_weights_came_from(hub, made):
    out, cache, *_ = made
    origins = {}
    for role, name in (("teacher", "toy"), ("student", "small_toy")):
        origins[role] = read_config(out / "teacher")["provenance"]["weights"][role]
        assert origins[role]["repository"] == f"user/{name}" and origins[role]["commit"] == hub.commit(f"user/{name}")
        content = (hub.root / "user" / name / "model.safetensors").read_bytes()
        assert origins[role]["sha256"] == {"model.safetensors": hashlib.sha256(content).hexdigest()}
    assert read_config(out / "student_asymmetric")["provenance"]["weights"] == origins
    for role in origins:
        (folder,) = (cache / "stages").glob(f"{role}-*")
        assert json.loads((folder / "stage.json").read_text())["gave"]["weights"] == origins[role]
    claim = json.loads((out / "config.json").read_text())
    assert claim["settings"]["teacher_weights"] == NAME
    assert {"weights of the teacher", "weights of the student"} <= claim["data"].keys()


def test_the_same_command_does_nothing_online_offline_and_when_the_files_are_gone(hub, made, monkeypatch, tmp_path):
    out, cache, metrics, _ = made
    constants = huggingface_hub.constants
    for offline, place in ((False, constants.HF_HUB_CACHE), (True, constants.HF_HUB_CACHE), (True, str(tmp_path / "empty"))):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", place)
        found, said = tiny(out, cache, **FROM_HUB)
        assert scores(found) == scores(metrics) and said == [f"{out}: already there; nothing was run again."]


def test_a_run_offline_says_which_commits_it_took(hub, made):
    for name in ("toy", "small_toy"):
        assert (f"hf:user/{name}: the hub is not asked while HF_HUB_OFFLINE is set. What was fetched before is used: commit "
                f"{hub.commit(f'user/{name}')}.") in made[3]


def test_a_folder_of_the_same_weights_goes_on_with_the_run(hub, made):
    out, cache, *_ = made
    folder = str(folder_of(NAME))
    assert tiny(out, cache, **FROM_HUB | {"teacher_weights": folder})[1] == [f"{out}: already there; nothing was run again."]


def test_a_repository_that_has_changed_since_is_told(hub, made, tmp_path):
    out, cache, *_ = made
    shutil.copytree(out, tmp_path / "run")
    put(hub.root / "user/toy", "toy", seed=6)
    try:
        with pytest.raises(InputError, match="its data has changed since: weights of the teacher; name another out"):
            tiny(tmp_path / "run", cache, **FROM_HUB)
    finally:
        put(hub.root / "user/toy", "toy")


def test_a_command_that_cannot_have_its_weights_says_so_in_one_line(hub, tmp_path, capsys):
    line = refusal(distill.main, words(tmp_path / "run", tmp_path / "cache", teacher_weights="hf:user/none"), capsys)
    assert line.startswith("error: --teacher-weights hf:user/none: the hub has no such repository")
    assert not (tmp_path / "run").exists()
    line = refusal(distill.main, words(tmp_path / "run", tmp_path / "cache", teacher_weights="hf:user/small_toy"), capsys)
    assert "--teacher-weights hf:user/small_toy: the weights do not fit toy" in line


@pytest.fixture(scope="module")
def published(hub):
    model = create_hash_model("toy", 16, rngs=nnx.Rngs(3))
    encoder = create_encoder(model, "toy", BACKBONES["toy"].preprocessing, bits=16, role="student").with_provenance(
        metrics={"map": 0.5}, settings={"out": "/home/ann/runs/one", "seed": 3})
    return encoder, encoder.push_to_hub("ann/encoder")


def test_a_name_without_its_user_is_not_published(hub, published):
    with pytest.raises(InputError, match="'encoder': names no user; give USER/encoder"):
        published[0].push_to_hub("encoder")


def test_a_published_encoder_is_loaded_by_its_name(hub, published):
    encoder, address = published
    commit = hub.commit("ann/encoder")
    assert address == f"{hub.endpoint}/ann/encoder/commit/{commit}"
    told = []
    again = jax_brcd.load("hf:ann/encoder", progress=lambda *now: told.append(now))
    assert told[-1] == ("download ann/encoder/config.json", *2 * [len((hub.root / "ann/encoder/config.json").read_bytes())])
    before, after = model_state(encoder.model), model_state(again.model)
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    for name in ("space", "bits", "role", "preprocessing", "backbone"):
        assert getattr(again, name) == getattr(encoder, name), name
    fetched = again.provenance["fetched"]
    assert fetched["repository"] == "ann/encoder" and fetched["commit"] == commit
    assert again.provenance["settings"] == {"out": ".../one", "seed": 3} and again.provenance["metrics"] == {"map": 0.5}
    assert jax_brcd.load(f"hf:ann/encoder@{commit}").space == encoder.space


def test_its_card_can_be_followed(hub, published, tmp_path, monkeypatch):
    """The program in it runs as it is printed."""
    text = (hub.root / "ann/encoder/README.md").read_text()
    assert huggingface_hub.ModelCard(text).data.library_name == "jax_brcd" and "0.5000" in text
    program = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    for name, image in zip(("a", "b", "query"), noise(3, 32, 32), strict=True):
        Image.fromarray(image).save(f"{name}.png")
        Image.open(f"{name}.png").save(f"{name}.jpg")
    found = {}
    exec(program, found)
    same(found["codes"], published[0].encode(["a.jpg", "b.jpg"]))
    assert found["distances"].shape == (1, 2)


def test_a_repository_is_published_to_again_with_a_card_of_ones_own(hub, published):
    published[0].push_to_hub("ann/again")
    before = content(hub.root / "ann/again")
    published[0].push_to_hub("ann/again", card="# Mine\n")
    after = content(hub.root / "ann/again")
    assert after["README.md"] == b"# Mine\n" != before["README.md"] and after["config.json"] == before["config.json"]
    assert after.keys() == before.keys()  # the header of safetensors is in an order of chance


def test_what_cannot_be_published_is_told_in_one_line(hub, published, monkeypatch, capfd):
    encoder = published[0]
    with pytest.raises(InputError, match="'hf:a b' names no repository of the hub"):
        encoder.push_to_hub("a b")
    with pytest.raises(InputError, match="encoders are published on the main branch; leave @v1 out"):
        encoder.push_to_hub("ann/encoder@v1")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(InputError, match=r"^ann/other: not published: the hub refuses access \(HTTP 401\); log in by `hf auth"):
        encoder.push_to_hub("ann/other")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="^ann/other: not published: http://127.0.0.1:9 cannot be reached"):
        encoder.push_to_hub("ann/other")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'jax_brcd\[hub\]'"):
        encoder.push_to_hub("ann/other")
    assert not (hub.root / "ann/other").exists() and capfd.readouterr() == ("", "")


def test_weights_without_a_head_are_no_encoder(hub):
    with pytest.raises(InputError, match="^hf:user/toy: weights of toy without a hash head, and no encoder; a run takes them "
                       "as teacher_weights or student_weights$"):
        jax_brcd.load(NAME)


def test_a_published_student_is_evaluated_and_its_teacher_brought_along_by_name(hub, made, capsys):
    out, cache, metrics, _ = made
    for name in ("teacher", "student_symmetric"):
        jax_brcd.load(out / name).push_to_hub(f"ann/{name}")
    student = "hf:ann/student_symmetric"
    evaluate.main(["--queries", student, "--database", student, "--cache-dir", str(cache)])
    printed = capsys.readouterr().out
    assert "hf:ann/student_symmetric" in printed and f"{metrics['student']['symmetric']['map']:.4f}" in printed

    def brought(weights):
        config, missed = fetch_weights(create_config(teacher="toy", teacher_weights=weights), student=False, progress=silent)
        assert missed is None
        return brought_encoder(config, "teacher_weights")

    assert brought("hf:ann/teacher")["space"] == read_config(out / "teacher")["space"]
    assert brought(NAME) is None, "weights alone are no teacher"
