"""mse, bits and sums of methods: what they compute, in both frameworks, and how a sum's settings are spelt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jax_brcd.clusters.choice import ClusterNeeds
from jax_brcd.methods import METHODS, BaseMethod, DistillationBatch, Needs, TeacherKnowledge, create_method
from jax_brcd.methods.base import view_name
from jax_brcd.methods.sections import Heatmap
from jax_brcd.runtime.errors import InputError, UnknownName
from jax_brcd.stages.configuration import create_config, parse_command_line
from jax_brcd.views.outputs import Outputs, outputs_of
from torch_ref import methods as reference
from torch_ref.outputs import Outputs as TorchOutputs
from torch_ref.outputs import outputs_of as torch_outputs_of

IMAGES, ROWS, BITS, WIDTHS = 30, 8, 16, (10, 7)


def drawn(needs, images=IMAGES):
    """Random outputs of both encoders for every view that is needed; codes are the signs of the logits."""
    draw = np.random.default_rng(0)

    def outputs(width):
        logits = draw.normal(size=(ROWS, BITS)).astype(np.float32)
        return Outputs(draw.normal(size=(ROWS, width)).astype(np.float32), logits, np.sign(logits))

    views = list(map(view_name, needs.views))
    return {view: outputs(WIDTHS[0]) for view in views}, {view: outputs(WIDTHS[1]) for view in views}


def batch_of(method):
    student, teacher = drawn(method.needs)
    negatives = np.random.default_rng(1).integers(IMAGES, size=(ROWS, method.needs.negatives))
    return DistillationBatch(jnp.arange(ROWS), jnp.ones(ROWS, bool), *jax.tree.map(jnp.asarray, (student, teacher)),
                             key=jax.random.key(0), temperature=0.3, negatives=jnp.asarray(negatives))


def teacher_codes():
    return np.random.default_rng(2).choice([-1.0, 1.0], (IMAGES, BITS)).astype(np.float32)


def first_of(method):
    knowledge = TeacherKnowledge.of(teacher_codes(), method.needs, seed=3)._replace(
        student_features=WIDTHS[0], teacher_features=WIDTHS[1])
    return jax.tree.map(jnp.asarray, method.init(knowledge, seed=3))


def in_torch(name, method):
    """The reference's module with the map of `mse` and what is needed of outputs whose student's part wants gradients."""
    module = reference.create_method(name, method, reference.Known(torch.from_numpy(teacher_codes()), 3, 0.3, (2, 30), *WIDTHS))
    student, teacher = drawn(method.needs)
    student = {view: TorchOutputs(*(torch.tensor(part, requires_grad=True) for part in outputs))
               for view, outputs in student.items()}
    return module, student, {view: TorchOutputs(*map(torch.tensor, outputs)) for view, outputs in teacher.items()}


@pytest.mark.parametrize(("name", "settings"), [
    ("mse", {}), ("mse", {"mse_on": "features", "distillation_weight": 0.5}), ("bits", {"distillation_weight": 2.0}),
    ("brcd+rkd", {"method_weights": "1,0.5", "clusters": 3, "cluster_restarts": 2}),
    ("kl+mse+bits", {"method_weights": (0.5, 2, 3), "mse_on": "features"})])
def test_values_and_gradients_are_torch_refs(name, settings):
    """1e-5 of the largest entry plus 1e-6: float32 sums in another order."""
    method = create_method(name, **settings)
    (parameters, memory), batch = first_of(method), batch_of(method)

    def loss(parameters, student):
        return method.loss(parameters, memory, batch._replace(student=student))[0]

    value, (own, gradients) = jax.value_and_grad(loss, argnums=(0, 1))(parameters, batch.student)
    module, student, teacher = in_torch(name, method)
    maps = [part for part in module.modules() if isinstance(part, torch.nn.Linear)]
    for layer, (kernel, bias) in zip(maps, linear_maps(parameters), strict=True):
        layer.load_state_dict({"weight": torch.tensor(kernel.T), "bias": torch.tensor(bias)})
    expected = module(torch.arange(ROWS), student, teacher)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    pairs = [(gradients[view][entry], part.grad) for view, outputs in student.items() for entry, part in enumerate(outputs)]
    pairs += [(kernel.T, layer.weight.grad) for layer, (kernel, _) in zip(maps, linear_maps(own), strict=True)]
    assert any(theirs is not None for _, theirs in pairs)
    for ours, theirs in pairs:
        theirs = np.zeros(ours.shape) if theirs is None else theirs.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max() + 1e-6)


def linear_maps(parameters):
    """(kernel, bias) of each linear map among a method's parameters."""
    held = jax.tree.leaves(parameters, is_leaf=lambda part: isinstance(part, dict) and "kernel" in part)
    return [(np.asarray(part["kernel"]), np.asarray(part["bias"])) for part in held]


