"""What the report shows of a student beside its teacher: its course, bits on which both agree, queries that lost most."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from jax_brcd.data import ImageDataset, Images
from jax_brcd.models import create_hash_model
from jax_brcd.report import Report, plots, results, table, write_report
from jax_brcd.report.page import figures
from jax_brcd.retrieval import average_precisions, mean_average_precision
from jax_brcd.stages import parts
from jax_brcd.stages.parts import measure_cost

BITS, CLASSES = 8, 4


def images(count):
    numbers = np.arange(count) % CLASSES
    pixels = np.broadcast_to(numbers[:, None, None, None], (count, 4, 4, 3)).astype(np.uint8)
    return Images(pixels, np.eye(CLASSES, dtype=np.uint8)[numbers])


@pytest.fixture
def dataset():
    return ImageDataset("toy", "published", train=images(8), database=images(24), validation=images(8), test=images(8),
                        class_names=("ant", "bee", "cow", "doe"), flip=False, default_k=6)


@pytest.fixture
def codes(dataset, tmp_path):
    """A teacher that knows each class, and a student that takes the bees (1, 5) for cows and gives bit 7 the other way round."""
    classes = np.random.default_rng(0).choice((-1.0, 1.0), (CLASSES, BITS))
    classes[:, :CLASSES] = 2 * np.eye(CLASSES) - 1
    known = {"teacher_test": classes[np.arange(8) % CLASSES], "teacher_database": classes[np.arange(24) % CLASSES]}
    confused = known["teacher_test"].copy()
    confused[[1, 5]] = classes[2]
    flipped = np.where(np.arange(BITS) == 7, -1, 1)
    known |= {"symmetric_test": confused * flipped, "symmetric_database": known["teacher_database"] * flipped,
              "asymmetric_test": confused}
    results.save_codes(tmp_path / "codes.npz", known, dataset)
    return tmp_path / "codes.npz"


def test_the_mean_of_average_precisions_is_the_published_map():
    draw = np.random.default_rng(1)
    queries, database = draw.choice((-1, 1), (20, BITS)), draw.choice((-1, 1), (50, BITS))
    labels, others = (np.eye(3, dtype=np.uint8)[draw.integers(0, 3, count)] for count in (20, 50))
    found = average_precisions(queries, database, labels, others, 10)
    expected = []
    for query, label in zip(queries, labels, strict=True):
        ranked = (others[np.argsort((query != database).sum(axis=1), kind="stable")[:10]] @ label) > 0
        expected.append(np.mean([ranked[: rank + 1].mean() for rank in np.flatnonzero(ranked)]) if ranked.any() else 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.mean() == pytest.approx(mean_average_precision(queries, database, labels, others, 10), abs=1e-15)


def test_queries_that_lost_most_come_with_what_both_found(dataset, codes):
    """In either search: the asymmetric student's bits are the teacher's own, and it confuses the same queries."""
    grids = results.lost_grids(dataset, codes, 6)
    assert list(grids) == ["symmetric", "asymmetric"] and "asymmetric search" in grids["asymmetric"].title
    for grid in grids.values():
        check_lost(dataset, grid)


def test_a_search_in_which_no_query_lost_is_not_shown(dataset, codes, tmp_path):
    with np.load(codes, allow_pickle=False) as arrays:
        known = {name: np.where(np.unpackbits(arrays[name], axis=1, count=BITS), 1, -1) for name in arrays
                 if name.endswith(("_test", "_database"))}
    results.save_codes(tmp_path / "other.npz", known | {"asymmetric_test": known["teacher_test"]}, dataset)
    assert list(results.lost_grids(dataset, tmp_path / "other.npz", 6)) == ["symmetric"]


def check_lost(dataset, grid):
    assert grid.query_names == ["bee\n1.00, then 0.00"] * 2 and grid.columns == (("teacher", 5), ("student", 5))
    np.testing.assert_array_equal(grid.query_images, dataset.test.images[[1, 5]])
    assert grid.result_names == [["bee"] * 5 + ["cow"] * 5] * 2
    np.testing.assert_array_equal(grid.correct, [[True] * 5 + [False] * 5] * 2)


@pytest.mark.parametrize("name", ["$100_$200", r"a$\b$c", "K\udcfcche", "50% {x}"])
def test_classes_of_any_name_are_drawn_as_they_are(name, tmp_path):
    figure = Figure()
    axes = figure.add_subplot()
    plots._picture(axes, (0.0, 0.0), np.zeros((2, 2, 3), np.uint8), name, "green", "-")
    figure.savefig(tmp_path / "a.png")
    assert axes.texts[0].get_text() == name.replace("\udcfc", r"\udcfc")


def test_where_no_query_lost_there_is_nothing_to_show(dataset, tmp_path):
    alike = np.tile(2 * np.eye(CLASSES) - 1, (6, 2))
    results.save_codes(tmp_path / "codes.npz", {"teacher_test": alike[:8], "teacher_database": alike, "symmetric_test": alike[:8],
                                                "symmetric_database": alike, "asymmetric_test": alike[:8]}, dataset)
    assert results.lost_grids(dataset, tmp_path / "codes.npz", 6) == {}


def test_bits_agree_where_student_and_teacher_say_the_same(codes):
    with np.load(codes, allow_pickle=False) as arrays:
        teacher, student = (np.unpackbits(arrays[f"{name}_test"], axis=1, count=BITS) for name in ("teacher", "symmetric"))
    agreement = results.bit_agreement(codes)
    assert list(agreement) == ["student symmetric", "student asymmetric"]
    np.testing.assert_allclose(agreement["student symmetric"], (teacher == student).mean(axis=0))
    assert agreement["student symmetric"][7] == pytest.approx(1 - agreement["student asymmetric"][7])
    assert agreement["student asymmetric"].min() >= 0.75  # a quarter of the queries is confused


HISTORY = [{"stage": "teacher", "epoch": 1, "loss": 1.0, "seconds": 50.0},
           {"stage": "student", "epoch": 1, "loss": 1.0, "seconds": 2.0},
           {"stage": "student", "epoch": 2, "loss": 1.0, "seconds": 3.0, "symmetric_map": 0.5, "asymmetric_map": 0.6},
           {"stage": "student", "epoch": 3, "loss": 1.0, "seconds": 4.0, "symmetric_map": 0.7, "asymmetric_map": 0.65}]


def test_the_course_is_drawn_by_epochs_and_by_seconds_beside_the_teacher():
    by_epoch, by_second = plots.course_plot(HISTORY, {"teacher": {"map": 0.66}}).axes
    for axis, where in ((by_epoch, [2, 3]), (by_second, [5, 9])):
        drawn = {line.get_label(): line for line in axis.get_lines()}
        np.testing.assert_array_equal(drawn["student symmetric"].get_xydata(), np.stack([where, [0.5, 0.7]], axis=1))
        np.testing.assert_array_equal(drawn["student asymmetric"].get_ydata(), [0.6, 0.65])
        np.testing.assert_array_equal(drawn["teacher"].get_ydata(), [0.66, 0.66])
    assert len(plots.course_plot(HISTORY, None).axes[0].get_lines()) == 2


def test_the_page_holds_them(dataset, codes, tmp_path):
    protocol = dict.fromkeys(("dataset", "split", "k", "ties", "bits", "seed"), 1) | {"queries": 1, "database": 1}
    report = Report("a run", {}, {"protocol": protocol, "validation": {"teacher": {"map": 0.66}}}, HISTORY, {},
                    lost=results.lost_grids(dataset, codes, 6), agreement=results.bit_agreement(codes))
    page = write_report(tmp_path, report).read_text()
    for title in ("Student and teacher", "Bit agreement", "Queries that lost most in symmetric search",
                  "Queries that lost most in asymmetric search"):
        assert title in page
    assert set(figures(Report("a run", {}, {"protocol": protocol}, HISTORY[:2], {}))) == {"losses"}


def test_the_operations_of_a_model_are_counted_whoever_computes_them():
    cost = measure_cost(create_hash_model("resnet8", 64), np.zeros((2, 32, 32, 3), np.uint8), size=32)
    # additions and multiplications of each convolution: outputs squared, kernel squared, channels in and out
    convolutions = ((32, 3, 3, 16), *2 * ((32, 3, 16, 16),), (16, 3, 16, 32), (16, 3, 32, 32), (16, 1, 16, 32), (8, 3, 32, 64),
                    (8, 3, 64, 64), (8, 1, 32, 64))
    whole = 2 * sum(side**2 * size**2 * inputs * outputs for side, size, inputs, outputs in convolutions) + 2 * 64 * 64
    assert cost.flops == pytest.approx(whole, rel=0.1)  # what meets padding is not counted


def test_operations_are_counted_of_a_cpus_program_on_whatever_device_the_model_is(monkeypatch):
    """XLA counts those of a GPU's program only when its libraries have taken the convolutions away."""
    lowered_for = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def lower(*shapes):
        lowered_for.append(jax.config.jax_default_device.platform)
        assert all(isinstance(shape, jax.ShapeDtypeStruct) for shape in shapes)  # an array would bring its own device
        return jax.jit(lambda matrix: matrix @ matrix).lower(*shapes)

    assert parts._operations(lower, np.zeros((4, 4), np.float32)) == 2 * 4**3
    assert lowered_for == ["cpu"]
    monkeypatch.setattr(parts, "_operations", lambda *_: None)
    cost = measure_cost(create_hash_model("resnet8", 64), np.zeros((2, 32, 32, 3), np.uint8), size=32)
    assert cost.flops is None
    assert table._cost(dataclasses.asdict(cost))[:2] == ["81.6 k", "not counted"]


def test_a_jax_without_a_cpu_counts_no_operations(monkeypatch):
    def none_of(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", none_of)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert parts._operations(jax.jit(jnp.sin).lower, np.zeros(3, np.float32)) is None
