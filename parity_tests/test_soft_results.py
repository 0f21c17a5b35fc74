"""What soft queries and cosines are measured from, and how tables tell them: with blanks, and of older runs not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoders import noise, random_encoder

from jax_brcd.models.placed import FEW
from jax_brcd.report.page import Report, write_report
from jax_brcd.report.results import MEASURES
from jax_brcd.report.table import pair_table, results_table
from jax_brcd.stages.context import view_of
from jax_brcd.stages.evaluation import same_backbone
from jax_brcd.stages.parts import KeptParts, PixelParts
from jax_brcd.views.augmentation import evaluation_views
from jax_brcd.views.encoding import encode

PROTOCOL = {"dataset": "digits", "split": "all", "queries": 5, "database": 9, "k": 1000,
            "ties": "stable", "bits": 64, "seed": 0}
IMAGES = noise(FEW + 3, 40, 44)


@pytest.fixture(scope="module")
def encoder():
    return random_encoder()


def test_features_are_what_the_backbone_gives_the_head(encoder):
    found = encoder.features(iter(IMAGES))
    views = evaluation_views(jnp.asarray(IMAGES), **view_of(encoder.preprocessing))
    with jax.default_matmul_precision("highest"):
        expected = encoder.model.backbone(views, train=False)
    assert found.dtype == np.float32 and found.shape == (len(IMAGES), encoder.model.backbone.features)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(encoder.features(IMAGES[0]), expected[:1], atol=2e-5)
    assert encoder.features([]).shape == (0, encoder.model.backbone.features)


def test_the_codes_of_a_part_are_the_same_bit_for_bit_with_what_is_behind_them(encoder):
    model, view = encoder.model, view_of(encoder.preprocessing)
    pixels = PixelParts({"test": IMAGES}, view)
    features = encode(model.backbone, IMAGES, description="", **view)
    logits = encode(model, IMAGES, description="", **view)
    for parts, of_model in ((pixels, logits), (KeptParts({"test": features}), logits)):
        encoded = parts.outputs(model, "test")
        np.testing.assert_array_equal(encoded.codes, parts.codes(model, "test"))
        np.testing.assert_array_equal(encoded.codes, np.sign(encoded.logits))
        np.testing.assert_allclose(encoded.features, features, atol=1e-6)
        np.testing.assert_allclose(encoded.logits, of_model, atol=1e-5)
    np.testing.assert_array_equal(pixels.outputs(model, "test").logits, logits)


def test_features_are_compared_within_one_backbone_alone(encoder):
    other_head, other = random_encoder(bits=8), random_encoder(seed=4)
    other_head.model.backbone = encoder.model.backbone
    assert same_backbone(encoder, encoder) and same_backbone(encoder, other_head) and not same_backbone(encoder, other)


def metrics(names=MEASURES, student="resnet8"):
    def row(**others):
        return {name: number / 10 for number, name in enumerate(names, 1)} | others

    searches = {"symmetric": row(), "asymmetric": row(**({"cosine_map": None} if "cosine_map" in names else {}))}
    costs = {role: {"model": model, "parameters": 81_600, "flops": 2.34e7, "images_per_second": 2851.0}
             for role, model in (("teacher", "vit_lite_4_8"), ("student", student))}
    return {"protocol": PROTOCOL, "teacher": row(), "student": searches, "costs": costs, "remarks": ["A remark."]}


def test_the_table_holds_each_ranking_and_a_blank_where_there_is_none():
    lines = results_table(metrics(student="mobilenet_v3_large")).splitlines()
    begin = [lines[0].index(name) for name in ("mAP@1000", "tie-aware", "soft mAP", "cosine mAP", "precision", "parameters")]
    assert begin == sorted(begin) and max(map(len, lines)) < 150
    for line, cosine in ((2, "0.4000"), (3, "0.4000"), (4, "")):
        assert lines[line][: begin[3]].split()[-3:] == ["0.1000", "0.2000", "0.3000"]
        assert lines[line][begin[3] : begin[4]].strip() == cosine and "0.5000" in lines[line][begin[4] : begin[5]]
    assert lines[5].startswith("digits, split: all") and lines[7:] == ["A remark."]
    assert lines[6] == ("soft mAP: ranked by the query's logits against the database's bits; cosine mAP: by features of one "
                        "backbone on both sides")


def test_the_results_of_an_earlier_version_are_told_as_they_were(tmp_path):
    earlier = metrics(names=("map", "tie_aware_map", "precision"))
    lines = results_table(earlier).splitlines()
    assert lines[0].split() == ["model", "mAP@1000", "tie-aware", "mAP@1000", "precision@1000", "parameters", "FLOPs/image",
                                "images/s"]
    assert lines[2].split()[2:5] == ["0.1000", "0.2000", "0.3000"] and lines[6:] == ["A remark."]
    for found, told in ((earlier, False), (metrics(), True)):
        page = write_report(tmp_path, Report("a run", {}, found, [], {})).read_text()
        assert ("Soft mAP: ranked by" in page) == told == ("<th>cosine mAP</th>" in page)


def test_of_codes_alone_no_cosine_is_told():
    score = {"map": 0.1, "tie_aware_map": 0.2, "soft_map": 0.3, "cosine_map": None, "precision": 0.5}
    lines = pair_table("a", "codes.safetensors", score, PROTOCOL).splitlines()
    assert lines[2].split() == ["a", "codes.safetensors", "0.1000", "0.2000", "0.3000", "0.5000"]
    assert lines[-1].endswith("no cosine mAP, which needs features of one backbone on both sides")
