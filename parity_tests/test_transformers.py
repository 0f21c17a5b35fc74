"""DINOv2, DINOv3, CLIP and SigLIP against `transformers`: every layer at four sizes, names and shapes, both ways, odd files."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from flax import nnx
from model_pairs import few_pixels, random_images, randomise, short_backbone
from transformer_pairs import COMMON, FEATURES, HIDDEN, OTHERS, PATCH, REAL, SIZE, TINY, WIDTH, ours, reference_outputs, theirs
from transformers.core_model_loading import revert_weight_conversion

from jax_brcd.encoder import create_encoder, load
from jax_brcd.models import BACKBONES, HashModel, Preprocessing, Variant, load_state, model_state
from jax_brcd.models.described import check_described
from jax_brcd.models.layouts.named import named_tensors
from jax_brcd.models.siglip import SigLIP
from jax_brcd.models.transformer import Unused
from jax_brcd.models.weights import read_weight_file
from jax_brcd.runtime.errors import InputError
from jax_brcd.stages.models import build

# float32 products summed in another order than PyTorch's
RELATIVE = 1e-4
SIZES = (SIZE, *OTHERS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The tensors that `save_pretrained` writes of a tiny reference, by its name."""
    folders = {}

    def read(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("saved") / "model"
            theirs(name).save_pretrained(folders[name])
        return read_weight_file(folders[name]).tensors
    return read


@pytest.fixture(scope="module")
def hub(saved):
    """The same in the names of DINOv2's original hub, with one tensor for queries, keys and values."""
    names = {"patch_embeddings.projection": "patch_embed.proj", "position_embeddings": "pos_embed", "embeddings.": "",
             "encoder.layer.": "blocks.", "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma",
             "attention.output.dense": "attn.proj", "weights_in": "w12", "weights_out": "w3", "layernorm": "norm"}

    def converted(name):
        state = {}
        for key, value in saved(name).items():
            for old, new in names.items():
                key = key.replace(old, new)
            state[key] = value
        for key in [key for key in state if "attention.query" in key]:
            parts = [state.pop(key.replace("query", part)) for part in ("query", "key", "value")]
            state[key.replace("attention.attention.query", "attn.qkv")] = np.concatenate(parts)
        return state
    return converted


@nnx.jit
def outputs(model, images):
    """Tokens before and after each block, and features, of batches of several sizes: one program compiles faster than four."""
    every = [list(model.hidden_states(batch)) for batch in images]
    return [(tokens, model.pool(tokens[-1])) for tokens in every]


@nnx.jit
def features(model, images):
    """Features of batches of several sizes."""
    return [model(batch) for batch in images]


def batches(sizes=SIZES):
    return [random_images(2, size, seed=size) for size in sizes]


def assert_close(found, expected, tolerance=RELATIVE):
    found, expected = np.asarray(found, np.float32), np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", TINY)
def test_every_layer_at_four_sizes_is_the_references(name, saved):
    model = ours(name)
    assert load_state(model, saved(name)).remarks == ()
    images = batches()
    for batch, (tokens, pooled) in zip(images, outputs(model, images), strict=True):
        expected_tokens, expected = reference_outputs(name, theirs(name), batch)
        assert len(tokens) == len(expected_tokens)
        for layer, expected_layer in zip(tokens, expected_tokens, strict=True):
            assert_close(layer, expected_layer)
        assert_close(pooled, expected)
        # the features of two images differ by far more than the tolerance
        assert np.std(expected, axis=0).mean() > 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "clip", "siglip"])  # of each family one: in half they compile slowly
def test_in_bfloat16_layers_are_as_near_to_float32_as_the_references(name, saved):
    model = ours(name, dtype=jnp.bfloat16)
    load_state(model, saved(name))
    half = copy.deepcopy(theirs(name)).to(torch.bfloat16)
    images = batches()
    for batch, (tokens, pooled) in zip(images, outputs(model, images), strict=True):
        expected_tokens, expected = reference_outputs(name, theirs(name), batch)
        half_tokens, half_features = reference_outputs(name, half, batch)
        assert {layer.dtype for layer in (*tokens, pooled)} == {jnp.dtype(jnp.bfloat16)}
        for found, wanted, reference in zip((*tokens, pooled), (*expected_tokens, expected), (*half_tokens, half_features),
                                            strict=True):
            scale = np.abs(wanted).max()
            error, allowed = (np.sqrt(np.mean((np.asarray(each, np.float32) - wanted) ** 2)) / scale
                              for each in (found, reference))
            # 8 significant bits give 0.4 % a rounding; where each rounds is its own
            assert 0 < error < max(1.5 * allowed, 0.004)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", TINY)
