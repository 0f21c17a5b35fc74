"""Foundation models as teachers in both frameworks: the same weights give the same codes and the same search quality.

torch_ref runs the models of `transformers`, random and small here.
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from image_trees import write_lists
from toy_runs import toys
from transformer_pairs import FEATURES, HIDDEN, REAL, SIZE, TINY, theirs

from jax_brcd.encoder import TEACHER, create_encoder, load
from jax_brcd.models import BACKBONES, Preprocessing, Variant
from jax_brcd.models.weights import read_weight_file
from jax_brcd.retrieval import PackedCodes, mean_average_precision
from jax_brcd.runtime.errors import InputError
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.models import build
from jax_brcd.stages.run import run_teacher
from jax_brcd.views.augmentation import evaluation_views
from torch_ref import distill, foundation, models, retrieval
from torch_ref.augment import evaluation_view, training_view

BITS, LARGER = 16, 32  # pixels, for which positions are resampled
NEAR = 1e-4  # a logit this near to 0 may have either sign: float32 products are summed in another order
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SMALL = {"mlp_ratio": 2}
BUILDERS = {
    "dinov2": foundation.vit(foundation.DINOV2, SIZE, 4, 2, 2, 32, **SMALL),
    "dinov2 gated": foundation.vit(foundation.DINOV2, SIZE, 4, 2, 2, 32, use_swiglu_ffn=True, **SMALL),
    "dinov2 registers": foundation.vit(foundation.REGISTERS, SIZE, 4, 2, 2, 32, num_register_tokens=3, **SMALL),
    "dinov3": foundation.vit(foundation.DINOV3, SIZE, 4, 2, 2, 32, num_register_tokens=3, intermediate_size=HIDDEN),
    "clip": foundation.vit(foundation.CLIP, SIZE, 4, 2, 2, 32, intermediate_size=HIDDEN, projection_dim=FEATURES),
    "siglip": foundation.vit(foundation.SIGLIP, SIZE, 4, 2, 2, 32, intermediate_size=HIDDEN),
}
# families, and the forms of their heads
CASES = [(name, None) for name in TINY if name != "dinov2 gated"] + [("dinov2 gated", "hashcoder_small")]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Tiny variants in both frameworks' registries."""
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    for name, tiny in TINY.items():
        BACKBONES.register(name)(Variant(tiny.ours, Preprocessing(SIZE, mean=MEAN, std=STD, interpolation="bicubic")))
        monkeypatch.setitem(models.BUILDERS, name, BUILDERS[name])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder that `save_pretrained` writes of a tiny model of `transformers`, by its name."""
    def folder(name):
        place = tmp_path_factory.getbasetemp() / f"saved {name}"
        if not place.exists():
            theirs(name).save_pretrained(place)
        return place
    return folder


def torch_teacher(name, weights, images=None, form=None):
    """A teacher of torch_ref; with normalised images its head halves them by each bit."""
    torch.manual_seed(0)
    model = models.create_hash_model(name, BITS, form).eval()
    came = models.load_weights(model, name, str(weights), weights)
    if images is not None:
        with torch.no_grad():
            features, head = models.features_of(model, images), models.get_head(model)
            if form is None:
                head.weight /= features.std(dim=0)
                head.bias.copy_(-(features @ head.weight.T).mean(dim=0))
            else:
                head[-1].momentum = 1.0
                head.train()(features)
                model.eval()
    return model, came


def pictures(size):
    """64 images of four classes, each a pattern under noise, uint8; their labels, one-hot."""
    random = np.random.default_rng(0)
    labels = np.arange(64) % 4
    patterns = random.integers(256, size=(4, size, size, 3))
    mixed = 0.7 * patterns[labels] + 0.3 * random.integers(256, size=(64, size, size, 3))
    return mixed.astype(np.uint8), np.eye(4, dtype=np.float32)[labels]


@nnx.jit
def logits_of(model, batches):
    """Of batches of several sizes: one program."""
    return [model(batch) for batch in batches]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_codes_and_map_of_the_same_weights_are_the_same(name, form, saved, tmp_path):
    images, labels = zip(*map(pictures, (SIZE, LARGER)), strict=True)
    views = [evaluation_view(batch.shape[1], mean=MEAN, std=STD)(distill.channels_first(batch)) for batch in images]
    reference, came = torch_teacher(name, saved(name), views[0], form)
    assert not came
    file = tmp_path / "teacher.safetensors"
    distill.save(reference, file)
    ours = build(name, BITS, file, option="teacher_weights", seed=1, dtype="float32", cache_dir=tmp_path, any_form=True)
    assert ours.head_came and ours.model.form == form
    found = logits_of(ours.model, [jnp.asarray(view.permute(0, 2, 3, 1).numpy()) for view in views])
    with torch.inference_mode():
        expected = [reference(view).numpy() for view in views]
    for logits, wanted, label in zip(found, expected, labels, strict=True):
        logits = np.asarray(logits)
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=NEAR * np.abs(wanted).max())
        near = np.abs(wanted) < NEAR
        assert near.mean() < 0.01 and 0.2 < (wanted > 0).mean() < 0.8
        codes, theirs_ = np.sign(np.where(near, wanted, logits)), np.sign(wanted)
        np.testing.assert_array_equal(codes, theirs_)
        queries, database, few = slice(None, 16), slice(16, None), 20
        score = mean_average_precision(codes[queries], codes[database], label[queries], label[database], few)
        assert score > 0.4  # of random codes 0.25 are relevant
        assert score == pytest.approx(retrieval.mean_average_precision(
            theirs_[queries], theirs_[database], label[queries], label[database], few), abs=1e-6)

    encoder = create_encoder(ours.model, name, BACKBONES[name].preprocessing, bits=BITS, role="teacher")
    folder = encoder.save(tmp_path / "encoder")
    again, came = torch_teacher(name, folder, form=models.form_of(str(folder)))
    assert came and again.form == form
    for key, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_a_teacher_by_itq_is_the_same_in_both_frameworks(saved, tmp_path):
    """From images to pixels, codes (all but 1 % of bits, whose logits are near 0) and mAP."""
    told = {"dataset": "list", "data_dir": write_lists(tmp_path / "tree", 24, 24, 12), "decode_workers": 0, "k": 5, "bits": 8,
            "teacher": "siglip", "teacher_weights": saved("siglip") / "model.safetensors", "teacher_objective": "itq",
            "fresh_views": True, "cache_dir": tmp_path / "cache"}
    with toys():  # without plots
        ours = run_teacher(create_config(**told, out=tmp_path / "jax"))
    experiment = distill.load_experiment(create_config(**told))
    teacher, _ = distill.run_teacher(experiment)
    score = experiment.scores(*(experiment.encoded(TEACHER, teacher, part) for part in ("test", "database")), alike=True)
    images, meant = experiment.dataset.test.images, load(tmp_path / "jax" / "teacher").preprocessing
    np.testing.assert_allclose(evaluation_views(jnp.asarray(images), **vars(meant)),
                               experiment.still[TEACHER](distill.channels_first(images)).permute(0, 2, 3, 1), rtol=0, atol=1e-4)
    with np.load(tmp_path / "jax" / "codes.npz") as packed:
        for part in ("database", "test"):
            codes = PackedCodes(packed[f"teacher_{part}"], 8).unpack()
            assert (codes != experiment.codes(TEACHER, teacher, part)).mean() < 0.01, part
    assert ours["teacher"]["map"] == pytest.approx(score["map"], abs=0.002)
    assert ours["teacher"]["cosine_map"] == pytest.approx(score["cosine_map"], abs=0.002)
    assert score["map"] > 0.5  # a third of the images are relevant


def test_views_have_the_colours_and_the_interpolation_of_the_variant():
    images, _ = pictures(33)
    told = {"size": SIZE, "resize": 23, "mean": MEAN, "std": STD, "interpolation": "bicubic"}
    ours = jax.jit(evaluation_views, static_argnames=told)(images[:3], **told)
    theirs_ = evaluation_view(**told)(distill.channels_first(images[:3]))
    np.testing.assert_allclose(ours, theirs_.permute(0, 2, 3, 1), rtol=0, atol=1e-4)
    torch.manual_seed(1)
    published = training_view(SIZE, flip=True)(torch.tensor(images[0]).movedim(2, 0))
    torch.manual_seed(1)
    own = training_view(SIZE, flip=True, mean=MEAN, std=STD)(torch.tensor(images[0]).movedim(2, 0))
    plain = (torch.tensor(part)[:, None, None] for part in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), MEAN, STD))
    mean, std, own_mean, own_std = plain
    torch.testing.assert_close(own * own_std + own_mean, published * std + mean)


def test_every_variant_is_built_with_the_published_shapes():
    assert set(foundation.BUILDERS) == set(REAL)
    for name, (kind, config) in REAL.items():
        build_it = foundation.BUILDERS[name]
        family, = build_it.args
        assert family.model == kind.__name__ and type(config).__name__ == family.config
        assert type(config)(**build_it.keywords).to_dict() == config.to_dict(), name


def test_weights_with_a_text_tower_or_a_classifier_are_read_and_others_refused(saved, tmp_path):
    state = {key: torch.from_numpy(value) for key, value in read_weight_file(saved("siglip")).tensors.items()}
    model, _ = torch_teacher("siglip", saved("siglip"))
    head = {key: value for key, value in model.state_dict().items() if key.startswith("classifier.")}
    both = {**{f"vision_model.{key}": value + 1 for key, value in state.items()}, **head, "logit_scale": torch.ones(1),
            "text_model.embeddings.position_ids": torch.zeros(1, 5)}
    model.load_state_dict(both)
    for key, value in state.items():
        assert torch.equal(model.state_dict()[key], value + 1), key
    broken = {**state, **head, "norm.weight": torch.ones(3), "post_layernorm.bias": torch.ones(3)}
    del broken["head.probe"]
    with pytest.raises(InputError, match="do not fit SiglipVisionModel: missing head.probe; unknown norm.weight; mis-shaped "
                                         "post_layernorm.bias; give weights of it"):
        model.load_state_dict(broken)
    assert torch.equal(model.state_dict()["post_layernorm.bias"], state["post_layernorm.bias"] + 1)

    state = {f"dinov2.{key}": value for key, value in theirs("dinov2").state_dict().items() if key != "embeddings.mask_token"}
    torch.save({**state, "classifier.weight": torch.ones(3, 64), "classifier.bias": torch.ones(3)}, tmp_path / "classifier.pt")
    model, came = torch_teacher("dinov2", tmp_path / "classifier.pt")
    assert not came and models.get_head(model).out_features == BITS
    assert torch.equal(model.tower.layernorm.weight, theirs("dinov2").layernorm.weight)


def test_the_reference_imports_transformers_only_for_its_models():
    code = "import sys, torch_ref.foundation; assert 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
