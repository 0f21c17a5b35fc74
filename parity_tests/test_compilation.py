"""One program a stage, compiled once: counted over epochs with a partial last batch, and over parts of odd sizes."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jobs import job, with_settings

from jax_brcd.methods import TeacherKnowledge, create_method
from jax_brcd.models import create_hash_model, load_torchvision_state, torchvision_state
from jax_brcd.stages.student import student_stage
from jax_brcd.stages.teacher import teacher_stage
from jax_brcd.training.checkpoints import Checkpoints
from jax_brcd.training.loop import _compiled_step, fit, start, train_epoch
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.views.batches import epoch_batches
from jax_brcd.views.encoding import ENCODING_BATCH, encode, encode_batch
from jax_brcd.views.features import FeatureCache, encode_views
from jax_brcd.views.sources import KeptFeatures, KeptTeacher

N_IMAGES, BATCH, VIEWS, BITS = 10, 4, 3, 8
COMPILATION = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations():
    """Yields a list that grows by one entry with everything that XLA compiles, single operations too."""
    seen, listening = [], True

    def listen(event, _, **details):
        if listening and event == COMPILATION:
            seen.append(details)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        listening = False


@pytest.fixture(scope="module")
def models():
    """A teacher and a student, of which the tests train the heads."""
    return [create_hash_model("vit_lite_4_8", BITS, rngs=nnx.Rngs(seed)) for seed in range(2)]


def settings(**others):
    return {"n_images": N_IMAGES, "batch_size": BATCH, "epochs": 4, "seed": 0, "kept_views": VIEWS, **others}


def kept_features(models, random):
    return KeptFeatures(jnp.asarray(random.standard_normal((VIEWS, N_IMAGES, models[0].backbone.features)), jnp.bfloat16))


def drawn_stage(kind, models, validate=None, searches=(), **others):
    """A stage over random kept features, with its first parameters and carry."""
    random = np.random.default_rng(0)
    views = kept_features(models, random)
    if kind == "teacher":
        stage, *rest = teacher_stage(models[0], learning_rate=1e-3, temperature=0.3, kl_weight=1e-3,
                                     **job(views, **settings(**others)))
        return with_settings(stage, validate=validate, searches=searches), *rest
    codes = random.choice([-1.0, 1.0], (N_IMAGES, BITS)).astype(np.float32)
    kept = KeptTeacher(jnp.asarray(random.choice([-1, 1], (VIEWS, N_IMAGES, BITS)), jnp.int8))
    method = create_method("brcd", clusters=2, cluster_restarts=1)
    return student_stage(
        models[1], kept, method, TeacherKnowledge.of(codes, method.needs, seed=0), train_backbone=False,
        learning_rate=1e-3, temperature=0.3, kl_weight=1e-3, method_seed=0, validate=validate, searches=searches,
        **job(views, **settings(**others)))


@pytest.mark.parametrize(("kind", "scan"), [("teacher", True), ("student", True), ("student", False)])
def test_a_stage_compiles_one_program_and_nothing_after_its_first_epoch(kind, scan, models, tmp_path):
    """Ten images in fours: the last batch of every epoch is partial. Validation is counted too; it takes nothing new."""
    program, before = (train_epoch, _compiled_step)[not scan], (train_epoch._cache_size(), _compiled_step._cache_size())
    at_validation = []

    def validate(state):
        at_validation.append(len(seen))
        return {"symmetric": 0.5, "asymmetric": 0.5}

    with compilations() as seen:
        stage, parameters, carry = drawn_stage(kind, models, scan=scan, validate=validate, patience=9,
                                               searches=("symmetric", "asymmetric"), checkpoint_seconds=0.0)
        fit(stage, start(stage, parameters, carry), Checkpoints(tmp_path))
    assert at_validation[0] > 0 and at_validation == at_validation[:1] * 4 and len(seen) == at_validation[0]
    assert program._cache_size() == before[not scan] + 1
    assert train_epoch._cache_size() + _compiled_step._cache_size() == sum(before) + 1


def test_loading_weights_and_beginning_a_training_take_no_program_for_each_shape(models):
    stage, parameters, carry = drawn_stage("student", models)
    backbone = create_hash_model("resnet8", BITS).backbone
    state, weights = torchvision_state(backbone), nnx.to_pure_dict(nnx.state(backbone, nnx.Param))
    jax.clear_caches()  # of shapes that were compiled before
    with compilations() as seen:
        load_torchvision_state(backbone, state)
        assert seen == []
        begun = start(stage, weights, carry)
        assert len(seen) == 1  # the optimizer's state
    assert jax.tree.structure(begun.parameters) == jax.tree.structure(weights)
    for ours, given in zip(jax.tree.leaves(begun.parameters), jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(ours, given)
        assert ours.unsafe_buffer_pointer() != given.unsafe_buffer_pointer()


def test_a_scanned_epoch_stays_on_the_device_and_takes_over_the_state(models):
    """Nothing is copied from or to the host while it runs, no call back to Python is compiled in, and the state is donated."""
    stage, parameters, carry = drawn_stage("student", models)
    batches = epoch_batches(N_IMAGES, BATCH, epoch=0, seed=0, views=VIEWS)
    arguments = jax.device_put((start(stage, parameters, carry), stage.task.constants, batches, jax.random.key(0)))
    program = str(jax.make_jaxpr(train_epoch, static_argnums=(0, 1))(stage.task.loss, stage.task.optimizer, *arguments))
    assert "scan[" in program and "callback" not in program and "infeed" not in program
    given = jax.tree.leaves(arguments[0])
    with jax.transfer_guard("disallow"):
        state, metrics = train_epoch(stage.task.loss, stage.task.optimizer, *arguments)
        jax.block_until_ready((state, metrics))
    assert all(leaf.is_deleted() for leaf in given)
    assert all(metric.shape == (3,) for metric in metrics.values())
    with pytest.raises(Exception, match="Disallowed host-to-device"), jax.transfer_guard("disallow"):
        # Batches on the host
        train_epoch(stage.task.loss, stage.task.optimizer, state, stage.task.constants, batches, jax.random.key(0))


def test_parts_of_any_size_are_encoded_by_one_program(models, tmp_path):
    """Sizes at and between multiples of the batch (fewer images than that take a smaller one); images, then kept views."""
    random = np.random.default_rng(0)
    images = random.integers(256, size=(2 * ENCODING_BATCH, 8, 8, 3), dtype=np.uint8)
    cache = FeatureCache(tmp_path, "vit_lite_4_8", models[0].backbone, "float32")
    before = encode_batch._cache_size(), encode_views._cache_size()
    for size in (ENCODING_BATCH, ENCODING_BATCH + 5, 2 * ENCODING_BATCH):
        features = encode(models[0].backbone, images[:size], size=32, description="")
        views = cache.views(images[:size], 2, key=jax.random.key(0), config=ViewConfig(size=32))
        assert len(features) == views.shape[1] == size
    assert (encode_batch._cache_size(), encode_views._cache_size()) == (before[0] + 1, before[1] + 1)
