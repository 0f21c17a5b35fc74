"""k-means of codes and the number of clusters, against scikit-learn and against mixtures whose number is known."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from jax_brcd.clusters.choice import CLUSTER_CHOICES, choose_clusters, published_range, silhouettes
from jax_brcd.clusters.kmeans import k_means
from jax_brcd.methods import DistillationBatch, TeacherKnowledge, create_method
from jax_brcd.methods.sections import Curve
from jax_brcd.report import Report, write_report
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.command_line import run_command
from jax_brcd.settings.options import check, option
from jax_brcd.stages.configuration import create_config, parse_command_line
from jax_brcd.views.outputs import Outputs
from torch_ref import methods as torch_methods

GROUPS, IMAGES, BITS = 5, 240, 32


def mixture(flips=0.08, seed=0):
    """Codes of five groups, each bit flipped by chance, and each image's group."""
    draw = np.random.default_rng(seed)
    groups = draw.permutation(IMAGES) % GROUPS
    centers = draw.choice([-1.0, 1.0], (GROUPS, BITS))
    return (centers[groups] * np.where(draw.random((IMAGES, BITS)) < flips, -1, 1)).astype(np.float32), groups


def choose(codes, choice, cluster_range=(2, 9)):
    return choose_clusters(codes, "auto", choice=choice, cluster_range=cluster_range, seed=0, restarts=8)


@pytest.fixture(scope="module")
def chosen():
    """What each rule chooses for the mixture."""
    return {choice: choose(mixture()[0], choice) for choice in CLUSTER_CHOICES}


@pytest.mark.parametrize("flips", [0.08, 0.3])
def test_k_means_is_as_good_as_scikit_learns(flips):
    """Both keep the best of several local optima. Where groups are clear it is the same one (float32 rounding); where they
    are not, the inertias are those of optima about as good, within 1 %."""
    codes, _ = mixture(flips)
    ours = k_means(codes, 5, seed=0, restarts=8)
    theirs = KMeans(5, n_init=8, random_state=0).fit(codes.astype(np.float64))
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5 if flips < 0.2 else 1e-2)
    found = np.sum((codes - ours.centers[ours.clusters]) ** 2)
    assert ours.inertia == pytest.approx(found, rel=1e-5)


def test_centers_are_means_and_images_belong_to_the_nearest():
    codes, _ = mixture()
    clusters, centers, _ = k_means(codes, 5, seed=1, restarts=8)
    np.testing.assert_allclose(centers, [codes[clusters == number].mean(axis=0) for number in range(5)], atol=1e-5)
    distances = np.sum((codes[:, None] - centers) ** 2, axis=-1)
    np.testing.assert_array_equal(clusters, distances.argmin(axis=1))


def test_the_same_seed_gives_the_same_clusters_whatever_the_room():
    codes, groups = mixture()
    first, again, roomy = (k_means(codes, 5, seed=3, restarts=8, capacity=capacity) for capacity in (None, None, 9))
    np.testing.assert_array_equal(first.clusters, again.clusters)
    np.testing.assert_array_equal(first.centers, again.centers)
    assert roomy.centers.shape == (5, BITS)
    for clustering in (first, roomy):  # each cluster is a group, whatever its number
        assert len(set(zip(groups.tolist(), clustering.clusters.tolist(), strict=True))) == GROUPS


def test_silhouettes_are_scikit_learns():
    """Up to float32 rounding of sums over 240 distances; among the clusters are empty ones and one of a single image."""
    codes, groups = mixture(0.2)
    alone = np.where(np.arange(IMAGES) == 7, 6, groups)
    both = np.stack([groups, alone]).astype(np.int32)
    ours = silhouettes(jnp.asarray(codes), jnp.asarray(both), capacity=8)
    np.testing.assert_allclose(ours, [silhouette_score(codes, each) for each in both], atol=1e-5)


def test_one_cluster_has_a_silhouette_of_zero_and_is_not_chosen():
    clustering, counts, scores = choose(mixture()[0], "silhouette", (1, 6))
    np.testing.assert_array_equal(counts, np.arange(1, 7))
    assert len(clustering.centers) == GROUPS and scores[0] == 0


@pytest.mark.parametrize("choice", CLUSTER_CHOICES)
def test_the_number_of_groups_is_found(chosen, choice):
    clustering, counts, scores = chosen[choice]
    assert len(clustering.centers) == GROUPS
    np.testing.assert_array_equal(counts, np.arange(2, 10))
    assert scores.shape == counts.shape
    assert len(set(zip(mixture()[1].tolist(), clustering.clusters.tolist(), strict=True))) == GROUPS


def test_the_elbow_is_the_point_farthest_below_the_chord():
    """Of 10, 4, 3, 2, 1, 0: the chord is at 8 where the curve is at 4, and nearer to it everywhere else."""
    scores, place = CLUSTER_CHOICES["elbow"](np.zeros((1, 4)), None, [10, 4, 3, 2, 1, 0], np.arange(2, 8))
    np.testing.assert_array_equal(scores, [10, 4, 3, 2, 1, 0])
    assert place == 1
    assert CLUSTER_CHOICES["elbow"](np.zeros((1, 4)), None, [4, 3, 2], np.arange(2, 5))[1] == 0  # no bend: the lowest


