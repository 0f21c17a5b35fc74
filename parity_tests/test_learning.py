"""How a student learns, piece by piece: optimizers, schedules, averages, blocks, views, and what cannot be together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from toy_runs import PIXELS_SIDE, Pixels, refusal, words

from jax_brcd import distill
from jax_brcd.losses import soft_bits_loss
from jax_brcd.methods import create_method
from jax_brcd.models import HashModel, create_hash_model
from jax_brcd.models.adapt import adapted
from jax_brcd.models.blocks import depth_of
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.recipes import RECIPES
from jax_brcd.settings.stages import LearningConfig
from jax_brcd.stages.configuration import create_config, unusual
from jax_brcd.stages.learning import check_blocks, check_images, check_learning, check_new, create_optimizer
from jax_brcd.stages.teacher import check_teacher
from jax_brcd.training.optimizers import OPTIMIZERS, decayed
from jax_brcd.training.rates import SCHEDULES, Course
from jax_brcd.training.updates import average_in, averaging
from jax_brcd.views import augmentation as augment
from jax_brcd.views.augmentation import ViewConfig
from jax_brcd.views.derivations import view_keys
from jax_brcd.views.mixing import Mix, draw_mix
from jax_brcd.views.outputs import Outputs
from torch_ref import learning as reference
from torch_ref.augment import Moved, training_view
from torch_ref.distill import check_student, load_experiment
from torch_ref.training import minimise

STEPS = 12
draw_view_parameters = jax.jit(augment.draw_view_parameters, static_argnames=("height", "width", "config"))
apply_views = jax.jit(augment.apply_views, static_argnames=("config",))


# Optimizers and schedules

@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_an_optimizer_moves_weights_as_torch_refs(name):
    """A matrix and a bias on a quadratic; without its spare of the bias a decay of 0.3 would show at once."""
    draw = np.random.default_rng(0)
    first = {"kernel": draw.normal(size=(3, 4)).astype(np.float32), "bias": draw.normal(size=4).astype(np.float32)}
    curvature = {key: np.float32(1 + draw.random(value.shape)) for key, value in first.items()}
    settings = LearningConfig(optimizer=name, **({} if name == "adam" else {"weight_decay": 0.3}))
    transformation = OPTIMIZERS[name].build(0.05, settings.weight_decay or 0.0, settings.sgd_momentum)
    ours = jax.tree.map(jnp.asarray, first)
    state = transformation.init(ours)
    theirs = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in first.items()}
    optimizer = reference.create_optimizer(list(theirs.values()), settings, 0.05)
    for _ in range(STEPS):
        updates, state = transformation.update({key: curvature[key] * value for key, value in ours.items()}, state, ours)
        ours = optax.apply_updates(ours, updates)
        for key, value in theirs.items():
            value.grad = torch.tensor(curvature[key]) * value.detach()
        optimizer.step()
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value.detach().numpy(), rtol=1e-4, atol=1e-5)
        assert np.abs(value.detach().numpy() - first[key]).max() > 0.05


def test_decay_spares_norms_and_biases():
    model = create_hash_model("vit_lite_4_8", 8)
    found = nnx.to_pure_dict(decayed(nnx.state(model, nnx.Param)))
    block = found["backbone"]["layers"][0]
    assert found["head"] == {"kernel": True, "bias": False}
    assert block["ln_1"] == {"scale": False, "bias": False} and block["mlp"]["linear_1"] == {"kernel": True, "bias": False}


@pytest.mark.parametrize(("name", "settings", "course"), [
    ("constant", {}, {}), ("cosine", {}, {}), ("cosine", {"warmup_epochs": 0.0}, {"warmup": 0}),
    ("cosine", {"warmup_epochs": 2.0}, {"warmup": 20}), ("one-cycle", {}, {}),
    ("one-cycle", {"warmup_epochs": 1.0}, {"warmup": 10}),
    ("step", {}, {}), ("step", {"lr_step_epochs": 1.5}, {"drop": 15})])
def test_a_schedule_goes_as_torch_refs(name, settings, course):
    """Of five epochs of ten steps."""
    rate = SCHEDULES[name].build(Course(2.0, 50, **course))
    ours = [float(rate(step)) if callable(rate) else rate for step in range(50)]
    factor = reference.rate_factor(LearningConfig(lr_schedule=name, **settings), 5, 10)
    np.testing.assert_allclose(ours, [2.0 * factor(step) for step in range(50)], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(("steps", "warmup"), [(22, 15), (49, 1), (50, 29), (2940, 882)])
def test_one_cycle_peaks_after_all_steps_of_its_warm_up(steps, warmup):
    """Also where their part of all steps, times all steps, is rounded to fewer."""
    rate = SCHEDULES["one-cycle"].build(Course(1.0, steps, warmup))
    expected = [reference.cycle_factor(step, steps, warmup) for step in range(steps)]
    np.testing.assert_allclose([float(rate(step)) for step in range(steps)], expected, rtol=2e-5, atol=1e-6)
    assert max(expected) == expected[warmup]


def test_one_cycle_whose_warm_up_is_the_whole_run_reaches_its_peak_at_the_end():
    """Steps that are accumulated may round both to as many updates."""
    rate = SCHEDULES["one-cycle"].build(Course(1.0, 91, 91))
    assert [round(float(rate(step)), 3) for step in (0, 45, 90)] == [0.04, 0.52, 1.0]


@pytest.mark.parametrize(("settings", "patience"), [
    ({}, 5), ({"lr_schedule": "one-cycle"}, None), ({"lr_schedule": "step", "patience": 5}, 5), ({"patience": 0}, 0)])
def test_no_run_stops_before_its_schedule_ends_unless_told(settings, patience):
    config = create_config(**settings)
    assert config.student.patience == config.flat()["patience"] == patience
    again = create_config(**{name: value for name, value in config.flat().items() if name in ("lr_schedule", "patience")})
    assert again.student.patience == patience and again.compared() == config.compared()


def test_schedules_reach_their_peak_and_end_where_they_say():
    cosine, cycle, step = (SCHEDULES[name].build(Course(1.0, 100)) for name in ("cosine", "one-cycle", "step"))
    assert [round(float(cosine(at)), 6) for at in (0, 5, 100)] == [0, 1, 0]
    assert [round(float(cycle(at)), 6) for at in (0, 30, 100)] == [0.04, 1, 4e-6]
    assert [round(float(step(at)), 6) for at in (32, 33, 66, 99)] == [1, 0.1, 0.01, 0.001]


def test_the_default_is_adam_as_it_always_was(small):
    settings = LearningConfig()
    parameters = {"model": nnx.state(small, nnx.Param), "method": {}}
    ours, plain = (optimizer.init(parameters) for optimizer in (
        create_optimizer(settings, small, rate=1e-3, epochs=3, steps=5), optax.adam(1e-3)))
    assert jax.tree.structure(ours) == jax.tree.structure(plain)
    assert unusual(settings) == {} and unusual(LearningConfig(mixup=0.2, keep="both")) == {"mixup": 0.2, "keep": "both"}


# What is done to updates

def trained(settings, model, steps, *, epochs=4, an_epoch=3):
    """The model's weights after steps of gradients that are all 1, and the optimizer's state."""
    parameters = {"model": nnx.state(model, nnx.Param), "method": {"map": {"kernel": jnp.ones((2, 2))}}}
    optimizer = create_optimizer(settings, model, rate=1.0, epochs=epochs, steps=an_epoch)
    state = optimizer.init(parameters)

    @jax.jit
    def step(parameters, state):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, parameters), state, parameters)
        return optax.apply_updates(parameters, updates), state

    for _ in range(steps):
        parameters, state = step(parameters, state)
    return parameters, state


SGD = {"optimizer": "sgd", "sgd_momentum": 0.0, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def small():
    return HashModel(adapted(Pixels(nnx.Rngs(0)), name="pixels", image_size=PIXELS_SIDE), 8, rngs=nnx.Rngs(1))


def change(model, parameters, *path):
    """How far a weight of that path within the backbone has gone down, or the head's, the same in all its entries."""
    path = ("backbone", "module", *path) if path else ("head", "kernel")
    before, after = (nnx.to_pure_dict(state) for state in (nnx.state(model, nnx.Param), parameters["model"]))
    for name in path:
        before, after = before[name], after[name]
    gone = np.asarray(before) - np.asarray(after)
    return float(gone.flat[0]) if np.allclose(gone, gone.flat[0], atol=1e-5) else None