def test_the_way_back_is_bit_identical(name, saved):
    expected = saved(name)
    model = ours(name)
    load_state(model, expected)
    state = model_state(model)
    if name == "siglip":  # the names of a file with both towers
        expected = {f"vision_model.{key}": value for key, value in expected.items()}
    assert set(state) == set(expected)
    for key, tensor in expected.items():
        assert state[key].dtype == tensor.dtype and state[key].flags.c_contiguous
        np.testing.assert_array_equal(state[key], tensor, err_msg=key)


@pytest.mark.parametrize("name", ["dinov2", "dinov2 gated", "dinov2 registers"])
def test_the_hubs_layout_goes_both_ways_and_has_the_hubs_positions(name, saved, hub):
    model = ours(name)
    state = hub(name)
    assert "blocks.1.attn.qkv.weight" in state and not any("attention" in key for key in state)
    load_state(model, {f"module.{key}": value for key, value in state.items()})
    assert model.layout == "dinov2_hub"
    back = model_state(model)
    assert set(back) == set(state)
    for key, tensor in state.items():
        np.testing.assert_array_equal(back[key], tensor, err_msg=key)

    reference = copy.deepcopy(theirs(name))
    if name != "dinov2 registers":  # whose hub has no offset, but antialiases as transformers does
        reference.embeddings.interpolate_pos_encoding = lambda embeddings, height, width: hub_positions(
            reference.embeddings.position_embeddings, height, width)
    images = batches((SIZE, *OTHERS[:1], *OTHERS[-1:]))
    for batch, found in zip(images, features(model, images), strict=True):
        assert found.dtype == jnp.float32
        assert_close(found, reference_outputs(name, reference, batch)[1])
    load_state(model, saved(name))
    assert model.layout == "transformers" and set(model_state(model)) == set(saved(name))