def test_bits_agree_where_the_logits_have_the_teachers_signs():
    """At logits of 20 the loss of a right bit is 2e-9 and that of a wrong one 20; a code of 0 is a bit of 0."""
    method = create_method("bits")
    codes = np.array([[1, -1, 0, 1]], np.float32)
    logits = np.array([[20, -20, -20, -20]], np.float32)
    batch = DistillationBatch(jnp.arange(1), jnp.ones(1, bool), {"i": Outputs(logits=logits)}, {"i": Outputs(codes=codes)},
                              key=jax.random.key(0), temperature=0.3)
    loss, _, metrics = method.loss({}, {}, batch)
    assert float(loss) == pytest.approx(5.0, abs=1e-6) and float(metrics["bit_agreement"]) == 0.75


def test_mse_of_features_needs_their_widths():
    with pytest.raises(InputError, match="mse_on features: the features of both encoders are needed"):
        create_method("mse", mse_on="features").init(TeacherKnowledge(teacher_codes()), seed=0)


def test_a_sum_starts_and_pays_as_its_parts_do_and_tells_each_parts_loss():
    """crd and packd have negatives of their own; the memories are those that each part would have alone."""
    names, settings = ("crd", "packd", "kl"), {"embedding": 8, "negatives": 5}
    alone = {"crd": create_method("crd", **settings), "packd": create_method("packd", negatives=3, mixtures=0),
             "kl": create_method("kl")}
    both = create_method("+".join(names), crd_embedding=8, crd_negatives=5, packd_negatives=3, mixtures=0,
                         method_weights=[1, 0.25, 2])
    assert both.needs.negatives == 8 and both.needs.views == ("i",)
    batch, (parameters, memory) = batch_of(both), first_of(both)
    jax.tree.map(np.testing.assert_array_equal, memory["crd"], first_of(alone["crd"])[1])
    loss, after, metrics = both.loss(parameters, memory, batch)
    parts = {"crd": batch.negatives[:, :5], "packd": batch.negatives[:, 5:], "kl": None}
    found = {name: alone[name].loss(parameters[name], memory[name], batch._replace(negatives=negatives))
             for name, negatives in parts.items()}
    np.testing.assert_allclose(loss, sum(w * found[name][0] for name, w in zip(names, (1, 0.25, 2), strict=True)), rtol=1e-6)
    np.testing.assert_array_equal(metrics["packd_distillation"], found["packd"][0])
    jax.tree.map(np.testing.assert_array_equal, after, {name: memory for name, (_, memory, _) in found.items()})


def test_needs_of_parts_are_merged():
    needs = create_method("sskd+brcd+mse", mse_on="features").needs
    assert list(map(view_name, needs.views)) == ["i", "rotation1", "rotation2", "rotation3", "j"]
    assert needs.student == needs.teacher == ("codes", "features")
    assert needs.clusters == ClusterNeeds(10, "silhouette", 30)


def test_a_part_that_replaces_the_objective_makes_the_sum_replace_it():
    assert not create_method("kl+bits").replaces_objective
    assert create_method("kl+bits", replaces_objective=True).replaces_objective


def test_a_sum_shows_what_its_parts_show():
    method = create_method("brcd+kl", clusters=3, cluster_restarts=1)
    section, = method.report(first_of(method)[1])
    assert isinstance(section, Heatmap) and section.name == "brcd_bit_masks" and len(section.rows) == 3