def test_rates_fall_from_block_to_block(small):
    """Of two blocks the stem is the third power of the factor from the head."""
    parameters, _ = trained(LearningConfig(**SGD, layer_decay=0.5), small, 1)
    found = [change(small, parameters, *path) for path in (
        ("stem", "kernel"), ("blocks", 0, "filter", "kernel"), ("blocks", 1, "norm", "scale"), ())]
    np.testing.assert_allclose(found, [1 / 8, 1 / 4, 1 / 2, 1], rtol=1e-4)
    np.testing.assert_allclose(parameters["method"]["map"]["kernel"], 0.0)


@pytest.mark.parametrize(("blocks", "expected"), [(None, (0, 0, 0)), (1, (0, 0, 1)), (0, (0, 1, 1))])
def test_first_blocks_stay_as_they_are_for_some_epochs(small, blocks, expected):
    settings = LearningConfig(**SGD, freeze_epochs=1, freeze_blocks=blocks)
    paths = (("stem", "kernel"), ("blocks", 0, "filter", "kernel"), ("blocks", 1, "filter", "kernel"))
    parameters, _ = trained(settings, small, 3)  # an epoch
    np.testing.assert_allclose([change(small, parameters, *path) for path in paths], 3 * np.array(expected), atol=1e-4)
    assert change(small, parameters) == pytest.approx(3)
    later, _ = trained(settings, small, 4)
    assert change(small, later, *paths[0]) == pytest.approx(1, abs=1e-4)


