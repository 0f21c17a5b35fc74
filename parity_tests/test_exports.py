"""Exports as programs: each gives the encoder's bits, is tried before it is there, and leaves what was there where it fails."""

import contextlib
import dataclasses
import functools
import io
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
import torchvision
from encoders import Dropping, noise, random_encoder
from flax import nnx
from onnx import helper
from PIL import Image
from transformer_pairs import TINY

from jax_brcd.data import ImageDataset, Images
from jax_brcd.encoder import create_encoder, load
from jax_brcd.export import EXPORTERS, Material, TriedExporter, export, graphs, material, quantization
from jax_brcd.export.__main__ import dataset_of, main
from jax_brcd.export.onnx import ANY_SIZE, SQUARES, core_model
from jax_brcd.export.reference import reference_model
from jax_brcd.export.sessions import open_session, runner
from jax_brcd.export.trial import NEAR as NEAR_IN
from jax_brcd.export.trial import compare, inputs_for, of_its_size, try_any_size, try_batches
from jax_brcd.models import BACKBONES, Preprocessing, Variant, create_hash_model
from jax_brcd.models.rows import RowFormat, create_row_model
from jax_brcd.models.vit import VisionTransformer
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.progress import silent
from jax_brcd.settings.command_line import run_command
from jax_brcd.stages import evaluation
from jax_brcd.stages.configuration import create_config
from jax_brcd.views.fitting import fitted_view
from torch_ref import foundation, models
from torch_ref.models import create_hash_model as create_torch_model

pytestmark = pytest.mark.long

SIZE, OTHER = 20, 24  # pixels: which the positions of the tiny transformers are for, and others
HIDDEN = {"intermediate_size": 64}
# families: ours, PyTorch's, and whether their graph in ONNX is run too
TOWERS = {
    "vit_tiny": (functools.partial(VisionTransformer, SIZE, 4, 2, 2, 32, 64),
                 functools.partial(torchvision.models.VisionTransformer, image_size=SIZE, patch_size=4, num_layers=2, num_heads=2,
                                   hidden_dim=32, mlp_dim=64), True),
    "dinov2": (TINY["dinov2"].ours, foundation.vit(foundation.DINOV2, SIZE, 4, 2, 2, 32, mlp_ratio=2), True),
    "dinov3": (TINY["dinov3"].ours, foundation.vit(foundation.DINOV3, SIZE, 4, 2, 2, 32, num_register_tokens=3, **HIDDEN),
               False),
    "clip": (TINY["clip"].ours, foundation.vit(foundation.CLIP, SIZE, 4, 2, 2, 32, projection_dim=16, **HIDDEN), False),
    "siglip": (TINY["siglip"].ours, foundation.vit(foundation.SIGLIP, SIZE, 4, 2, 2, 32, **HIDDEN), False),
}

NEAR = NEAR_IN["float32"]


@pytest.fixture(scope="module")
def encoder():
    return random_encoder()


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    """The encoder in all formats that are tried."""
    place = tmp_path_factory.mktemp("exports") / "new"
    for to in ("onnx", "stablehlo", "torch"):
        export(encoder, to, place, images=list(noise(4, 40, 50)))
    return place


@pytest.fixture(scope="module")
def saved(encoder, tmp_path_factory):
    return encoder.save(tmp_path_factory.mktemp("encoder") / "student")