@pytest.mark.parametrize(("name", "settings", "message"), [
    ("kl+crd", {"distillation_temperature": 1.0}, "several parts of method 'kl\\+crd' have it; say whose: "
     "kl_distillation_temperature or crd_distillation_temperature"),
    ("kl+rkd", {"alpha": 0.5}, "alpha: not a setting of method 'kl\\+rkd'; its own are: kl_distillation_weight"),
    ("kl+rkd", {"angle_weight": 1.0, "rkd_angle_weight": 2.0}, "given twice"),
    ("kl+rkd", {"angle_weight": -1.0}, "angle.weight -1.0: too small"),
    ("kl+kl", {}, "'kl' is named twice"),
    ("kl+rkd", {"method_weights": "1"}, "method_weights 1: method 'kl\\+rkd' has 2 parts"),
    ("kl+rkd", {"method_weights": "1,x"}, "give a number above 0 for each, as in 1,0.5"),
    ("kl+rkd", {"method_weights": (1, -1)}, "give a number above 0"),
    ("kl+rkd", {"method_weights": (1, 0)}, "give a number above 0"),
    ("kl+rkd", {"method_weights": (1, 1e300)}, "give a number above 0"),
    ("kl+rkd", {"method_weights": (1, 10**400)}, "give a number above 0"),
    ("kl+rkd", {"method_weights": (1, float("nan"))}, "give a number above 0"),
    ("kl", {"method_weights": "1"}, "method 'kl' is no sum of methods"),
])
def test_what_a_sum_cannot_be_is_refused_in_one_line(name, settings, message):
    with pytest.raises(InputError, match=message):
        create_method(name, **settings)


def test_what_a_part_does_not_allow_is_told_in_the_sums_words():
    together = create_method("brcd+sp", sp_variant="released", sp_relations_on="features")
    with pytest.raises(InputError) as refusal:
        together.check_settings()
    assert (refusal.value.field, refusal.value.value) == ("sp_relations_on", "features")
    assert "give codes or logits, or `sp_variant` batch" in refusal.value.problem
    with pytest.raises(InputError) as refusal:
        create_method("crd+packd", packd_neighbours=200).check(images=100, streamed=False)
    assert refusal.value.field == "packd_neighbours"


def test_an_unknown_part_is_answered_with_the_nearest_name():
    with pytest.raises(UnknownName, match="unknown method 'rdk': did you mean 'rkd'"):
        create_method("brcd+rdk")


def test_parts_that_need_different_clusters_are_refused(monkeypatch):
    class Other(BaseMethod):
        """A method that wants four clusters."""

        __dataclass_fields__ = {}
        needs = Needs(clusters=ClusterNeeds(4))

    monkeypatch.setitem(METHODS._entries, "other", Other)
    with pytest.raises(InputError, match="clusters: the parts of a sum of methods share theirs"):
        create_method("brcd+other")


def test_the_command_line_and_the_configuration_know_a_sums_settings():
    config = parse_command_line("test", "", ["--method", "kl+crd", "--method-weights", "1,0.5", "--negatives", "7",
                                             "--crd-distillation-temperature", "0.2"])
    assert config.method.weights == (1.0, 0.5)
    assert config.flat().items() >= {"method": "kl+crd", "method_weights": "1,0.5", "crd_distillation_temperature": 0.2,
                                     "crd_negatives": 7, "kl_distillation_temperature": 4.0}.items()
    assert config.compared() != create_config(method="kl+crd", method_weights="1,0.5", negatives=7).compared()


def test_outputs_of_a_head_are_alike_in_both_frameworks():
    """Of a row of zeros too, whose codes are 0."""
    torch.manual_seed(0)
    reference, features = torch.nn.Linear(5, 4, bias=False), torch.randn(3, 5)
    features[0] = 0
    head = nnx.Linear(5, 4, use_bias=False, rngs=nnx.Rngs(0))
    head.kernel[...] = jnp.asarray(reference.weight.detach().numpy().T)
    expected = [np.asarray(part.detach()) for part in torch_outputs_of(reference, features)]
    ours = outputs_of(head, jnp.asarray(features.numpy()))
    assert Outputs._fields == TorchOutputs._fields == ("features", "logits", "codes")
    for part, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(ours.codes, np.sign(expected[1]))