def hub_positions(table, height, width):
    """What the hub's code adds to the tokens of an image (facebookresearch/dinov2, models/vision_transformer.py)."""
    side = SIZE // PATCH
    if height == width == SIZE:
        return table
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = [(pixels // PATCH + 0.1) / side for pixels in (height, width)]
    grid = torch.nn.functional.interpolate(grid, scale_factor=factors, mode="bicubic")
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def test_the_two_references_of_dinov2_differ_away_from_its_own_size(saved, hub):
    models = [ours("dinov2"), ours("dinov2")]
    for model, state in zip(models, (saved("dinov2"), hub("dinov2")), strict=True):
        load_state(model, state)
    own, other = (tuple(np.asarray(model.positions(side, side)) for model in models) for side in (5, 8))
    np.testing.assert_array_equal(*own)
    assert np.abs(other[0] - other[1]).max() > 1e-3


def both_towers(kind, config, **settings):
    """The state of a model with a text tower, as its file has it, and what of it is the vision tower's."""
    text = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": HIDDEN,
            "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    model = randomise(kind(config(vision_config={**COMMON, "intermediate_size": HIDDEN}, text_config=text, **settings)))
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    return state, {key: value for key, value in state.items() if key.startswith(("vision_model.", "visual_projection."))}


@pytest.mark.parametrize(("name", "kind", "config", "settings"), [
    ("clip", transformers.CLIPModel, transformers.CLIPConfig, {"projection_dim": FEATURES}),
    ("siglip", transformers.SiglipModel, transformers.SiglipConfig, {}),
])
def test_a_text_tower_is_left_out_with_a_remark(name, kind, config, settings):
    state, vision = both_towers(kind, config, **settings)
    model = HashModel(ours(name), 8, rngs=nnx.Rngs(0))
    # older files hold the numbers of positions too
    loaded = load_state(model, {**state, "vision_model.embeddings.position_ids": np.arange(26)[None]})
    assert loaded.remarks == (f"the text tower beside the vision tower ({len(state) - len(vision)} tensors) is left out",)
    assert not loaded.head
    found = model_state(model.backbone)
    assert set(found) == set(vision)
    for key, tensor in vision.items():
        np.testing.assert_array_equal(found[key], tensor, err_msg=key)


def test_a_classifiers_file_is_read_and_its_head_left_out(saved):
    state = {f"dinov2.{key}": value for key, value in saved("dinov2").items()}
    state |= {"classifier.weight": np.ones((3, 2 * WIDTH), np.float32), "classifier.bias": np.ones(3, np.float32)}
    model = HashModel(ours("dinov2"), 8, rngs=nnx.Rngs(0))
    loaded = load_state(model, state, any_head=True)
    assert not loaded.head and loaded.remarks == ("its head of 3 outputs is left out: 8 bits are asked for",)
    with pytest.raises(InputError, match=r"mis-shaped classifier.weight \(3, 64\) instead of \(8, 32\)"):
        load_state(model, state)
    np.testing.assert_array_equal(model_state(model)["layernorm.weight"], saved("dinov2")["layernorm.weight"])


def test_a_hash_model_goes_both_ways(saved, tmp_path):
    models = [HashModel(ours("dinov3"), 8, rngs=nnx.Rngs(seed)) for seed in range(2)]
    load_state(models[0], saved("dinov3"))
    state = model_state(models[0])
    safetensors.numpy.save_file(state, tmp_path / "hash.safetensors")
    assert load_state(models[1], read_weight_file(tmp_path / "hash.safetensors").tensors).head
    for key, value in model_state(models[1]).items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)


def test_what_is_missing_unknown_and_mis_shaped_is_told_at_once(saved):
    state = saved("clip")
    model = ours("clip")
    del state["visual_projection.weight"]
    state["vision_model.encoder.layers.0.self_attn.q_proj.weight"] = np.zeros((WIDTH, 8), np.float32)
    state["vision_model.mask_token"] = np.zeros(WIDTH, np.float32)
    with pytest.raises(InputError, match=r"missing visual_projection.weight; unknown vision_model.mask_token; mis-shaped .*"
                                         r"q_proj.weight \(32, 8\) instead of \(32, 32\)"):
        load_state(model, state)
    with pytest.raises(InputError, match="layout dinov2_hub: no layout of CLIP; give transformers"):
        load_state(model, state, layout="dinov2_hub")
    with pytest.raises(InputError, match="layout transformers: no layout of resnet8; give torchvision"):
        load_state(short_backbone("resnet8"), state, layout="transformers")


def test_a_mask_token_is_kept_but_never_learnt_and_may_be_missing(saved):
    state = saved("dinov2")
    model = ours("dinov2")
    load_state(model, state)
    assert isinstance(model.mask_token, Unused) and "mask_token" not in nnx.state(model, nnx.Param)
    np.testing.assert_array_equal(model.mask_token[...], state["embeddings.mask_token"])
    without = {key: value for key, value in state.items() if key != "embeddings.mask_token"}
    load_state(model, without)
    np.testing.assert_array_equal(model.mask_token[...], state["embeddings.mask_token"])


def test_a_size_that_is_no_whole_number_of_patches_is_refused():
    with pytest.raises(InputError, match="size 22: DINOv2 takes multiples of 4 pixels; give 20 or 24"):
        ours("dinov2")(jnp.zeros((1, 24, 22, 3)))
    # but for the size of the position embedding: SigLIP's so400m sees 27 patches of 14 pixels of 384
    odd = nnx.eval_shape(lambda: SigLIP(22, PATCH, 1, 2, WIDTH, HIDDEN, rngs=nnx.Rngs(0)))
    seen = nnx.eval_shape(lambda model: model(jnp.zeros((1, 22, 22, 3))), odd)
    assert seen.shape == (1, WIDTH) and odd.sizes == "multiples of 4 pixels or 22"


@pytest.mark.parametrize("name", REAL)
def test_a_real_variant_has_the_names_and_shapes_of_the_published_model(name):
    kind, config = REAL[name]
    depth, config.num_hidden_layers = config.num_hidden_layers, 1
    with torch.device("meta"):
        model = kind(config)
    config.num_hidden_layers = depth
    files = revert_weight_conversion(model, model.state_dict())
    backbone = short_backbone(name)
    expected = {key if key.startswith(("vision_model.", "visual_projection.")) or not name.startswith("siglip") else
                f"vision_model.{key}": tuple(tensor.shape) for key, tensor in files.items()}
    found = named_tensors(backbone, backbone.transformers_renames)
    assert {key: tensor.shape for key, tensor in found.items()} == expected
    build = BACKBONES[name].build
    assert (build.args[2], build.args[3]) == (depth, config.num_attention_heads)
    assert backbone.layers[0].ln_1.epsilon == config.layer_norm_eps
    check_described(said := config.to_dict(), name)
    for key, other in (("hidden_act", "relu"), ("num_attention_heads", 1), ("layer_norm_eps", 0.5), ("num_hidden_layers", 1)):
        with pytest.raises(InputError, match=f"its config.json says that it is of {key} {other!r} instead of {said[key]!r}"):
            check_described({**said, key: other}, name)


PROCESSORS = {"clip": transformers.CLIPImageProcessor, "siglip": transformers.SiglipImageProcessor,
              "dinov3": transformers.DINOv3ViTImageProcessor}
RESAMPLED = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@pytest.mark.parametrize("name", ["clip_vit_b_32", "siglip_base_patch16_224", "dinov3_vitb16"])
def test_images_are_made_ready_as_by_the_references_processor(name):
    ours, theirs = BACKBONES[name].preprocessing, PROCESSORS[name.split("_")[0]]()
    assert ours.mean == pytest.approx(theirs.image_mean) and ours.std == pytest.approx(theirs.image_std)
    assert ours.interpolation == RESAMPLED[int(theirs.resample)]
    size = dict(theirs.size)
    if getattr(theirs, "do_center_crop", False):
        assert (ours.resize, ours.size) == (size["shortest_edge"], theirs.crop_size["height"])
    else:  # the whole image, whatever its shape
        assert ours.resize is None and ours.size == size["height"] == size["width"]


def test_the_processors_of_which_only_files_tell_are_as_published():
    """What preprocessor_config.json says of facebook/dinov2-* and google/siglip2-*: other than their classes' defaults."""
    for name in (name for name in BACKBONES if name.startswith("dinov2")):
        ours = BACKBONES[name].preprocessing
        assert (ours.size, ours.resize, ours.interpolation) == (224, 256, "bicubic")
        assert ours.mean == (0.485, 0.456, 0.406) and ours.std == (0.229, 0.224, 0.225)
    for name in ("base_patch16_224", "so400m_patch14_384"):
        first, second = (BACKBONES[f"{family}_{name}"].preprocessing for family in ("siglip", "siglip2"))
        assert dataclasses.replace(second, interpolation="bicubic") == first and second.interpolation == "bilinear"


@pytest.mark.parametrize("layout", ["transformers", "dinov2_hub"])
def test_weights_make_a_runs_model_and_its_encoder_keeps_their_layout(layout, saved, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    BACKBONES.register("tiny")(Variant(TINY["dinov2"].ours, Preprocessing(32)))
    state = saved("dinov2") if layout == "transformers" else hub("dinov2")
    if layout == "transformers":
        weights = tmp_path / "tiny-dinov2"
        theirs("dinov2").save_pretrained(weights)
    else:
        weights = tmp_path / "tiny_pretrain.pth"
        torch.save({key: torch.from_numpy(value) for key, value in state.items()}, weights)
    built = build("tiny", 8, weights, option="teacher_weights", seed=0, dtype="float32", cache_dir=tmp_path)
    assert built.remarks == () and not built.head_came
    encoder = create_encoder(built.model, "tiny", Preprocessing(32), bits=8, role="teacher")
    again = load(encoder.save(tmp_path / "encoder")).model
    assert again.backbone.layout == layout and again.backbone.resampling == built.model.backbone.resampling
    kept = model_state(again)
    assert set(kept) == {*state, "classifier.weight", "classifier.bias"}
    for key, value in state.items():
        np.testing.assert_array_equal(kept[key], value, err_msg=key)


def test_all_variants_of_these_families_are_compared():
    families = ("dinov2", "dinov3", "clip", "siglip")
    assert set(REAL) == {name for name in BACKBONES if name.startswith(families)}
    assert few_pixels(short_backbone("dinov2_vits14"), 64) == 56