def test_few_distinct_codes_end_the_range_early():
    codes, _ = mixture(0.0)
    four_of_five = choose(codes, "silhouette", (2, 9))
    np.testing.assert_array_equal(four_of_five.counts, [2, 3, 4])  # five distinct codes allow four clusters
    alike = choose(np.ones((6, BITS), np.float32), "silhouette")
    assert len(alike.clustering.centers) == 1 and len(alike.counts) == len(alike.scores) == 0


@pytest.mark.parametrize(("dataset", "expected"), [
    ("cifar10", (2, 14)), ("coco", (2, 49)), ("imagenet100", (10, 59)), ("digits", (2, 30)), ("one of my own", (2, 30))])
def test_the_published_ranges_go_by_the_data_sets_name(dataset, expected):
    assert published_range(dataset) == expected


def brcd(**settings):
    return create_method("brcd", cluster_restarts=8, **settings)


def test_brcd_under_auto_learns_from_the_chosen_clusters():
    """The memory's shapes follow the chosen number; choosing again gives the same arrays, so that a run can resume."""
    codes, _ = mixture()
    method = brcd(clusters="auto")

    def init(method):
        return method.init(TeacherKnowledge.of(codes, method.needs, seed=0, cluster_range=(2, 9)), seed=0)[1]

    memory, again = init(method), init(method)
    jax.tree.map(np.testing.assert_array_equal, memory, again)
    assert memory["centers"].shape == memory["bit_mask"].shape == (GROUPS, BITS)
    np.testing.assert_array_equal(memory["cluster_scores"][:, 0], np.arange(2, 10))
    assert memory["cluster_scores"][:, 1].argmax() == GROUPS - 2

    rows = jnp.asarray(codes[:8])
    outputs = dict.fromkeys("ij", Outputs(codes=rows))
    batch = DistillationBatch(jnp.arange(8), jnp.ones(8, bool), outputs, outputs, key=jax.random.key(0), temperature=0.3)
    told = init(brcd(clusters=GROUPS))
    assert "cluster_scores" not in told
    losses = [method.loss({}, jax.tree.map(jnp.asarray, each), batch)[0] for each in (memory, told)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("choice", CLUSTER_CHOICES)
def test_the_report_shows_the_scores_and_the_choice(tmp_path, choice):
    scores = np.stack([np.arange(2, 9), np.linspace(0.2, 0.4, 7)], axis=1)
    clusters = np.arange(20) % 5
    memory = {"bit_mask": np.ones((5, 8)), "clusters": clusters, "cluster_scores": scores}
    metrics = {"protocol": dict.fromkeys(("dataset", "split", "k", "ties", "bits", "seed"), 1) | {"queries": 1, "database": 1}}
    sections = tuple(brcd(clusters="auto", cluster_choice=choice).report(memory))
    curve = sections[-1]
    assert isinstance(curve, Curve) and curve.title == f"Number of clusters by {choice}"
    np.testing.assert_array_equal(curve.x, np.arange(2, 9))
    np.testing.assert_array_equal(curve.y, scores[:, 1])
    assert (curve.marked, curve.mark) == (5, "chosen: 5")
    page = write_report(tmp_path, Report(
        title="a run", config={}, metrics=metrics, history=[], curves={},
        sections=sections)).read_text()
    assert "Number of clusters" in page and (tmp_path / "plots" / "number_of_clusters.png").stat().st_size > 0


@pytest.mark.parametrize(("words", "expected"), [(["auto"], "auto"), (["7"], 7)])
def test_the_command_line_takes_a_number_or_auto(words, expected):
    assert parse_command_line("test", "", ["--clusters", *words]).method.clusters == expected
    assert create_config(clusters=expected).method.clusters == expected


@pytest.mark.parametrize(("words", "message"), [
    (["--clusters", "many"], "--clusters: 'many' is no whole number or 'auto'"),
    (["--cluster-choice", "knee"], "unknown value of --cluster-choice 'knee'"),
    (["--clusters", "0"], "--clusters 0: too small; give 1 or more"),
])
def test_other_numbers_of_clusters_are_refused(capsys, words, message):
    with pytest.raises(SystemExit) as refused:
        run_command(lambda argv: parse_command_line("test", "", argv), words)
    assert refused.value.code == 2 and message in capsys.readouterr().err


def test_a_word_that_a_setting_does_not_know_is_refused_from_python_too():
    @dataclasses.dataclass
    class Settings:
        count: int | Literal["auto"] = option(3, "a number", low=1)

    check(Settings("auto"))
    with pytest.raises(InputError, match="unknown value of count 'aut': did you mean 'auto'"):
        check(Settings("aut"))


def test_torch_ref_takes_the_same_choice():
    """Its distillation term under auto is the one with the chosen number told."""
    codes = torch.from_numpy(mixture()[0])
    rows = dict.fromkeys("ij", Outputs(codes=codes[:8]))
    values = [torch_methods.create_method("brcd", brcd(clusters=clusters), torch_methods.Known(codes, 2, cluster_range=(2, 9)))(
        torch.arange(8), rows, rows) for clusters in ("auto", GROUPS, 2)]
    chosen, told, other = map(float, values)
    assert chosen == pytest.approx(told, rel=1e-5) and chosen != pytest.approx(other, rel=1e-2)
