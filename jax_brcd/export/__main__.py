"""python -m jax_brcd.export: an encoder as a program of other systems, tried before it is written."""

import dataclasses
from typing import TYPE_CHECKING, Any

from jax_brcd.settings.command_line import OneLineParser, bars, one_line, run_command, say

if TYPE_CHECKING:
    from jax_brcd.data import ImageDataset
    from jax_brcd.encoder import HashEncoder

CALIBRATION = 256  # images


def main(argv: list[str] | None = None) -> None:
    """Writes an encoder in another format. Programs (onnx, stablehlo, torch) are tried: the same images give the same bits.

    The data set, for int8 and for trials, is that of the run that made the encoder, unless told.
    """
    from jax_brcd.encoder import folder_of, load
    from jax_brcd.export import EXPORTERS, TriedExporter, check_quantize, export
    from jax_brcd.export.base import CONFIG, EXPORTS
    from jax_brcd.export.lines import lines_of
    from jax_brcd.export.material import images_below, material_of
    from jax_brcd.export.trial import MADE_UP
    from jax_brcd.runtime.errors import InputError, of_setting
    from jax_brcd.runtime.files import as_path, check_folder, read_json
    from jax_brcd.stages.command import named_places, session
    from jax_brcd.stages.configuration import create_config
    from jax_brcd.stages.provenance import FURTHER, known_settings

    given = vars(create_export_parser().parse_args(argv))
    name, to, out, quantize, calibrate, count = (given.pop(each) for each in (
        "encoder", "to", "out", "quantize", "calibrate", "calibration_images"))
    exporter = EXPORTERS[to]  # before anything is read
    check_quantize(to, quantize)
    count, told = whole(count, "calibration_images"), bool(given.keys() - FURTHER)
    if (calibrate is not None or told) and not isinstance(exporter, TriedExporter):
        raise InputError("is weights alone, which no images are tried on; leave out `calibrate` and the data set's settings",
                         field="to", value=to)
    with of_setting("out", out):
        check_folder(as_path(out))
    with bars() as progress, of_setting("encoder", name):
        encoder = load(folder_of(name, progress=progress))
    known = known_settings(encoder.provenance, given.get("dataset"), given.get("split"))
    config = create_config(**known | given)
    with session(config) as progress:
        photos = None if calibrate is None else images_below(calibrate, count if quantize else min(count, MADE_UP), say)
        dataset = dataset_of(config, encoder, progress, told=told) if told or (quantize is not None and known) else None
        with named_places({"out": as_path(out)}):
            written = export(encoder, to, out, **vars(material_of(photos, dataset, count, quantize, progress)))
        progress.close()
        if written[-1].name == CONFIG:
            say("\n".join(lines_of(read_json(written[-1])[EXPORTS][to])))
        say("\n".join(map(str, written)))


def create_export_parser() -> OneLineParser:
    """The command's options: its own, and those of the data set as `jax_brcd.evaluate` has them."""
    from jax_brcd.export import EXPORTERS
    from jax_brcd.export.base import INT8
    from jax_brcd.stages.configuration import create_parser
    from jax_brcd.stages.provenance import FURTHER, PLACES, PROTOCOL

    settings = {*PROTOCOL, *PLACES, *FURTHER} - {"embeddings"}
    parser = create_parser("python -m jax_brcd.export", main.__doc__, settings.__contains__, presets=False)
    parser.add_argument("encoder", metavar="ENCODER", help="folder of the encoder, or hf:USER/NAME of the Hugging Face hub")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=f"one of {', '.join(EXPORTERS)}")
    parser.add_argument("--out", required=True, metavar="DIR",
                        help="folder of the export; files of the same names are replaced")
    parser.add_argument("--quantize", default=None, metavar=f"{{{INT8}}}",
                        help="8-bit integers in place of the encoder's numbers")
    parser.add_argument("--calibrate", default=None, metavar="FOLDER", help="folder of images, at any depth, by which to "
                        "quantise and to try the export (default: images of the data set)")
    parser.add_argument("--calibration-images", default=str(CALIBRATION), metavar="N",
                        help="images to quantise by (default: %(default)s)")
    return parser


def whole(text: str, field: str) -> int:
    """A count of 1 or more. Raises InputError for what is none."""
    from jax_brcd.runtime.errors import InputError

    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise InputError("not a number of images; give a whole number, 1 or more", field=field, value=text)
    return int(text)


def dataset_of(config: Any, encoder: "HashEncoder", progress: Any, *, told: bool) -> "ImageDataset | None":
    """The data set of a configuration, with the ranks that its measures look at.

    Raises:
        InputError: where it is not to be had and was told; where only the encoder knows of it, a line says so, and it is None.
    """
    from jax_brcd.runtime.errors import InputError
    from jax_brcd.stages.evaluation import load_for_evaluation

    try:
        dataset, k = load_for_evaluation(config, () if encoder.over_embeddings else [encoder], progress=progress, say=say)
    except InputError as error:
        if told:
            raise
        say(f"without the data set of the encoder's run: {one_line(error)}")
        return None
    return dataclasses.replace(dataset, default_k=k)


if __name__ == "__main__":
    run_command(main)
