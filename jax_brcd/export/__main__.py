"""python -m jax_brcd.export: an encoder as a program of other systems, tried before it is written."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jax_brcd.settings.command_line import bars, run_command, say

if TYPE_CHECKING:
    import numpy as np

    from jax_brcd.data import ImageDataset
    from jax_brcd.encoder import HashEncoder

FURTHER_SETTINGS = ("decode_workers", "compile_cache")
CALIBRATION = 256  # images


def main(argv: list[str] | None = None) -> None:
    """Writes an encoder in another format. Programs (onnx, stablehlo, torch) are tried: the same images give the encoder's bits.

    The data set, for int8 and for trials, is that of the run that made the encoder, unless told.
    """
    from jax_brcd.encoder import folder_of, load
    from jax_brcd.export import EXPORTERS, export
    from jax_brcd.export.base import CONFIG, EXPORTS, INT8
    from jax_brcd.runtime.errors import InputError, of_setting
    from jax_brcd.runtime.files import as_path, check_folder, read_json
    from jax_brcd.stages.command import named_places, session
    from jax_brcd.stages.configuration import create_config, create_parser
    from jax_brcd.stages.provenance import PLACES, PROTOCOL, known_settings

    parser = create_parser("python -m jax_brcd.export", __doc__,
                           ({*PROTOCOL, *PLACES, *FURTHER_SETTINGS} - {"embeddings"}).__contains__, presets=False)
    parser.add_argument("encoder", metavar="ENCODER", help="folder of the encoder, or hf:USER/NAME of the Hugging Face hub")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=f"one of {', '.join(EXPORTERS)}")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the export; files of the same names are replaced")
    parser.add_argument("--quantize", default=None, metavar=f"{{{INT8}}}", help="8-bit integers in place of the encoder's numbers")
    parser.add_argument("--calibrate", default=None, metavar="FOLDER", help="folder of images, at any depth, by which to quantise and "
                        "to try the export; by default the data set's training images")
    parser.add_argument("--calibration-images", default=str(CALIBRATION), metavar="N", help="images to quantise by (default: %(default)s)")
    given = vars(parser.parse_args(argv))
    name, to, out, quantize, calibrate, count = (given.pop(each) for each in (
        "encoder", "to", "out", "quantize", "calibrate", "calibration_images"))
    EXPORTERS[to], (count := whole(count, "calibration_images"))
    with of_setting("out", out):
        folder = as_path(out)
        check_folder(folder, field="out")
    with bars() as progress, of_setting("encoder", name):
        encoder = load(folder_of(name, progress=progress))
    known = known_settings(encoder.provenance, given.get("dataset"))
    config = create_config(**known | given)
    with session(config) as progress:
        photos = images_below(calibrate, count) if calibrate is not None else None
        dataset = None
        if given.keys() - FURTHER_SETTINGS or (quantize is not None and known):
            try:
                dataset = dataset_of(config, encoder, progress)
            except InputError as error:
                if given.keys() - FURTHER_SETTINGS:
                    raise
                say(f"without the data set of the encoder's run: {error}")
        material = {"images": photos if photos is not None else None if dataset is None else spread(dataset.test.images, count),
                    "quantize": quantize, "progress": progress}
        if quantize is not None:
            calibration = photos if photos is not None else () if dataset is None else spread(dataset.train.images, count)
            material |= {"calibration": calibration, "dataset": dataset}
        with named_places({"out": folder}):
            written = export(encoder, to, folder, **material)
        progress.close()
        if written[-1].name == CONFIG:
            say("\n".join(lines_of(read_json(written[-1])[EXPORTS][to])))
        say("\n".join(map(str, written)))


def whole(text: str, field: str) -> int:
    """A count of 1 or more. Raises InputError for what is none."""
    from jax_brcd.runtime.errors import InputError

    if not text.isdecimal() or int(text) < 1:
        raise InputError("not a number of images; give a whole number, 1 or more", field=field, value=text)
    return int(text)


def dataset_of(config: Any, encoder: "HashEncoder", progress: Any) -> "ImageDataset":
    """The data set of a configuration, with the ranks that its measures look at. Raises InputError where it is not to be had."""
    import dataclasses

    from jax_brcd.stages.evaluation import load_for_evaluation

    dataset, k = load_for_evaluation(config, () if encoder.over_embeddings else [encoder], progress=progress)
    return dataclasses.replace(dataset, default_k=k)


def spread(images: "np.ndarray", count: int) -> list["np.ndarray"]:
    """`count` images or fewer, from all parts of many."""
    import numpy as np

    places = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    return [np.asarray(images[place]) for place in places]


def images_below(folder: os.PathLike | str, count: int) -> list["np.ndarray"]:
    """`count` images or fewer from all parts of a folder; files that cannot be read are passed over with a word.

    Raises:
        InputError: for a folder that is absent, and one without images.
    """
    from jax_brcd.data.scanning import Walk
    from jax_brcd.images import read_item
    from jax_brcd.runtime.errors import InputError, of_setting
    from jax_brcd.runtime.files import as_path

    found = []
    with of_setting("calibrate", folder):
        root = as_path(folder)
        paths = Walk(root).images_below("")
        step = max(1, len(paths) // count)
        for path in [*paths[::step], *(path for place, path in enumerate(paths) if place % step)]:
            if len(found) == count:
                break
            try:
                found.append(read_item(root / path))
            except InputError as error:
                say(f"passed over: {error}")
        if not found:
            raise InputError("holds no image that can be read; name a folder of images")
    return found


def lines_of(facts: Mapping[str, Any]) -> list[str]:
    """What an export found, a line a file."""
    lines = []
    for file, found in facts["verified"].items():
        differ = "none differs" if not found["different_bits"] else f"{found['different_bits']:,} differ, all of logits near zero"
        lines.append(f"{file}: {found['bits']:,} bits of {found['images']:,} inputs, {differ} ({found['bits_near_zero']:,} within "
                     f"{found['near_zero']:.0e} of zero; logits differ by {found['largest_difference']:.1e} at most)")
    small = facts.get("quantized")
    if small:
        seconds, sizes = small["seconds_an_image"], small["bytes"]
        lines.append(f"int8: {small['changed_share']:.2%} of the bits of {small['compared_images']:,} images changed; "
                     f"{1e3 * seconds['int8']:.2f} ms an image instead of {1e3 * seconds['float32']:.2f} "
                     f"({seconds['float32'] / seconds['int8']:.2f}x); {sizes['int8'] / 2**20:.1f} MiB instead of "
                     f"{sizes['float32'] / 2**20:.1f}; calibrated by {small['calibration_images']:,} images")
        if "map" in small:
            told = small["protocol"]
            lines.append(f"mAP@{told['k']}: {small['map']['int8']:.4f} instead of {small['map']['float32']:.4f} ({told['dataset']}, "
                         f"split {told['split']}, {told['queries']:,} queries in {told['database']:,} codes of the same encoder, "
                         f"ties {told['ties']})")
    return lines


if __name__ == "__main__":
    run_command(main)
