"""torch_ref gives the published numbers too, and JAX gives what torch_ref gives on whatever input.

Tolerances: golden values 1e-5 relative and gradients 1e-5 of the largest entry, as for JAX; between the frameworks 1e-5 of the
largest entry plus 1e-6, which is float32 rounding of sums over up to 140 rows in another order.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from jax_brcd import losses as jax_losses
from jax_brcd import retrieval as jax_retrieval
from jax_brcd.clusters import kmeans as jax_clusters
from jax_brcd.losses import codes as jax_codes
from jax_brcd.methods import METHODS
from jax_brcd.methods.kl import KL
from jax_brcd.retrieval.searches import SEARCHES
from jax_brcd.runtime.errors import InputError, UnknownName
from jax_brcd.runtime.files import read_json, write_json
from jax_brcd.stages.configuration import STAGES, create_config
from torch_ref import clusters, distill, losses, retrieval
from torch_ref import methods as torch_methods
from torch_ref import models as torch_models
from torch_ref.training import pretrain

FLAG_SETS = {"plain": "", "n": "n", "r": "r", "p": "p", "rp": "rp", "np": "np", "nrp": "nrp"}


def tensors(golden, *names):
    return [torch.tensor(golden[name], requires_grad=True) for name in names]


def assert_close(ours, theirs, floor=0.0):
    theirs = np.asarray(theirs, np.float64)
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-5 * np.abs(theirs).max() + floor)


def value_and_gradients(loss, inputs):
    value = loss(*inputs)
    value.backward()
    return value.item(), [part.grad.numpy() for part in inputs]


def test_its_contrastive_terms_are_the_published_ones(golden):
    temperature, weight = float(golden["temperature"]), float(golden["weight"])
    cases = {
        "ntxent": (lambda a, b: losses.nt_xent(a, b, temperature), tensors(golden, "ntxent_zi", "ntxent_zj"), ("zi", "zj")),
        "cibhash": (lambda a, b: losses.cibhash_loss(a, b, temperature=temperature, kl_weight=weight),
                    tensors(golden, "student_logits_i", "student_logits_j"), ("i", "j")),
        "kl": (losses.bernoulli_kl, [torch.sigmoid(part).detach().requires_grad_() for part in
                                     tensors(golden, "student_logits_i", "student_logits_j")], ("pi", "pj")),
    }
    for name, (loss, inputs, suffixes) in cases.items():
        value, gradients = value_and_gradients(loss, inputs)
        assert_close(value, golden[f"{name}_loss"])
        for gradient, suffix in zip(gradients, suffixes, strict=True):
            assert_close(gradient, golden[f"{name}_grad_{suffix}"])


@pytest.mark.parametrize("mask", ["released", "kept"])
@pytest.mark.parametrize("flag_set", FLAG_SETS)
def test_its_brcd_is_the_published_one(golden, flag_set, mask):
    flags = FLAG_SETS[flag_set]
    name = f"brcd_{flag_set}_{mask if 'r' in flags else 'released'}"

    def loss(logits_i, logits_j):
        distillation = losses.brcd_distillation_loss(
            losses.hash_codes(logits_i), torch.tensor(golden["teacher_codes_i"]), torch.tensor(golden["teacher_codes_j"]),
            torch.tensor(golden["cluster_of_index"][golden["idxs"]]), torch.tensor(golden["centers"]),
            torch.tensor(golden[f"mask_{mask}"]).float(), alpha=float(golden["alpha"]),
            temperature=float(golden["temperature"]), robust="p" in flags, mask_bits="r" in flags,
            remove_false_negatives="n" in flags, variant="released")
        return distillation + losses.cibhash_loss(logits_i, logits_j, temperature=float(golden["temperature"]),
                                                  kl_weight=float(golden["weight"]))

    value, gradients = value_and_gradients(loss, tensors(golden, "student_logits_i", "student_logits_j"))
    assert_close(value, golden[f"{name}_loss"])
    assert_close(gradients[0], golden[f"{name}_grad_i"])
    assert_close(gradients[1], golden[f"{name}_grad_j"])


def test_its_masks_and_map_are_the_published_ones(golden):
    for variant, mask in (("released", "mask_released"), ("corrected", "mask_kept")):
        ours = clusters.bit_masks(torch.tensor(golden["database_codes"]), torch.tensor(golden["cluster_of_index"]),
                                  int(golden["C"]), float(golden["margin"]), variant)
        np.testing.assert_array_equal(ours, golden[mask])
    for k in (10, 100, 200):
        for prefix, queries, database in (("map", "map_query_labels", "map_database_labels"),
                                          ("map_multilabel", "map_multi_query", "map_multi_database")):
            score = retrieval.mean_average_precision(golden["map_query_codes"], golden["database_codes"], golden[queries],
                                                     golden[database], k)
            np.testing.assert_allclose(score, golden[f"{prefix}_{k}"], rtol=1e-6)


@st.composite
def batches(draw):
    """Logits, teacher codes with zeros among them, clusters (some empty) and masks. Few shapes, as each one compiles."""
    rows, bits = draw(st.sampled_from([(2, 8), (3, 128), (7, 20), (33, 64), (64, 16), (70, 8)]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_clusters = draw(st.sampled_from([1, 4]))
    values = draw(st.sampled_from([(-1.0, 1.0), (-1.0, 0.0, 1.0), (1.0,)]))
    scale = draw(st.sampled_from([0.1, 1.0, 6.0]))
    logits = [(scale * random.normal(size=(rows, bits))).astype(np.float32) for _ in range(2)]
    if draw(st.booleans()):
        logits[0][:, ::3] = 0.0  # codes of exactly zero
    teacher = [random.choice(values, (rows, bits)).astype(np.float32) for _ in range(2)]
    occupied = draw(st.integers(1, n_clusters))
    return {
        "logits": logits, "teacher": teacher, "clusters": random.integers(occupied, size=rows).astype(np.int32),
        "centers": random.uniform(-1, 1, (n_clusters, bits)).astype(np.float32),
        "mask": random.integers(0, 2, (n_clusters, bits)).astype(np.float32),
        "options": {"alpha": draw(st.sampled_from([0.0, 0.5, 0.8, 1.0])), "robust": draw(st.booleans()),
                    "mask_bits": draw(st.booleans()), "remove_false_negatives": draw(st.booleans()),
                    "variant": draw(st.sampled_from(["released", "corrected"]))},
    }


@settings(max_examples=20, deadline=None)
@given(batches())
def test_brcd_agrees_between_the_frameworks(batch):
    def in_jax(logits_i, logits_j):
        codes = jax_codes.hash_codes(logits_i)
        distillation = jax_losses.brcd_distillation_loss(
            codes, *map(jnp.asarray, (*batch["teacher"], batch["clusters"], batch["centers"], batch["mask"])),
            **batch["options"])
        return distillation + jax_losses.cibhash_loss(logits_i, logits_j)

    def in_torch(logits_i, logits_j):
        codes = losses.hash_codes(logits_i)
        distillation = losses.brcd_distillation_loss(
            codes, *map(torch.tensor, batch["teacher"]), torch.tensor(batch["clusters"]).long(),
            torch.tensor(batch["centers"]), torch.tensor(batch["mask"]), **batch["options"])
        return distillation + losses.cibhash_loss(logits_i, logits_j)

    value, gradients = jax.jit(jax.value_and_grad(in_jax, argnums=(0, 1)))(*map(jnp.asarray, batch["logits"]))
    expected, expected_gradients = value_and_gradients(
        in_torch, [torch.tensor(part, requires_grad=True) for part in batch["logits"]])
    assert_close(value, expected, floor=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert_close(ours, theirs, floor=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from(["released", "corrected"]),
       st.sampled_from([(-1.0, 1.0), (-1.0, 0.0, 1.0), (1.0,)]))
def test_bit_masks_agree_between_the_frameworks(seed, n_clusters, variant, values):
    random = np.random.default_rng(seed)
    codes = random.choice(values, (40, 16)).astype(np.float32)
    members = random.integers(n_clusters, size=40).astype(np.int32)
    ours = jax_clusters.bit_masks(codes, members, n_clusters + 1, 0.3, variant)
    theirs = clusters.bit_masks(torch.tensor(codes), torch.tensor(members), n_clusters + 1, 0.3, variant)
    np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 40]), st.sampled_from([8, 24, 128]),
       st.sampled_from([(-1.0, 1.0), (-1.0, 0.0, 1.0), (1.0,)]))
def test_search_measures_agree_between_the_references(seed, k, bits, values):
    random = np.random.default_rng(seed)
    queries, database = random.choice(values, (6, bits)), random.choice(values, (40, bits))
    query_labels, labels = random.integers(0, 2, (6, 4)), random.integers(0, 2, (40, 4))
    ours = jax_retrieval.evaluate_search(queries, database, query_labels, labels, k)
    theirs = retrieval.search_scores(queries, database, query_labels, labels, k)
    np.testing.assert_allclose([ours.map, ours.tie_aware_map, ours.precision],
                               [theirs[name] for name in ("map", "tie_aware_map", "precision")], rtol=1e-6, atol=1e-9)


def settings_of_a_run(folder, **changes):
    return create_config(dataset="digits", out=folder / "run", cache_dir=folder / "cache", **changes)


# All that make no difference in it, each with another value than its default
UNHONOURED = {
    "resident_mib": 0, "embeddings": pathlib.Path("tables"), "embeddings_dropout": 0.5, "accumulate": 2, "layer_decay": 0.5,
    "freeze_epochs": 1, "freeze_blocks": 1, "mixup": 0.4, "keep": "both", "dtype": "bfloat16", "checkpoint_seconds": 1.0,
    "compile_cache": False, "processes": 2, "process_id": 1, "coordinator": "127.0.0.1:1"}


@pytest.mark.parametrize(("changes", "message"), [
    *(({name: value}, f"{name} {value}: torch_ref does not honour it") for name, value in UNHONOURED.items()),
    ({"teacher_weights": "hf:user/name"}, "teacher_weights hf:user/name: torch_ref fetches nothing from the"),
    ({"student": "dinov2_vits14", "student_weights": "pretrained"}, "student_weights pretrained: torch_ref fetches nothing from the"),
])
def test_options_that_it_does_not_honour_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        distill.run(settings_of_a_run(tmp_path, **changes))
    assert not list(tmp_path.iterdir())


BRIEF = {"teacher": "vit_lite_4_8", "teacher_weights": "random", "student": "resnet8", "student_weights": "random",
         "train_images": 13, "k": 5}


@pytest.mark.parametrize(("changes", "message"), [
    ({"k": 100_000}, "k 100000: the database of digits holds 797 images; give that or less"),
    ({"student": "resnet18", "train_backbone": False, "batch_size": 4, "fresh_views": True},
     "batch_size 4: the last of an epoch's batches is one image"),
    ({"teacher_objective": "crovca", "teacher_batch_size": 4}, "teacher_batch_size 4: the last of an epoch's batches is one image"),
    ({"teacher": "efficientnet_b0", "teacher_objective": "itq", "method": "kl"}, "teacher_objective itq: it solves a linear hash head"),
])
def test_what_would_fail_in_the_middle_is_refused_at_once(tmp_path, monkeypatch, changes, message):
    for name in ("in_batches", "train_teacher"):
        monkeypatch.setattr(distill, name, lambda *_, **__: pytest.fail("something is computed"))
    with pytest.raises(InputError, match=message):
        distill.run(settings_of_a_run(tmp_path, **BRIEF | changes))


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path):
    torch.save(torch_models.create_hash_model("resnet18", 8).state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match="other.pth: does not fit resnet8 .*give weights of it$") as error:
        distill.run(settings_of_a_run(tmp_path, **BRIEF | {"student_weights": str(tmp_path / "other.pth")}))
    assert "\n" not in str(error.value)


def test_each_search_is_scored_and_saved_by_its_own_student(tmp_path, monkeypatch):
    """By two students that were never trained, which search otherwise than each other and otherwise than their teacher."""
    config, states = settings_of_a_run(tmp_path, **BRIEF, teacher_epochs=0, method="none", bits=16, views=2), {}

    def train(model, *arguments, **settings):
        for number, search in enumerate(SEARCHES):
            torch.manual_seed(number)
            states[search] = torch_models.create_hash_model("resnet8", 16).state_dict()
        return states, []

    monkeypatch.setattr(distill, "train_student", train)
    metrics = distill.run(config)
    experiment = distill.load_experiment(config)
    model, teacher = (torch_models.create_hash_model(name, 16, size=32) for name in ("resnet8", "vit_lite_4_8"))
    teacher.load_state_dict(load_file(tmp_path / "run" / "teacher.safetensors"))
    test, database = experiment.dataset.test, experiment.dataset.database
    found = {}
    for search in SEARCHES:
        saved = load_file(tmp_path / "run" / f"student_{search}.safetensors")
        assert saved.keys() == states[search].keys()
        assert all(torch.equal(saved[name], value) for name, value in states[search].items())
        model.load_state_dict(saved)
        searched = ("student", model) if search == "symmetric" else ("teacher", teacher)
        queries, codes = experiment.codes("student", model, "test"), experiment.codes(*searched, "database")
        found[search] = jax_retrieval.evaluate_search(queries, codes, test.labels, database.labels, 5)
        for name in ("map", "tie_aware_map", "precision"):
            assert metrics["student"][search][name] == pytest.approx(getattr(found[search], name), rel=1e-6)
    assert len({score.map for score in found.values()} | {metrics["teacher"]["map"]}) == 3


def test_a_teacher_is_pretrained_on_held_out_digits(tmp_path, monkeypatch):
    told = []

    def spied(classifier, draw, labels, schedule):
        told.append((labels, schedule, losses := pretrain(classifier, draw, labels, schedule)))
        return losses

    monkeypatch.setattr(distill, "pretrain", spied)
    metrics = distill.run(settings_of_a_run(
        tmp_path, **BRIEF | {"teacher_weights": "held-out"}, pretraining_epochs=2, teacher_epochs=1, epochs=1, min_epochs=0,
        method="mse", bits=16, views=2, batch_size=64))
    (labels, schedule, steps), = told
    assert labels.shape == (600,) and labels.unique().tolist() == list(range(10))
    assert (schedule.seed, schedule.kept_views) == (0, None)
    assert len(steps) == 20 and np.mean(steps[-5:]) < np.mean(steps[:5])
    assert 0 < metrics["student"]["symmetric"]["map"] <= 1 and (tmp_path / "run" / "teacher.safetensors").exists()


def test_options_that_it_honours_are_those_of_jax_brcd():
    """And all others are refused."""
    names = {field.name for stage in STAGES for field in dataclasses.fields(stage)}
    assert names >= distill.HONOURED and names - distill.HONOURED == UNHONOURED.keys()
    distill.refuse_unhonoured(create_config())


def test_a_method_that_it_has_not_is_refused_and_not_taken_for_another(tmp_path, monkeypatch):
    for name in ("mine", "kl+mine"):
        monkeypatch.setitem(METHODS._entries, "mine", KL)
        with pytest.raises(UnknownName, match="torch_ref has no such method; unknown method 'mine'"):
            distill.run(settings_of_a_run(tmp_path, method=name))
    assert not list(tmp_path.iterdir())


def test_every_method_of_jax_brcd_has_its_reference():
    assert set(torch_methods.METHODS) == set(METHODS)


def test_a_directory_of_another_run_is_left_alone(tmp_path):
    config = settings_of_a_run(tmp_path, bits=32)
    distill.claim(tmp_path, config)
    before = (tmp_path / "config.json").read_bytes()
    distill.claim(tmp_path, config)  # the same run again
    older = {name: value for name, value in read_json(tmp_path / "config.json").items() if name != "method_weights"}
    write_json(tmp_path / "config.json", older)  # written before there was that setting
    distill.claim(tmp_path, config)
    assert (tmp_path / "config.json").read_bytes() == before
    with pytest.raises(InputError, match=f"{tmp_path}: holds a run with bits 32 \\(now 64\\); lr 0.002 \\(now 0.5\\)"):
        distill.claim(tmp_path, settings_of_a_run(tmp_path, bits=64, lr=0.5))
    assert (tmp_path / "config.json").read_bytes() == before
    write_json(tmp_path / "config.json", config.flat())
    with pytest.raises(InputError, match="holds a run of jax_brcd"):
        distill.claim(tmp_path, config)
