"""Model cards of encoders: what they say of what is known and of what is not, and that hubs can read them."""

import json
import re

import huggingface_hub
import pytest

from jax_brcd.hub import model_card, without_places

CONFIG = {
    "format": 1, "backbone": "resnet18", "layout": "torchvision", "dtype": "float32", "bits": 64, "role": "student",
    "space": "vit_b_16-0123", "preprocessing": {"size": 224, "resize": 256, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2],
                                                "interpolation": "bilinear"},
    "provenance": {
        "version": "0.1.0", "search": "asymmetric", "metrics": {"map": 0.56789, "tie_aware_map": 0.55, "precision": 0.5},
        "protocol": {"dataset": "cifar10", "split": "published", "queries": 5000, "database": 50000, "training": 5000,
                     "k": 1000, "ties": "stable", "bits": 64, "seed": 3},
        "settings": {"teacher": "vit_b_16", "teacher_weights": "imagenet", "teacher_objective": "itq", "student": "resnet18",
                     "student_weights": "hf:user/base", "method": "brcd", "epochs": 400, "lr": 0.001, "data_dir": None},
        "weights": {"student": {"repository": "user/base", "revision": "main", "commit": "c0ffee", "sha256": {}}}}}


def card(**provenance):
    return model_card({**CONFIG, "provenance": {**CONFIG["provenance"], **provenance}}, "user/name")


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]) for line in lines]


def test_a_card_says_what_is_known():
    text = card()
    assert dict(row for row in rows(text) if len(row) == 2).items() >= {
        "code length": "64 bits", "code space": "`vit_b_16-0123`", "role": "student, for asymmetric search",
        "data set": "cifar10, split: published", "made from": "user/base at commit c0ffee", "k": "1000", "queries": "5000",
        "seed": "3", "ties": "stable", "teacher_objective": "itq", "method": "brcd", "lr": "0.001",
        "images": "RGB, 224 x 224 pixels cut from a shorter side of 256, mean [0.5, 0.4, 0.3], deviation [0.2, 0.2, 0.2]",
    }.items()
    at = rows(text).index(("mAP@1000", "tie-aware mAP@1000", "precision@1000"))
    assert rows(text)[at + 2] == ("0.5679", "0.5500", "0.5000")
    assert "Queries are its codes, the database is its teacher's." in text
    assert 'encoder = jax_brcd.load("hf:user/name")' in text and "A licence is not stated" in text


def test_a_card_tells_every_measure_it_knows_and_how_they_rank():
    text = card(metrics={"map": 0.5, "soft_map": 0.6, "cosine_map": 0.7, "tie_aware_map": None})
    at = rows(text).index(("mAP@1000", "soft mAP@1000", "cosine mAP@1000"))
    assert rows(text)[at + 2] == ("0.5000", "0.6000", "0.7000")
    assert "the soft one ranks by the query's logits" in text and "the cosine one by features" in text
    assert "soft" not in card() and "cosine" not in card()


def test_the_card_of_an_encoder_over_embeddings_speaks_of_rows():
    text = model_card({**CONFIG, "backbone": "embeddings", "layout": "plain", "role": "teacher", "preprocessing": {"width": 768}},
                      "user/name")
    assert "it turns a row of 768 numbers into 64 bits, and rows that are alike" in text and "turns an image" not in text
    assert ("embeddings", "768 numbers a row") in rows(text)
    python = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert "import numpy as np" in python and 'np.load("embeddings.npy"))  # any real numbers (n, 768)' in python
    compile(python, "card", "exec")


def test_the_hub_reads_its_metadata():
    data = huggingface_hub.ModelCard(card()).data.to_dict()
    assert data["library_name"] == "jax_brcd" and data["pipeline_tag"] == "image-feature-extraction"
    assert {"hashing", "image-retrieval"} <= set(data["tags"]) and data["base_model"] == "user/base" and "license" not in data
    assert "base_model" not in huggingface_hub.ModelCard(card(weights={})).data.to_dict()


@pytest.mark.parametrize("provenance", [
    {}, {"metrics": None}, {"metrics": {"map": "high"}, "protocol": [1], "settings": "many", "weights": 3}])
def test_a_card_says_what_is_not_known(provenance):
    text = model_card({**CONFIG, "provenance": provenance}, "user/name")
    assert "It was not measured, or its folder does not say how well it searches." in text
    assert "Its folder does not say how." in text
    assert re.search(r"Its provenance holds no `protocol`, (no `metrics`, )?no `settings`\.", text)
    assert ("data set", "unknown, split: unknown") in rows(text) and "mAP" not in text


def test_what_a_user_wrote_does_not_break_the_markdown():
    text = card(protocol={"dataset": "a|b\n# c", "split": "<script>`x`"}, notes=["one\n\ntwo | three"])
    assert ("data set", "a\\|b # c, split: &lt;script>'x'") in rows(text) and "\n- one two \\| three\n" in text
    assert "<script" not in text and text.count("```") == 4
    widths = [len(row) for row in rows(text)]
    assert set(widths) == {2, 3}


@pytest.mark.parametrize(("role", "search", "line"), [
    ("teacher", None, "Queries and database are its own codes."),
    ("student", "symmetric", "Queries and database are its own codes."),
    ("student", None, "Which codes were searched is not known.")])
def test_a_card_says_what_was_searched(role, search, line):
    provenance = {**CONFIG["provenance"], "search": search} if search else {
        name: value for name, value in CONFIG["provenance"].items() if name != "search"}
    assert line in model_card({**CONFIG, "role": role, "provenance": provenance}, "user/name")


def test_paths_of_this_machine_are_not_published():
    given = {"settings": {"out": "/home/ann/runs/one", "cache_dir": "~/.cache/x", "data_dir": "photos/cats",
                          "teacher_weights": "hf:a/b", "k": 3, "win": "C:\\Users\\ann\\w.pth", "lr": 0.1, "none": None},
             "notes": ["/a/b/c", "of /a/b"], "home": "~"}
    assert without_places(given) == {
        "settings": {"out": ".../one", "cache_dir": ".../x", "data_dir": "photos/cats", "teacher_weights": "hf:a/b", "k": 3,
                     "win": ".../w.pth", "lr": 0.1, "none": None}, "notes": [".../c", "of /a/b"], "home": ".../~"}
    assert json.dumps(without_places(given))