def agree(encoder, expected, found):
    """Whether logits and codes of a program are an encoder's logits and their signs."""
    logits, codes = (np.asarray(part) for part in found)
    assert logits.dtype == np.float32 and codes.dtype == np.uint8
    np.testing.assert_allclose(logits, expected, rtol=0, atol=NEAR)
    np.testing.assert_array_equal(codes, np.packbits(logits > 0, axis=1))
    different = (logits > 0) != (expected > 0)
    assert (np.abs(expected[different]) < NEAR).all() and codes.shape == (len(expected), -(-encoder.bits // 8))


def ends(values):
    return {value.name: (value.type.tensor_type.elem_type, [each.dim_param or each.dim_value
                                                            for each in value.type.tensor_type.shape.dim]) for value in values}


# ONNX


def test_the_onnx_graphs_have_the_names_and_shapes_that_others_rely_on(encoder, folder):
    floats, bytes_ = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
    squares, any_size = (onnx.load(folder / name) for name in ("encoder.onnx", "encoder_any_size.onnx"))
    assert ends(squares.graph.input) == {"images": (bytes_, ["batch", 32, 32, 3])}
    assert ends(squares.graph.output) == {"logits": (floats, ["batch", 20]), "codes": (bytes_, ["batch", 3])}
    assert ends(any_size.graph.input) == {"image": (bytes_, ["height", "width", 3])}
    assert ends(any_size.graph.output) == {"logits": (floats, [1, 20]), "codes": (bytes_, [1, 3])}
    assert {each.domain: each.version for each in squares.opset_import}[""] >= 18
    assert len(squares.graph.node) < 30, "a resnet8 has 9 convolutions"
    assert {each.key: each.value for each in squares.metadata_props}["space"] == encoder.space


def test_squares_in_any_number_give_the_bits_of_the_encoder(encoder, folder):
    run, images = runner(folder / SQUARES), noise(70, 32, 32, seed=1)
    expected = of_its_size(encoder).logits(images)
    agree(encoder, expected, run(images))
    agree(encoder, expected[:1], run(images[:1]))


def test_images_of_any_size_are_made_ready_inside(encoder, folder):
    run = runner(folder / ANY_SIZE)
    for shape in ((32, 32), (61, 40), (33, 90), (20, 20), (7, 64)):
        image = noise(*shape, seed=2)
        agree(encoder, encoder.logits(image), run(image))


@pytest.mark.parametrize(("resize", "interpolation"), [(None, "bilinear"), (27, "bilinear"), (27, "bicubic")])
def test_the_graph_before_the_model_gives_the_encoders_view_of_an_image(resize, interpolation):
    seen = Preprocessing(24, resize, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), interpolation=interpolation)
    model = helper.make_model(graphs.before_any_size(seen), opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for shape in ((24, 24), (27, 27), (61, 47), (29, 64), (9, 13), (64, 5)):
        image = noise(*shape, seed=sum(shape))
        (found,) = session.run(None, {"image": image})
        np.testing.assert_allclose(found.transpose(0, 2, 3, 1), fitted_view(image, **vars(seen)), atol=5e-5)


@pytest.mark.parametrize("bits", [1, 8, 13])
def test_codes_are_packed_as_numpy_packs_them(bits):
    model = helper.make_model(graphs.behind(bits), opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    logits = np.random.default_rng(0).normal(size=(9, bits)).astype(np.float32)
    logits[0] = 0.0
    (codes,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"logits": logits})
    np.testing.assert_array_equal(codes, np.packbits(logits > 0, axis=1))


# PyTorch's models


@pytest.mark.parametrize("name", TOWERS)
def test_transformers_are_the_same_in_pytorch_at_another_size(name, monkeypatch):
    ours, theirs, in_onnx = TOWERS[name]
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    BACKBONES.register(name)(Variant(ours, Preprocessing(SIZE)))
    monkeypatch.setitem(models.BUILDERS, name, theirs)
    model = create_hash_model(name, 12, size=OTHER, rngs=nnx.Rngs(1), form="hashcoder_small")
    encoder = create_encoder(model, name, Preprocessing(OTHER), bits=12, role="teacher")
    images = np.random.default_rng(0).normal(size=(2, OTHER, OTHER, 3)).astype(np.float32)
    planes, expected = images.transpose(0, 3, 1, 2).copy(), nnx.jit(model)(jnp.asarray(images))
    np.testing.assert_allclose(reference_model(encoder)(torch.from_numpy(planes)), expected, atol=NEAR)
    if in_onnx:  # where nothing is resampled in the graph
        core = core_model(encoder)
        assert "Resize" not in {node.op_type for node in core.graph.node} and len(core.graph.node) < 120
        (logits,) = open_session(core.SerializeToString()).run(None, {"pixels": planes})
        np.testing.assert_allclose(logits, expected, atol=NEAR)


def test_the_torch_archive_lies_beside_weights_that_the_reference_reads(encoder, folder):
    images = noise(5, 32, 32, seed=4)
    expected = of_its_size(encoder).logits(images)
    program = torch.export.load(folder / "encoder.pt2").module()
    agree(encoder, expected, [part.numpy() for part in program(torch.from_numpy(images))])
    reference = create_torch_model("resnet8", encoder.bits).eval()
    reference.load_state_dict(safetensors.torch.load_file(folder / "encoder.safetensors"))
    view = np.concatenate([fitted_view(image, **vars(of_its_size(encoder).preprocessing)) for image in images])
    with torch.no_grad():
        np.testing.assert_allclose(reference(torch.from_numpy(view.transpose(0, 3, 1, 2).copy())), expected, atol=NEAR)


# StableHLO


def test_stablehlo_is_for_all_platforms_and_any_number_of_images(encoder, folder):
    program = jax.export.deserialize(bytearray((folder / "encoder.stablehlo").read_bytes()))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"} and str(program.in_avals[0]) == "uint8[batch,32,32,3]"
    images = noise(3, 32, 32, seed=5)
    agree(encoder, of_its_size(encoder).logits(images), program.call(images))


# Embeddings


@pytest.mark.parametrize("to", ["onnx", "stablehlo", "torch"])
def test_an_encoder_over_embeddings_takes_rows(to, tmp_path):
    model = create_row_model(6, 12, form="hashcoder_small", rngs=nnx.Rngs(0))
    rows = create_encoder(model, "embeddings", RowFormat(6), bits=12, role="teacher")
    written = export(rows, to, tmp_path)
    batch = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    if to == "onnx":
        assert [path.name for path in written] == ["encoder.onnx", "config.json"]
        assert ends(onnx.load(tmp_path / SQUARES).graph.input) == {"rows": (onnx.TensorProto.FLOAT, ["batch", 6])}
        agree(rows, rows.logits(batch), runner(tmp_path / SQUARES)(batch))
    with pytest.raises(InputError, match="stays in float32" if to == "onnx" else "is not quantised"):
        export(rows, to, tmp_path, quantize="int8", calibration=list(batch))


# int8


@pytest.fixture(scope="module")
def quantised(saved, tmp_path_factory):
    """The folder of what the command exports in int8 and the lines that it prints; six photos, and a file that is none."""
    place = tmp_path_factory.mktemp("int8")
    photos = place / "photos" / "2024"
    photos.mkdir(parents=True)
    for number in range(6):
        Image.fromarray(blots(number)).save(photos / f"{number}.png")
    (photos / "0 broken.png").write_bytes(b"no image")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main([str(saved), "--to", "onnx", "--quantize", "int8", "--out", str(place / "out"), "--calibrate", str(photos.parent),
              "--calibration-images", "6"])
    return place / "out", said.getvalue().splitlines()


def blots(seed):
    return noise(8, 8, seed=seed).repeat(6, axis=0).repeat(5, axis=1)


def test_int8_has_the_same_names_and_says_what_it_costs(encoder, quantised):
    folder, _ = quantised
    small = onnx.load(folder / SQUARES)
    kinds = [node.op_type for node in small.graph.node]
    assert "QuantizeLinear" in kinds and ends(small.graph.input) == {"images": (onnx.TensorProto.UINT8, ["batch", 32, 32, 3])}
    (head,) = [node for node in small.graph.node if node.op_type == "Gemm"]
    assert {value.name: value.data_type for value in small.graph.initializer}[head.input[1]] == onnx.TensorProto.FLOAT
    facts = json.loads((folder / "config.json").read_text())["exports"]["onnx"]
    assert facts["quantize"] == "int8" and facts["verified"]["encoder.onnx"]["different_bits"] == 0
    costs = facts["quantized"]
    assert costs["calibration_images"] == 6 and 0 <= costs["changed_share"] < 0.1 and costs["seconds_an_image"]["int8"] > 0
    for image in map(blots, range(3)):
        _, codes = runner(folder / ANY_SIZE)(image)
        assert np.bitwise_count(codes ^ encoder.encode(image).packed).sum() <= 4  # of 20


def test_the_command_prints_what_it_found_and_where_it_lies(quantised):
    folder, said = quantised
    assert "0 broken.png" in said[0] and said[1].startswith("encoder.onnx: 120 bits of 6 inputs, none differs")
    assert "calibrated by 6 images" in said[3]
    assert said[-3:] == [str(folder / name) for name in (SQUARES, ANY_SIZE, "config.json")]


def test_the_map_of_int8_is_measured_where_there_are_labels(encoder):
    class Session:
        """Gives codes of ones, or of zeros."""

        def __init__(self, sign):
            self.sign = sign

        def run(self, outputs, inputs):
            return [np.full((len(inputs["pixels"]), 20), self.sign, np.float32)]

    part = Images(noise(8, 32, 32), np.eye(2, dtype=np.uint8)[[0, 1] * 4])
    dataset = ImageDataset("toy", "one", part, part, part, part, ("a", "b"), False, 4)
    found = quantization._searches(encoder, {"float32": Session(1), "int8": Session(-1)}, dataset, Material())
    assert found["changed_share"] == 1 and found["map"]["int8"] == found["map"]["float32"] > 0.5
    assert found["protocol"] == {"dataset": "toy", "split": "one", "queries": 8, "database": 8, "k": 4, "ties": "stable"}


# Trial and folder


@pytest.mark.parametrize(("files", "count", "last"), [(5, 3, 4), (767, 256, 766), (511, 256, 510), (3, 8, 2)])
def test_images_to_quantise_by_come_from_all_parts_of_a_folder(files, count, last, tmp_path, monkeypatch):
    for number in range(files):
        (tmp_path / f"{number:04}.png").touch()
    monkeypatch.setattr(material, "read_item", lambda path: np.array(int(path.stem)))
    places = sorted(map(int, material.images_below(tmp_path, count, pytest.fail)))
    assert len(places) == min(files, count) and places[0] == 0 and places[-1] == last
    assert max(np.diff(places)) <= -(-(files - 1) // (min(files, count) - 1))


def test_photos_are_in_memory_one_at_a_time(encoder, tmp_path, monkeypatch):
    for number in range(20):
        Image.fromarray(blots(number)).save(tmp_path / f"{number:02}.png")
    alive, most, read = set(), [], material.read_item

    def counted(path):
        image = read(path)
        alive.add(number := len(most))
        weakref.finalize(image, alive.discard, number)
        most.append(len(alive))
        return image

    monkeypatch.setattr(material, "read_item", counted)
    photos = material.images_below(tmp_path, 20, pytest.fail)
    assert len(photos) == len(most) == 20 and len(photos[4:9]) == 5 and not alive
    np.testing.assert_array_equal(photos[3], blots(3))
    made = material.material_of(photos, None, 20, "int8", silent)
    assert sum(map(len, quantization.planes_of(encoder, made.calibration, made, "calibrate"))) == 20

    def run(images):
        logits = (encoder if images.ndim == 3 else of_its_size(encoder)).logits(images)
        return logits, np.packbits(logits > 0, axis=1)

    images = inputs_for(encoder, made.images)
    assert try_batches(encoder, run, images)["images"] == 20 and try_any_size(encoder, run, images)["images"] == 16 + 3
    assert max(most) <= 2 and not alive


def test_the_command_reads_as_many_photos_as_it_uses(saved, tmp_path, monkeypatch):
    def read(folder, count, say):
        counts.append(count)
        raise InputError("that is all")

    counts = []
    monkeypatch.setattr(material, "images_below", read)
    for words in ([], ["--quantize", "int8"], ["--calibration-images", "9"]):
        with pytest.raises(InputError, match="that is all"):
            main([str(saved), "--to", "onnx", "--out", str(tmp_path), "--calibrate", str(tmp_path), *words])
    assert counts == [64, 256, 9]


def test_files_that_cannot_be_read_are_passed_over_by_their_names(tmp_path):
    (tmp_path / "`bad`.png").touch()
    Image.fromarray(blots(0)).save(tmp_path / "good.png")
    said = []
    assert len(material.images_below(tmp_path, 2, said.append)) == 1
    assert [line.partition(".png: ")[0] for line in said] == [f"passed over: {tmp_path}/`bad`"]


def test_bits_may_differ_near_zero_and_nowhere_else():
    expected = np.array([[1.0, 5e-5, -2.0]], np.float32)
    other = np.array([[1.0, -5e-5, -2.0]], np.float32)
    assert compare(expected, [(other, np.packbits(other > 0, axis=1))], near=1e-4)["different_bits"] == 1
    for wrong, codes in (([[-1.0, 5e-5, -2.0]], None), ([[np.nan, 5e-5, -2.0]], None), ([[1.0, 5e-5, -2.0]], [[0]])):
        wrong = np.array(wrong, np.float32)
        with pytest.raises(InputError, match="nothing is written"):
            compare(expected, [(wrong, np.packbits(wrong > 0, axis=1) if codes is None else np.array(codes, np.uint8))], near=1e-4)


def test_the_figures_of_all_formats_of_an_encoder_stand_in_one_config(encoder, folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["encoder"]["space"] == encoder.space and config["encoder"]["preprocessing"] == encoder.preprocessing.to_dict()
    assert set(config["exports"]) == {"onnx", "stablehlo", "torch"}
    for facts in config["exports"].values():
        assert all((folder / name).is_file() for name in facts["files"]) and facts["versions"]["jax_brcd"]
        for figures in facts["verified"].values():
            assert figures["different_bits"] <= figures["bits_near_zero"] and figures["largest_difference"] < NEAR
    named = {name for facts in config["exports"].values() for name in facts["files"]}
    assert {path.name for path in folder.iterdir()} == {*named, "config.json"}, "nothing temporary is left"


def test_an_encoder_in_bfloat16_goes_to_stablehlo_with_its_own_bits(tmp_path):
    """Whose logits move more with the batch than those of float32, so that bits further from zero may differ."""
    half = create_encoder(create_hash_model("resnet8", 64, dtype="bfloat16"), "resnet8", Preprocessing(16), bits=64, role="student",
                          dtype="bfloat16")
    export(half, "stablehlo", tmp_path)
    figures = json.loads((tmp_path / "config.json").read_text())["exports"]["stablehlo"]["verified"]["encoder.stablehlo"]
    assert figures["near_zero"] == NEAR_IN["bfloat16"] and 0 < figures["largest_difference"] < NEAR_IN["bfloat16"]
    assert figures["different_bits"] <= figures["bits_near_zero"] < figures["bits"]


def test_larger_logits_of_bfloat16_may_differ_by_more(tmp_path):
    large = create_encoder(create_hash_model("resnet8", 64, dtype="bfloat16"), "resnet8", Preprocessing(16), bits=64, role="student",
                           dtype="bfloat16")
    for weights in (large.model.head.kernel, large.model.head.bias):
        weights[...] *= 256  # so that a bit differs whose logit is not within the bound of small ones
    export(large, "stablehlo", tmp_path)
    figures = json.loads((tmp_path / "config.json").read_text())["exports"]["stablehlo"]["verified"]["encoder.stablehlo"]
    assert NEAR_IN["bfloat16"] < figures["largest_difference"] < figures["near_zero"]
    assert figures["different_bits"] <= figures["bits_near_zero"] < figures["bits"] / 4


def test_an_export_that_fails_leaves_the_folder_as_it_was(encoder, tmp_path):
    def fails(encoder, folder, material):
        (folder / "encoder.onnx").write_text("half")
        raise InputError("other bits")

    (tmp_path / "encoder.onnx").write_text("before")
    with pytest.raises(InputError, match="other bits"):
        TriedExporter("onnx", fails)(encoder, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"encoder.onnx": "before"}


def test_folders_of_something_else_are_refused_and_kept(encoder, saved, tmp_path):
    before = (saved / "config.json").read_bytes()
    with pytest.raises(InputError, match="is no export's and would be lost"):
        export(encoder, "stablehlo", saved)
    assert (saved / "config.json").read_bytes() == before and load(saved).bits == encoder.bits
    (tmp_path / "config.json").write_text(json.dumps({"exports": {"torch": {}}, "encoder": {"space": "another"}}))
    with pytest.raises(InputError, match="holds another encoder's export to torch"):
        export(encoder, "stablehlo", tmp_path)


def test_what_a_format_cannot_hold_is_refused_in_one_line(encoder, tmp_path, monkeypatch):
    half = dataclasses.replace(encoder, dtype="bfloat16")
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES))
    BACKBONES.register("dropping")(Variant(Dropping, Preprocessing(16)))
    own = create_encoder(create_hash_model("dropping", 8), "dropping", Preprocessing(16), bits=8, role="student")
    for refused, to, words in ((half, "onnx", "computes in bfloat16"), (own, "torch", "PyTorch's libraries have no dropping"),
                               (own, "onnx", "export it to stablehlo")):
        with pytest.raises(InputError, match=words):
            export(refused, to, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(EXPORTERS._entries, "onnx", dataclasses.replace(EXPORTERS["onnx"], needs=("not_there",)))
    with pytest.raises(InputError, match=r"needs not_there; pip install 'jax_brcd\[export\]'"):
        export(encoder, "onnx", tmp_path)


# Its material

@pytest.fixture
def digits_like():
    """A data set whose images tell their part by the first digit of their value and their place by the rest."""
    def part(number, count):
        values = np.uint8(50 * number) + np.arange(count, dtype=np.uint8)
        return Images(np.broadcast_to(values[:, None, None, None], (count, 4, 4, 3)).copy(), np.ones((count, 1), np.uint8))

    return ImageDataset("toy", "one", part(0, 30), part(1, 20), part(2, 9), part(3, 21), ("a",), False, 7)


def values(images):
    return [int(np.unique(image).item()) for image in images]


def test_a_data_set_calibrates_by_its_training_images_and_is_tried_by_its_test_images(digits_like):
    """From first to last of each."""
    made = material.material_of(None, digits_like, 4, "int8", pytest.fail)
    assert values(made.calibration) == [0, 10, 19, 29] and values(made.images) == [150, 157, 163, 170]
    assert made.quantize == "int8" and made.dataset is digits_like and made.progress is pytest.fail


def test_without_quantising_nothing_is_calibrated_or_measured(digits_like):
    made = material.material_of(None, digits_like, 4, None, pytest.fail)
    assert values(made.images) == [150, 157, 163, 170]
    assert (made.quantize, list(made.calibration), made.dataset) == (None, [], None)


def test_photos_are_preferred_to_a_data_sets_images(digits_like):
    photos = [np.full((3, 5, 3), 201, np.uint8)]
    made = material.material_of(photos, digits_like, 4, "int8", pytest.fail)
    assert values(made.images) == values(made.calibration) == [201] and made.dataset is digits_like
    assert list(material.material_of(None, None, 4, "int8", pytest.fail).calibration) == []


def test_images_are_spread_over_all_of_many(digits_like):
    assert values(material.spread(digits_like.train.images, 3)) == [0, 14, 29]
    assert values(material.spread(digits_like.train.images, 1000)) == list(range(30))


def test_the_data_set_of_an_export_has_the_ranks_of_its_measures(encoder, digits_like, monkeypatch, capsys):
    def load(config, encoders, *, progress, say):
        assert list(encoders) == [encoder]
        if config.data.dataset != "digits":
            raise InputError("not there", field="dataset", value=config.data.dataset)
        return digits_like, config.data.k or digits_like.default_k

    monkeypatch.setattr(evaluation, "load_for_evaluation", load)
    for told in (True, False):
        assert dataset_of(create_config(k=3), encoder, silent, told=told) == dataclasses.replace(digits_like, default_k=3)
    absent = create_config(dataset="cifar10")
    with pytest.raises(InputError, match="dataset cifar10: not there"):
        dataset_of(absent, encoder, silent, told=True)
    assert dataset_of(absent, encoder, silent, told=False) is None
    assert capsys.readouterr().out == "without the data set of the encoder's run: --dataset cifar10: not there\n"


# The command


@pytest.mark.parametrize(("words", "answer"), [
    (["--to", "onx"], "unknown export format 'onx': did you mean 'onnx'?"),
    (["--to", "torch", "--quantize", "int8"], "--quantize int8: torch is not quantised; export to onnx"),
    (["--to", "onnx", "--quantize", "int4"], "--quantize int4: unknown numbers; give int8"),
    (["--to", "onnx", "--quantize", "int8"], "--quantize int8: needs training images; name a folder of some with --calibrate"),
    (["--to", "onnx", "--calibrate", "nowhere"], "--calibrate nowhere: No such file or directory"),
    (["--to", "onnx", "--calibration-images", "0"], "--calibration-images 0: not a number of images"),
    (["--to", "stablehlo", "--dataset", "digit"], "unknown data set 'digit'"),
    (["--to", "torchvision", "--dataset", "digits"], "--to torchvision: is weights alone"),
    (["--to", "torchvision", "--calibrate", "."], "leave out --calibrate"),
])
def test_bad_input_is_answered_in_one_line_and_nothing_is_written(words, answer, saved, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(main, [str(saved), "--out", str(tmp_path / "out"), *words])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and answer in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_numbers_that_a_format_does_not_have_are_refused_before_anything_is_read(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(main, ["absent", "--to", "torch", "--quantize", "int8", "--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and "--quantize int8: torch is not quantised" in capsys.readouterr().err
