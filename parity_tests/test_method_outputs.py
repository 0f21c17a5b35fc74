"""What a method sees: the outputs that it names of the views that it names, the step and how many there will be; and what it is
refused before anything trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jobs import job

from jax_brcd import distill
from jax_brcd.clusters.choice import ClusterChoice, ClusterNeeds, make_clusters
from jax_brcd.methods import BaseMethod, Needs, TeacherKnowledge, create_method
from jax_brcd.methods.base import check_needs
from jax_brcd.models import create_hash_model
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.command_line import run_command
from jax_brcd.stages.student import student_stage
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.loop import fit, start, train_epoch
from jax_brcd.views.batches import epoch_batches
from jax_brcd.views.derivations import ITSELF, Rotation
from jax_brcd.views.outputs import Outputs
from jax_brcd.views.sources import KeptFeatures, KeptTeacher, LiveTeacher

IMAGES, BITS, BATCH, VIEWS = 10, 8, 4, 2
DRAW = np.random.default_rng(0)
CODES = DRAW.choice([-1.0, 1.0], (IMAGES, BITS)).astype(np.float32)
CODES_OF_VIEWS = DRAW.choice([-1, 1], (VIEWS, IMAGES, BITS)).astype(np.int8)
FEATURES = DRAW.normal(size=(VIEWS, IMAGES, 64)).astype(np.float32)
asked: list[tuple[str, str]] = []  # (whose, of what), in the order of the program


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spied(KeptFeatures):
    """Kept features that note what is asked of them; of a frozen backbone all views are told apart by their numbers alone."""

    def outputs(self, model, indices, views, valid, derivation=ITSELF, key=None):
        asked.append(("student", derivation.name))
        return super().outputs(model, indices, views, valid, derivation, key)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SpiedTeacher(KeptTeacher):
    """The teacher's side of it."""

    def outputs(self, indices, views, valid, derivation=ITSELF):
        asked.append(("teacher", derivation.name))
        return super().outputs(indices, views, valid, derivation)


def stage_of(method, epochs=2, **settings):
    model = create_hash_model("resnet8", BITS, rngs=nnx.Rngs(0))
    turned = {Rotation(1).name: jnp.asarray(FEATURES)}
    teacher = SpiedTeacher(jnp.asarray(CODES_OF_VIEWS), {Rotation(1).name: jnp.asarray(CODES_OF_VIEWS)})
    if set(method.needs.teacher) - {"codes"}:
        teacher = teacher.with_features(KeptFeatures(jnp.asarray(FEATURES), turned), model.head)
    stage, parameters, carry = student_stage(
        model, teacher, method, TeacherKnowledge(CODES), train_backbone=False, learning_rate=1e-2, temperature=0.3,
        kl_weight=0.001, method_seed=0, **job(Spied(jnp.asarray(FEATURES), turned), n_images=IMAGES, batch_size=BATCH,
                                              epochs=epochs, seed=0, kept_views=VIEWS, **settings))
    return stage, start(stage, parameters, carry)


def one_epoch(stage, state, epoch=0):
    batches = epoch_batches(IMAGES, BATCH, epoch=epoch, seed=0, views=VIEWS)
    return train_epoch(stage.task.loss, stage.task.optimizer, state, stage.task.constants, batches, jax.random.key(epoch))


@dataclasses.dataclass(frozen=True)
class Seeing(BaseMethod):
    """Hands what it sees to a list, and tells the step in the history."""

    needs: Needs = Needs()
    replaces_objective: bool = False
    metric: str = "at_step"
    seen: list = dataclasses.field(default_factory=list, hash=False, compare=False)

    def loss(self, parameters, memory, batch):
        """The sum of what is seen of the student."""
        self.seen.append(batch)
        total = sum(jnp.sum(part) for part in jax.tree.leaves(dict(batch.student)))
        return total * 1e-3, memory, {self.metric: jnp.float32(batch.step), "of": jnp.float32(batch.steps)}


@pytest.mark.parametrize(("needs", "replaces", "expected"), [
    (Needs(), True, [("student", "itself"), ("teacher", "itself")]),
    (Needs(), False, [("student", "itself")] * 2 + [("teacher", "itself")]),
    (Needs(views=("i", "j")), True, [("student", "itself")] * 2 + [("teacher", "itself")] * 2),
    (Needs(views=("i", "j"), unseen=("j",)), True, [("student", "itself")] + [("teacher", "itself")] * 2),
    (Needs(views=("i", "j"), unseen=("j",)), False, [("student", "itself")] * 2 + [("teacher", "itself")] * 2),
    (Needs(views=("i", Rotation(1))), True, [("student", "itself"), ("student", "rotation1"), ("teacher", "itself"),
                                             ("teacher", "rotation1")]),
    (Needs(views=()), False, [("student", "itself")] * 2)])
