"""Image files become squares: exactly torchvision's, whatever the mode, in any number of processes."""

import os
import subprocess
import sys
import time

import grain
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from image_trees import picture
from PIL import Image
from torchvision.transforms import v2

from jax_brcd.data.decoding import decode, decode_all, square
from jax_brcd.views.augmentation import IMAGENET_MEAN, IMAGENET_STD, evaluation_views


@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 500), (256, 256), (300, 1000), (97, 101), (3, 7), (1, 1)])
def test_a_square_is_torchvisions_to_the_last_bit(width, height):
    image = picture(0, width, height)
    expected = v2.Compose([v2.Resize(256), v2.CenterCrop(256)])(image)
    np.testing.assert_array_equal(square(image), np.asarray(expected))


def test_the_evaluation_view_of_a_square_is_the_published_one_of_the_file():
    """Within 1e-5: uint8 pixels over 255, normalised in float32 by either library."""
    image = picture(1, 320, 240)
    expected = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
                           v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])(image)
    ours = evaluation_views(jnp.asarray(square(image))[None], 224, resize=256)[0]
    np.testing.assert_allclose(ours, expected.permute(1, 2, 0), atol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(5000, 2), (1, 3000)])
def test_a_strip_takes_no_more_memory_than_its_middle(width, height):
    """Resized whole, 5000 x 2 pixels would become 640,000 x 256."""
    gradient = np.zeros((height, width, 3), np.uint8)
    axis = 1 if width > height else 0
    gradient[...] = np.linspace(0, 255, max(width, height)).reshape((-1, 1) if axis else (-1, 1, 1))
    middle = square(Image.fromarray(gradient))
    assert middle.shape == (256, 256, 3) and abs(int(middle.mean()) - 127) <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_of_a_png_becomes_rgb(tmp_path, mode):
    gray = np.repeat(np.array([[0, 255]], np.uint8), 4, axis=0).repeat(2, axis=1)
    image = (Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode))
    assert image.mode == mode
    image.save(tmp_path / "image.png")
    decoded = decode(tmp_path / "image.png")
    np.testing.assert_array_equal(decoded[0, 0], [0, 0, 0])
    np.testing.assert_array_equal(decoded[-1, -1], [255, 255, 255])


def test_a_palette_with_transparency_and_cmyk_keep_their_colours(tmp_path):
    red = Image.new("RGB", (8, 8), (250, 10, 10))
    red.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.gif", transparency=0)
    red.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    for name in ("palette.gif", "cmyk.jpg"):
        np.testing.assert_allclose(decode(tmp_path / name)[128, 128], [250, 10, 10], atol=3)  # JPEG's rounding


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda path: path.write_bytes(path.read_bytes()[:-200]), "truncated or corrupt (image file is truncated"),
    (lambda path: path.write_bytes(path.read_bytes()[:300]), "truncated or corrupt ("),
    (lambda path: path.write_text("not an image"), "no JPEG, PNG, WebP, TIFF or other image that Pillow reads"),
    (lambda path: path.write_bytes(b""), "no JPEG, PNG, WebP, TIFF or other image that Pillow reads"),
    (lambda path: path.unlink(), "no such file"),
    (lambda path: (path.unlink(), path.mkdir()), "truncated or corrupt ("),
])
def test_what_cannot_be_decoded_says_why(tmp_path, damage, reason):
    path = tmp_path / "image.jpg"
    picture(0).save(path)
    damage(path)
    assert decode(path).startswith(reason)


def test_processes_and_threads_decode_alike_and_in_order(tmp_path):
    paths = [str(tmp_path / f"{number}.jpg") for number in range(7)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    (tmp_path / "3.jpg").write_bytes(b"")
    expected = [decode(path) for path in paths]
    for workers in (0, 2):
        found = list(decode_all(paths, workers=workers))
        assert len(found) == 7 and found[3] == decode(paths[3])
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


DECODES_AND_WAITS = """
import multiprocessing, sys, time
from jax_brcd.data.decoding import decode_all
squares = decode_all(sys.argv[1:] * 1000, workers=1)
next(squares)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(600)
"""


def test_workers_end_with_a_run_that_is_killed(tmp_path):
    picture(0).save(tmp_path / "image.jpg")
    running = subprocess.Popen([sys.executable, "-c", DECODES_AND_WAITS, tmp_path / "image.jpg"], stdout=subprocess.PIPE, text=True)
    workers = running.stdout.readline().split()
    assert len(workers) == 1 and os.path.exists(f"/proc/{workers[0]}")
    running.kill()
    running.wait()
    deadline = time.monotonic() + 60
    while _runs(workers[0]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(process: str) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_few_images_do_not_start_processes(monkeypatch):
    monkeypatch.setattr(grain, "MultiprocessingOptions", None)
    assert list(decode_all(["absent.jpg"] * 3, workers=None)) == ["no such file"] * 3