def test_gradients_are_clipped_and_accumulated(small):
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(small, nnx.Param))) + 4
    parameters, _ = trained(LearningConfig(**SGD, clip_norm=1.0), small, 1)
    assert change(small, parameters) == pytest.approx(count**-0.5, rel=1e-3)
    for steps, expected in ((1, 0), (2, 1), (3, 1), (4, 2)):
        parameters, _ = trained(LearningConfig(**SGD, accumulate=2), small, steps)
        assert change(small, parameters) == pytest.approx(expected, abs=1e-6)


def test_the_schedule_of_accumulated_steps_ends_with_the_run(small):
    _, state = trained(LearningConfig(optimizer="sgd", lr_schedule="cosine", accumulate=3, warmup_epochs=0.0), small, 12)
    last = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == () and leaf.dtype == jnp.int32]
    assert max(int(leaf) for leaf in last) == 4  # of twelve steps


def test_an_average_is_the_mean_at_first_and_moves_by_its_decay_later():
    optimizer, parameters = optax.chain(optax.sgd(1.0), averaging(0.5)), {"x": jnp.zeros(())}
    state, expected, value = optimizer.init(parameters), 0.0, 0.0
    for step in range(12):
        updates, state = optimizer.update({"x": jnp.float32(-1.0)}, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        value += 1
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert float(average_in(state)["x"]) == pytest.approx(expected, rel=1e-5)
    assert average_in(optax.adam(1.0).init(parameters)) is None


@pytest.mark.parametrize(("name", "blocks", "stem", "behind"), [
    ("resnet18", 8, "conv1", None), ("vit_b_16", 12, "pos_embedding", "ln"), ("clip_vit_b_32", 12, "ln_before", "projection"),
    ("siglip_base_patch16_224", 12, "conv_proj", "pooling"), ("dinov2_vits14_reg", 12, "registers", "ln"),
    ("convnext_tiny", 22, None, "norm"), ("efficientnet_b0", 18, None, "classifier"), ("mobilenet_v2", 19, None, "classifier")])
def test_the_blocks_of_a_backbone_are_counted_in_order(name, blocks, stem, behind):
    model = nnx.eval_shape(lambda: create_hash_model(name, 8))
    depth, count = depth_of(model)
    assert count == blocks and depth(("head", "kernel")) == blocks + 1
    if stem:
        assert depth(("backbone", stem, "kernel")) == 0
    if behind:
        assert depth(("backbone", behind, "kernel")) == blocks + 1
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param)) if path[0] == "backbone"]
    assert {depth(path) for path in paths} >= set(range(1, blocks + 1))


# Views and mixtures