def test_only_the_views_that_are_named_are_encoded(needs, replaces, expected):
    """And the two of the student's own objective, unless the method replaces it."""
    asked.clear()
    stage, state = stage_of(Seeing(needs, replaces))
    _, metrics = one_epoch(stage, state)
    assert asked == expected * (len(asked) // len(expected)) and asked
    assert ("contrastive" in metrics) == ("kl" in metrics) == (not replaces)


def test_only_the_outputs_that_are_named_are_seen():
    method = Seeing(Needs(views=("i", "j", Rotation(1)), student=("logits",), teacher=("features", "codes")))
    one_epoch(*stage_of(method))
    batch = method.seen[0]
    assert list(batch.student) == list(batch.teacher) == ["i", "j", "rotation1"]
    for view in batch.student:
        assert batch.student[view].features is None is batch.student[view].codes
        assert batch.student[view].logits.shape == (BATCH, BITS)
        assert batch.teacher[view].logits is None and batch.teacher[view].features.shape == (BATCH, 64)
        assert batch.teacher[view].codes.shape == (BATCH, BITS)


def test_outputs_that_are_not_kept_are_asked_for_in_vain():
    with pytest.raises(ValueError, match="outputs 'logits' are asked for, and this encoder gives codes"):
        KeptTeacher(jnp.asarray(CODES_OF_VIEWS)).outputs(jnp.arange(3), jnp.zeros(3, int), jnp.ones(3, bool)).only(("logits",))
    with pytest.raises(ValueError, match="'logit'"):
        Outputs(codes=jnp.ones((1, 2))).only(("logit",))


def test_a_teacher_gives_the_same_live_and_kept():
    model = create_hash_model("resnet8", BITS, rngs=nnx.Rngs(0))
    features = KeptFeatures(jnp.asarray(FEATURES))
    batch = jnp.array([3, 1, 7]), jnp.array([0, 1, 1]), jnp.ones(3, bool)
    live = LiveTeacher.of(model, features)
    codes = np.stack([np.sign(np.asarray(model.head(jnp.asarray(view)))) for view in FEATURES]).astype(np.int8)
    kept = KeptTeacher(jnp.asarray(codes)).with_features(features, model.head)
    assert live.width == kept.width == 64
    jax.tree.map(np.testing.assert_array_equal, live.outputs(*batch), kept.outputs(*batch))


def test_a_method_knows_the_step_and_how_many_there_will_be(tmp_path):
    """Three steps an epoch: the means over epochs are 1, 4, 7. The number is in the carry, so that a stop keeps it."""
    stage, state = stage_of(Seeing(), epochs=3, checkpoint_seconds=0.0)
    copy = jax.tree.map(jnp.array, state)
    whole = fit(stage, state, Checkpoints(tmp_path / "whole")).history
    assert [record["at_step"] for record in whole] == [1, 4, 7] and {record["of"] for record in whole} == {9}
    first, _ = one_epoch(stage, copy)
    assert first.carry["step"] == 3 and first.carry["step"].dtype == jnp.int32
    _, second = one_epoch(stage, first, epoch=1)
    np.testing.assert_array_equal(second["at_step"], [3, 4, 5])


@pytest.mark.parametrize("name", ["loss", "contrastive", "distillation", "epoch"])
def test_a_metric_that_bears_one_of_the_stages_names_is_refused(name):
    with pytest.raises(ValueError, match=f"a method's metric is called '{name}'"):
        one_epoch(*stage_of(Seeing(metric=name)))


def test_a_clustering_is_stored_and_taken_back():
    needs = ClusterNeeds("auto", restarts=1)
    made = make_clusters(CODES, needs, cluster_range=(2, 4), seed=0)
    back = ClusterChoice.from_arrays(made.arrays())
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(made), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert isinstance(back.clustering.inertia, float)


def test_how_far_the_choice_of_clusters_is_goes_to_a_callback(capfd):
    told = []
    make_clusters(CODES, ClusterNeeds("auto", restarts=1), cluster_range=(2, 4), seed=0, progress=lambda *now: told.append(now))
    assert told == [("clusters", done, 3) for done in range(4)]
    assert capfd.readouterr() == ("", "")


def test_brcd_without_clusters_says_where_they_come_from():
    with pytest.raises(InputError, match="TeacherKnowledge.of"):
        create_method("brcd").init(TeacherKnowledge(CODES), seed=0)


@pytest.mark.parametrize(("method", "sizes", "message"), [
    (create_method("brcd", clusters=11), {}, "clusters 11: more clusters than the 10 training images"),
    (create_method("rkd+brcd", clusters=11), {}, "clusters 11: more clusters"),
    (create_method("packd"), {}, "neighbours 10: each of the 10 training images has 9 others"),
    (create_method("packd", neighbours=3), {"streamed": True}, "mixtures 1: .* do not travel with a step"),
    (create_method("packd+kl", neighbours=3), {"streamed": True}, "mixtures 1"),
    (create_method("crd"), {"images": 1}, "negatives 500: there are none among 1"),
])
def test_what_a_method_cannot_do_is_refused_by_its_check(method, sizes, message):
    with pytest.raises(InputError, match=message):
        method.check(**{"images": IMAGES, "streamed": False, **sizes})


def test_what_a_method_can_do_passes_its_check():
    for method in (create_method("brcd", clusters=10), create_method("packd", mixtures=0), create_method("crcd"),
                   create_method("brcd", clusters="auto")):
        method.check(images=IMAGES, streamed=not method.needs.neighbours)
    with pytest.raises(InputError, match="neighbours 2: .* do not travel with a step"):  # a method of one's own
        check_needs(Needs(neighbours=2), images=IMAGES, streamed=True)


def test_packd_with_images_that_travel_is_refused_before_the_teacher_trains(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run_command(distill.main, ["--method", "packd", "--resident-mib", "0", "--out", str(tmp_path / "run"),
                                   "--cache-dir", str(tmp_path / "cache")])
    line, = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and "--mixtures 1: packd mixes an image with others" in line and "--resident-mib" in line
    assert not (tmp_path / "run").exists()
