"""The comparison of teachers' objectives: which teachers it trains, and what its table says of given records."""

import dataclasses

import numpy as np
import pytest

from benchmarks import teachers
from benchmarks.quality import BITS, SEEDS
from benchmarks.teachers import VIEWS, Trained, comparison
from jax_brcd.runtime.errors import InputError
from jax_brcd.stages.configuration import create_config
from jax_brcd.teachers.objectives import OBJECTIVES


def test_every_teacher_is_one_that_the_command_accepts_under_a_name_of_its_own():
    planned = [Trained(images, objective, bits, seed) for images in VIEWS for objective in OBJECTIVES for bits in BITS
               for seed in SEEDS]
    assert len({teacher.name for teacher in planned}) == len(planned) == 2 * 5 * 3 * 3
    for teacher in planned:
        config = create_config(dataset="cifar10", teacher="vit_lite_7_4", **teacher.settings())
        assert (config.data.views, config.objective.bits, config.run.seed) == (VIEWS[teacher.images], teacher.bits, teacher.seed)


def test_a_table_for_each_choice_of_images_shows_means_deviations_and_seconds():
    records = [{**dataclasses.asdict(Trained(images, objective, bits, seed)), "map": 0.5 + 0.1 * seed + bits / 1000,
                "soft_map": 0.6, "seconds": 1.0 + seed, "k": 1000}
               for images in VIEWS for objective in ("itq", "crovca") for bits in (16, 64)
               for seed in ((0, 1) if images == "published" else (0,))]
    published, every = comparison(records).split("Training images: all")
    deviation = np.std([0.5, 0.6], ddof=1)
    assert "Training images: published; seeds 0, 1\n\n| objective | mAP@1000, 16 bits | mAP@1000, 64 bits |" in published
    assert (f"| itq | 0.5660 ± {deviation:.4f} | 0.6140 ± {deviation:.4f} | 0.6000 ± 0.0000 | 0.6000 ± 0.0000 | 1.5 | 1.5 |\n"
            in published)
    assert "; seeds 0\n" in every and "| crovca | 0.5160 | 0.5640 | 0.6000 | 0.6000 | 1 | 1 |\n" in every


def test_weights_that_are_not_there_are_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"vit_lite_7_4.safetensors: no such weight file; give its folder by --weights"):
        teachers.main(["--data-dir", str(tmp_path), "--weights", str(tmp_path)])