def test_a_moved_view_is_torchs_padded_crop():
    """With the same parameters, at the image's own size and at another; most views have black at a side."""
    images = np.random.default_rng(0).integers(1, 256, (6, 32, 24, 3), dtype=np.uint8)
    for size in (32, 20):
        config = ViewConfig(size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), **RECIPES["crop-flip"])
        drawn = draw_view_parameters(jax.random.split(jax.random.key(1), 6), height=32, width=24, config=config)
        views = np.asarray(apply_views(images, drawn, config=config))
        for row in range(6):
            top, left = int(drawn.top[row]), int(drawn.left[row])
            assert -4 <= top <= 4 and -3 <= left <= 3
            moved = Moved().transform(torch.tensor(images[row]).permute(2, 0, 1).float() / 255,
                                      {"most": (4, 3), "top": top + 4, "left": left + 3})
            moved = moved.flip(2) if drawn.flip[row] else moved
            expected = torch.nn.functional.interpolate(moved[None], (size, size), mode="bilinear", antialias=True)[0]
            np.testing.assert_allclose(views[row], expected.permute(1, 2, 0).numpy(), atol=1e-5)
    assert len({(int(top), int(left)) for top, left in zip(drawn.top, drawn.left, strict=True)}) > 3


def test_moves_are_uniform_and_torch_refs_too():
    config = ViewConfig(size=32, **RECIPES["crop-flip"])
    keys = jax.jit(view_keys)(jax.random.key(0), jnp.arange(4000), jnp.zeros(4000, int))
    drawn = draw_view_parameters(keys, height=32, width=32, config=config)
    for offsets in (drawn.top, drawn.left):
        counts = np.bincount(np.asarray(offsets) + 4, minlength=9)
        assert len(counts) == 9 and counts.min() > 350 and counts.max() < 540
    assert not np.asarray(drawn.jitter).any() and abs(float(drawn.flip.mean()) - 0.5) < 0.05
    torch.manual_seed(0)
    theirs = [Moved().make_params([torch.zeros(3, 32, 32)])["top"] for _ in range(900)]
    assert set(theirs) == set(range(9))
    assert training_view(20, True, "crop-flip")(torch.zeros(3, 32, 32, dtype=torch.uint8)).shape == (3, 20, 20)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lion", "lamb"])
def test_torch_ref_leaves_what_the_outputs_do_not_depend_on(name):
    used, unused = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3, 3))
    optimizer = reference.create_optimizer([used, unused], LearningConfig(optimizer=name), 0.1)
    minimise((used**2).sum(), optimizer, clip_norm=1.0)
    assert (unused == 1).all() and (used != 1).all()


def test_torch_ref_refuses_a_last_batch_that_batch_norm_cannot_take_before_the_teacher(tmp_path):
    settings = {"dataset": "digits", "student": "resnet18", "student_weights": "random", "train_backbone": True, "method": "mse",
                "cache_dir": tmp_path}
    for batch, refused in ((199, True), (200, False)):  # of 797 images
        experiment = load_experiment(create_config(**settings, batch_size=batch))
        if refused:
            with pytest.raises(InputError, match="batch_size 199: the last of an epoch's batches is one image, .* at 32 pixels"):
                check_student(experiment)
        else:
            check_student(experiment)


