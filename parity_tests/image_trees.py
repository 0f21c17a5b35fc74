"""Small trees of real image files for tests: classes that can be told apart by colour, at sizes that vary."""

import pathlib
import struct
import zlib

import numpy as np
from PIL import Image

COLOURS = ((200, 40, 40), (40, 180, 60), (60, 60, 210))


def picture(number: int, width: int = 0, height: int = 0) -> Image.Image:
    """Image number `number`: noise around the colour of its class, `number` modulo the number of colours."""
    draw = np.random.default_rng(number)
    width, height = width or int(draw.integers(40, 90)), height or int(draw.integers(40, 90))
    noise = draw.normal(scale=40.0, size=(height, width, 3))
    return Image.fromarray((np.array(COLOURS[number % len(COLOURS)]) + noise).clip(0, 255).astype(np.uint8))


def labels(number: int) -> str:
    return " ".join("1" if column == number % len(COLOURS) else "0" for column in range(len(COLOURS)))


def write_lists(folder: pathlib.Path, train: int, database: int, test: int, **size: int) -> pathlib.Path:
    """A list-file data set: the first images are the database, `train` of them train, the last `test` are queries."""
    (folder / "images").mkdir(parents=True)
    for number in range(database + test):
        picture(number, **size).save(folder / "images" / f"{number:03d}.jpg", quality=95)
    parts = {"train": range(train), "database": range(database), "test": range(database, database + test)}
    for name, numbers in parts.items():
        (folder / f"{name}.txt").write_text("".join(f"images/{number:03d}.jpg {labels(number)}\n" for number in numbers))
    return folder


def write_images(folder: pathlib.Path, *names: str, start: int = 0) -> None:
    """Small images at the given paths below a folder, each of the colour of its place among them."""
    for number, name in enumerate(names, start=start):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, 12, 10).save(folder / name)


LONG, BYTE, LONG8, SLONG8 = 4, 1, 16, 17  # types of a TIFF's fields


def tiff(width, height, tiles, sides, bands=1):
    """A TIFF of tiles that are compressed by deflate; `sides` are the tags, types and values of their width and length."""
    data = [zlib.compress(tile) for tile in tiles]
    fields = [(256, LONG, width), (257, LONG, height), (258, LONG, 8), (259, LONG, 8), (262, LONG, 2 if bands == 3 else 1),
              (277, LONG, bands), *sides, (324, LONG, None), (325, LONG, [len(each) for each in data])]
    end = 8 + 2 + 12 * len(fields) + 4
    behind = end + 16 * len(fields) + 8 * len(data)  # where the tiles begin: before them is room for what fields do not hold
    starts = [behind + sum(map(len, data[:number])) for number in range(len(data))]
    head, rest = struct.pack("<2sHIH", b"II", 42, 8, len(fields)), b""
    for tag, kind, value in fields:
        values = starts if value is None else value if isinstance(value, list) else [value]
        packed = struct.pack(f"<{len(values)}{ {LONG: 'I', BYTE: 'B'}.get(kind, 'Q')}", *values)
        head += struct.pack("<HHI", tag, kind, len(values))
        if len(packed) <= 4:
            head += packed.ljust(4, b"\0")
        else:
            head += struct.pack("<I", end + len(rest))
            rest += packed
    return (head + bytes(4) + rest).ljust(behind, b"\0") + b"".join(data)
