"""Both frameworks at two sizes: the same weights give the same codes and the same search quality; and torch_ref's views."""

import numpy as np
import pytest
import torch
from image_trees import write_lists
from safetensors.torch import save_file

from jax_brcd.retrieval import PackedCodes
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.run import run
from torch_ref import distill
from torch_ref.models import create_hash_model, features_of, get_head

BITS, LARGE, SMALL = 16, 40, 24
TOLD = {"dataset": "list", "k": 5, "teacher": "vit_lite_4_8", "teacher_size": LARGE, "student": "resnet8", "student_size": SMALL,
        "bits": BITS, "views": 2, "epochs": 0, "method": "sskd", "decode_workers": 0}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A run on image files whose teacher and student come from files, with heads that halve the data set by each bit."""
    place = tmp_path_factory.mktemp("parity")
    told = {**TOLD, "data_dir": write_lists(place / "tree", 6, 24, 12), "cache_dir": place / "cache",
            "teacher_weights": "random", "student_weights": "random"}
    seen = distill.load_experiment(create_config(**told))
    images = distill.channels_first(seen.dataset.database.images)
    torch.manual_seed(0)
    for role in ("teacher", "student"):
        model = create_hash_model(told[role], BITS).eval()  # at its own size, as weights are published
        sized = create_hash_model(told[role], BITS, size=told[f"{role}_size"]).eval()
        weights = place / f"{role}.safetensors"
        save_file(model.state_dict(), weights)
        distill.models.load_weights(sized, told[role], str(weights), place)
        with torch.no_grad():
            features, head = features_of(sized, seen.still[role](images)), get_head(model)
            spread = features.std(dim=0)
            head.weight /= spread + 0.1 * spread.max()
            head.bias.copy_(-(features @ head.weight.T).mean(dim=0))
        save_file(model.state_dict(), weights)
        told[f"{role}_weights"] = str(weights)
    return told


def test_codes_and_map_of_a_run_at_two_sizes_are_torch_refs(settings, tmp_path):
    """Codes but for 1 % of bits, whose logits are near to 0; mAP within 0.02. At a size of the other model a tenth would differ."""
    ours = run(create_config(**settings, out=tmp_path / "jax"))
    config = create_config(**settings, out=tmp_path / "torch")
    theirs = distill.run(config)
    assert theirs["protocol"]["sizes"] == ours["protocol"]["sizes"] == {"teacher": LARGE, "student": SMALL}
    experiment = distill.load_experiment(config)
    with np.load(tmp_path / "jax" / "codes.npz") as packed:
        for role, other, name in (("teacher", "student", "teacher"), ("student", "teacher", "symmetric")):
            model, came = distill.build(settings[role], settings[f"{role}_weights"], settings[f"{role}_size"], config)
            assert came
            for part in ("database", "test"):
                codes = PackedCodes(packed[f"{name}_{part}"], BITS).unpack()
                assert (codes != experiment.codes(role, model, part)).mean() < 0.01
            if role == "student":  # which takes any size
                assert (codes != experiment.codes(other, model, "test")).mean() > 0.05
    assert ours["teacher"]["map"] == pytest.approx(theirs["teacher"]["map"], abs=0.02)
    for search in ("symmetric", "asymmetric"):
        assert ours["student"][search]["map"] == pytest.approx(theirs["student"][search]["map"], abs=0.02)


def test_its_views_are_the_same_at_both_sizes(settings):
    experiment = distill.load_experiment(create_config(**settings))
    indices, numbers = torch.arange(6), torch.zeros(6, dtype=torch.long)
    for draw in (lambda role: experiment.view_pixels(role, 1),
                 lambda role: experiment.fresh_pixels(role, indices, numbers, None, None)):
        large, small = draw("teacher"), draw("student")
        assert large.shape[2:] == (LARGE, LARGE) and small.shape[2:] == (SMALL, SMALL)
        shrunk = torch.nn.functional.interpolate(large, (SMALL, SMALL), mode="bilinear", antialias=True)
        own, others = ((shrunk.roll(shift, dims=0) - small).abs().mean() for shift in (0, 1))
        assert own < 0.25 and 2 * own < others