def test_a_mixture_is_of_two_rows_that_count_and_the_teachers_is_the_same():
    mix = jax.jit(draw_mix, static_argnums=2)(jax.random.key(0), jnp.arange(5000) < 4998, 0.4)
    many = np.asarray(mix.weight)
    assert mix.partner[:2].tolist() == [1, 2] and mix.partner[-3:].tolist() == [0, 4998, 4999]
    assert 0 <= many.min() <= many.max() <= 1 and float(many.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(many.var()) == pytest.approx(1 / (4 * 1.8), abs=0.01)
    half = Mix(jnp.full(2, 0.75), jnp.array([1, 0]))
    logits = jnp.array([[4.0, -1.0], [-4.0, 9.0]])
    mixed = half.outputs(Outputs(logits=logits, codes=jnp.sign(logits)))
    np.testing.assert_allclose(mixed.logits, [[2.0, 1.5], [-2.0, 6.5]])
    np.testing.assert_array_equal(mixed.codes, [[1.0, 1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(half.rows(jnp.arange(8.0).reshape(2, 2, 2))[0], [[1.0, 2.0], [3.0, 4.0]])


def test_tempered_logits_are_softer_labels():
    student, teacher = jnp.array([[0.5, -1.0]]), jnp.array([[2.0, -0.4]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor([[0.5, -1.0]]),
                                                                    torch.sigmoid(torch.tensor([[2.0, -0.4]]) / 0.5))
    assert float(soft_bits_loss(student, teacher, 0.5)) == pytest.approx(float(expected), rel=1e-6)
    assert create_method("bits", bits_temperature=0.5).needs.teacher == ("logits", "codes")
    assert create_method("bits").needs.teacher == ("codes",)


# What cannot be together

@pytest.mark.parametrize(("settings", "line"), [
    ({"ema_decay": 0.9, "train_backbone": False}, "ema_decay 0.9: of the frozen student the hash head alone learns"),
    ({"layer_decay": 0.5, "train_backbone": False}, "layer_decay 0.5: of the frozen student"),
    ({"freeze_epochs": 1, "train_backbone": False}, "freeze_epochs 1: of the frozen student"),
    ({"mixup": 0.2, "method": "mse", "train_backbone": False}, "mixup 0.2: views are mixed as pixels"),
    ({"mixup": 0.2}, "mixup: the method looks up what is known of each image"),
    ({"weight_decay": 0.1}, "weight_decay 0.1: optimizer adam has none; leave it out, or name optimizer adamw or sgd"),
    ({"sgd_momentum": 0.5, "optimizer": "lamb"}, "sgd_momentum 0.5: optimizer lamb has none"),
    ({"warmup_epochs": 1}, "warmup_epochs 1.0: lr_schedule constant has none; .* cosine or one-cycle"),
    ({"lr_step_epochs": 1, "lr_schedule": "cosine"}, "lr_step_epochs 1.0: lr_schedule cosine has none"),
    ({"warmup_epochs": 20, "lr_schedule": "cosine"}, "warmup_epochs 20.0: as long as the run or longer, whose epochs are 20"),
    ({"lr_step_epochs": 30, "lr_schedule": "step"}, "lr_step_epochs 30.0: as long as the run"),
    ({"freeze_epochs": 20}, "freeze_epochs 20: as long as the run"), ({"freeze_blocks": 2}, "freeze_blocks 2: no epochs"),
    ({"accumulate": 300}, "accumulate 300: the run has 40 steps"),
    ({"own_objective": False, "method": "none"}, "own_objective False: method none learns nothing .* or give own_objective"),
    ({"method": "mse+none"}, r"method mse\+none: part none learns nothing from the teacher; leave it out"),
    ({"method": "mse+rkd", "rkd_distillation_weight": 0},
     "rkd_distillation_weight 0.0: a part of no weight is none; leave rkd out, or give more"),
    ({"method": "mse+rkd", "rkd_relations_on": "features", "train_backbone": False},
     r"method mse\+rkd: method rkd looks at the student's features, which without train_backbone stay as they are"),
    ({"views": 4, "teacher_view": "clean", "method": "mse", "teacher_objective": "itq"}, "views 4: nothing of kept views is kept here"),
    ({"own_objective": False, "method": "mse", "mse_on": "features", "train_backbone": True},
     "own_objective False: method mse looks at the student's features alone, so that its hash head would not learn"),
    ({"own_objective": False, "method": "rkd", "relations_on": "features", "train_backbone": True}, "own_objective False: method rkd"),
    ({"method": "mse", "mse_on": "features", "train_backbone": False}, "method mse: method mse looks at the student's features, which without train_backbone"),
    ({"teacher_view": "clean", "method": "sskd"}, "teacher_view clean: method sskd compares .*rotation1"),
    ({"own_objective": False, "method": "mse", "temperature": 0.5},
     "temperature 0.5: the student has no objective of its own, and method mse does not look at it; leave it out"),
    ({"own_objective": False, "method": "brcd", "kl_weight": 0.1}, "kl_weight 0.1: .* method brcd does not look at it"),
    ({"own_objective": False, "method": "rkd", "distillation_weight": 0}, "distillation_weight 0.0: .* nothing would be learnt; give more"),
    ({"method": "none", "teacher_view": "clean", "teacher_neighbours": 5}, "teacher_neighbours 5: method none learns nothing from the"),
    ({"min_epochs": 3, "lr_schedule": "cosine"}, "min_epochs 3: nothing stops early under lr_schedule cosine without patience; give that"),
    ({"teacher_neighbours": 5}, "teacher_neighbours 5: outputs of un-augmented images are averaged, .* give 0, or teacher_view clean"),
    ({"teacher_neighbours": 100, "teacher_view": "clean"}, "teacher_neighbours 100: each of the 100 training images has 99 others"),
])
def test_what_cannot_be_together_is_refused(settings, line):
    with pytest.raises(InputError, match=line):
        config = create_config(**settings)
        check_learning(config)
        check_new(config)
        check_images(config, images=100)


@pytest.mark.parametrize(("settings", "line"), [
    ({"teacher_objective": "itq", "teacher_lr": 1e-3}, "teacher_lr 0.001: teacher_objective itq of teacher vit_lite_4_8 does not look"),
    ({"teacher_objective": "itq", "teacher_batch_size": 7}, "teacher_batch_size 7: teacher_objective itq"),
    ({"teacher_objective": "bihalf", "teacher_temperature": 0.5}, "teacher_temperature 0.5: teacher_objective bihalf"),
    ({"teacher_objective": "crovca", "teacher_kl_weight": 0.1}, "teacher_kl_weight 0.1: teacher_objective crovca"),
    ({"embeddings_dropout": 0.5}, "embeddings_dropout 0.5: teacher_objective cibhash of teacher vit_lite_4_8"),
    ({"teacher": "embeddings", "teacher_objective": "greedyhash", "embeddings_dropout": 0.5}, "greedyhash of teacher embeddings does"),
])
def test_settings_of_the_teacher_that_nothing_looks_at_are_refused(settings, line):
    with pytest.raises(InputError, match=line):
        check_teacher(create_config(**settings))


def test_settings_that_the_teacher_looks_at_are_not_refused():
    usual = {"teacher_lr": 5e-4, "teacher_temperature": 0.3, "teacher_kl_weight": 0.001}  # as a teacher's folder tells them
    for settings in ({"teacher_lr": 1e-3, "teacher_temperature": 0.5, "teacher_kl_weight": 0.1, "teacher_batch_size": 7},
                     {"teacher_objective": "bihalf", "teacher_lr": 1e-3}, {"teacher_objective": "itq", **usual},
                     {"teacher_objective": "crovca"},
                     {"teacher": "embeddings", "teacher_objective": "crovca", "embeddings_dropout": 0.5}):
        check_teacher(create_config(**settings))


def test_what_something_looks_at_is_not_refused():
    for settings in ({"temperature": 0.5, "own_objective": False, "method": "brcd"}, {"temperature": 0.5, "kl_weight": 0.1},
                     {"temperature": 0.5, "own_objective": False, "method": "mse+brcd"}, {"method": "rkd", "distillation_weight": 0},
                     {"method": "mse", "mse_on": "features", "train_backbone": True}, {"method": "none"},
                     {"views": 4, "teacher_objective": "itq"}, {"views": 4, "teacher_view": "clean", "method": "mse"},
                     {"views": 4, "fresh_views": True, "teacher_view": "clean", "method": "mse", "teacher_objective": "itq"},
                     {"views": 4, "train_backbone": False, "teacher_view": "clean", "method": "mse", "teacher_objective": "itq"},
                     {"method": "mse+rkd", "rkd_relations_on": "features", "own_objective": False}):
        check_learning(create_config(**settings))
    whole = create_config("cifar10-32-whole", method="none", own_objective=True)
    check_learning(whole)  # whose neighbours the preset names


def test_a_student_without_such_blocks_is_refused(small):
    with pytest.raises(InputError, match="freeze_blocks 3: pixels has 2 blocks; give that or less"):
        check_blocks(LearningConfig(freeze_epochs=1, freeze_blocks=3), small, "pixels")
    check_blocks(LearningConfig(freeze_epochs=1, freeze_blocks=2, layer_decay=0.5), small, "pixels")


def test_refusals_come_in_one_line_before_anything_long(tmp_path, capsys, toy_backbones):
    for settings, line in (({"layer_decay": 0.5, "train_backbone": True}, "small_toy has no list of blocks"),
                           ({"optimizer": "adamm"}, "unknown optimizer 'adamm': did you mean 'adam")):
        assert line in refusal(distill.main, words(tmp_path / "run", tmp_path / "cache", **settings), capsys)
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache" / "stages").exists()


def test_the_whole_preset_is_what_it_says():
    config = create_config("cifar10-32-whole")
    assert (config.learning.optimizer, config.learning.lr_schedule, config.student.lr) == ("adamw", "one-cycle", 2e-3)
    assert (config.learning.teacher_view, config.learning.teacher_neighbours) == ("clean", 50)
    assert config.method.needs.views == ("i",) and not config.learning.own_objective and set(config.kept.values()) == {"both"}
    check_learning(config)
    check_images(config, images=50_000)
