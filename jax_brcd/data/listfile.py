"""One list file: a line an image, `path l1 ... lC`, as text of any system; and what the labels of its lines mean."""

import codecs
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from jax_brcd.data.dataset import Place, one_hot
from jax_brcd.data.store import Listed
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.registry import Registry

FORM = "a line is a path, in quotes if it has spaces, then 0 or 1 for each class, with spaces or tabs between"
# The four-byte marks first: the mark of UTF-32 begins with that of UTF-16
MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
         codecs.BOM_UTF16_BE: "UTF-16"}
BITS = frozenset({"0", "1"})
QUOTED = re.compile(r'"([^"]+)"(?:[ \t]+(.*))?')
DRIVE = re.compile(r"[A-Za-z]:[\\/]|[\\/]{2}")  # how an absolute path begins on Windows


class ListFile(NamedTuple):
    """The lines of a list file. Its words are what they give as labels; `labels` are what these mean, in place of them once that
    is known."""

    images: list[Listed]
    labels: UInt8[np.ndarray, "images classes"]
    words: list[list[str]] | None = None
    place: Place | None = None  # of the lines in the whole list

    @property
    def columns(self) -> int:
        """Labels an image."""
        return len(self.words[0])

    def take(self, positions: np.ndarray) -> "ListFile":
        """The lines at the given positions, in that order."""
        return ListFile([self.images[position] for position in positions], self.labels[positions],
                        place=self.place and self.place.take(positions))

    def called(self, name: str) -> "ListFile":
        """The same lines as those of a whole list of that name."""
        return self._replace(place=Place.whole(name, len(self.images), (image.path for image in self.images)))

    def digest(self) -> str:
        """A short digest of the paths in their order and of their labels; how the file spells them does not matter."""
        from jax_brcd.runtime.digests import digest  # not above: it imports JAX

        return digest("\n".join(image.path for image in self.images), self.labels)


# (lists by name) -> the lists with their labels, and the names of the classes
LabelFormat = Callable[[Mapping[str, ListFile]], tuple[dict[str, ListFile], tuple[str, ...]]]
LABEL_FORMATS: Registry[LabelFormat] = Registry("label format")


@LABEL_FORMATS.register("multi-hot")
def multi_hot(lists: Mapping[str, ListFile]) -> tuple[dict[str, ListFile], tuple[str, ...]]:
    """A 0 or 1 for each class.

    Raises:
        InputError: with the line, for a label that is neither.
    """
    labelled = {}
    for name, part in lists.items():
        for image, words in zip(part.images, part.words, strict=True):
            if not BITS.issuperset(words):
                wrong = next(word for word in words if word not in BITS)
                hint = "; is it the number of the class? Then say `label_format` class-numbers" if part.columns == 1 else ""
                raise InputError(f"{image.where}: label '{wrong}' is neither 0 nor 1 ({FORM}){hint}")
        digits = "".join("".join(words) for words in part.words).encode()
        labelled[name] = part._replace(labels=np.frombuffer(digits, np.uint8).reshape(-1, part.columns) - np.uint8(ord("0")))
    return labelled, tuple(f"label {number + 1}" for number in range(next(iter(lists.values())).columns))


@LABEL_FORMATS.register("class-numbers")
def class_numbers(lists: Mapping[str, ListFile]) -> tuple[dict[str, ListFile], tuple[str, ...]]:
    """The number of the one class of an image. Classes are the numbers that occur in any of the lists, in ascending order.

    Raises:
        InputError: with the line, for several labels or one that is no whole number from 0.
    """
    for part in lists.values():
        for image, words in zip(part.images, part.words, strict=True):
            if len(words) != 1:
                raise InputError(f"{image.where}: {len(words)} labels; under `label_format` class-numbers a line is a path, "
                                 "then the number of its class")
            if not re.fullmatch(r"[0-9]{1,18}", words[0]):
                raise InputError(f"{image.where}: label '{words[0]}' is no class number; number the classes from 0")
    numbers = {name: np.array([int(words[0]) for words in part.words], dtype=object) for name, part in lists.items()}
    classes = sorted(set().union(*(set(found) for found in numbers.values())))
    positions = {number: position for position, number in enumerate(classes)}
    labelled = {name: part._replace(labels=one_hot(np.array([positions[number] for number in numbers[name]]), len(classes)))
                for name, part in lists.items()}
    return labelled, tuple(f"class {number}" for number in classes)


def read_list(path: pathlib.Path) -> ListFile:
    """The images that a list file names, and the words that give their labels. Empty lines and comments, which begin with "# ",
    are passed over.

    A path with spaces stands in double quotes. Windows' backslashes are read as slashes.

    Raises:
        InputError: with the line, for a wrong number of labels or a path that leaves the folder; for a file that is absent, in
            another encoding than UTF-8, or empty.
    """
    folder, images, labels = path.parent, [], []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _text(path)), start=1):
        line = line.strip(" \t")
        if not line or line == "#" or line.startswith(("# ", "#\t", "##")):
            continue
        where = f"{path}:{number}"
        name, words = _words(line, where)
        if not words:
            comma = "; this one has commas" if re.search(r"[,;][0-9]", line) else ""
            raise InputError(f"{where}: no labels; {FORM}{comma}")
        _check_spaces(name, words, line, where)
        if labels and len(words) != len(labels[0]):
            raise InputError(f"{where}: {len(words)} labels instead of the {len(labels[0])} of the lines before")
        images.append(Listed(_inside(name, folder, where), where))
        labels.append(words)
    if not images:
        raise InputError(f"{path}: names no image; a part of a data set cannot be empty")
    return ListFile(images, np.zeros((len(images), 0), np.uint8), labels)


def _text(path: pathlib.Path) -> str:
    """The content of a UTF-8 file, with or without the mark that Windows puts at its beginning."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such list file; name the folder that holds train.txt, database.txt and test.txt with "
                         "`data_dir`") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder; a list is a text file of that name") from None
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    if encoding is None and b"\0" in content:
        zeros = [content[start:4096:2].count(0) for start in (0, 1)]
        encoding = "UTF-16" if min(zeros) == 0 and max(zeros) > len(content[:4096]) // 4 else None
        if encoding is None:
            raise InputError(f"{path}: no text, it has zero bytes; {FORM}")
    if encoding is not None:
        raise InputError(f"{path}: {encoding} text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(re.split(rb"\r\n|\r|\n", content[: error.start]))
        raise InputError(f"{path}:{line}: no text in UTF-8 (byte {content[error.start]:#04x}), in Latin-1 or another encoding, "
                         "say; save it as UTF-8") from None


def _words(line: str, where: str) -> tuple[str, list[str]]:
    """The path of a line and its other words."""
    if not line.startswith('"'):
        name, *words = _split(line)
        return name, words
    quoted = QUOTED.fullmatch(line)
    if quoted is None:
        raise InputError(f"{where}: a path in quotes that do not end, or labels that follow them without a space; write "
                         '"a path" 0 1')
    return quoted[1], _split(quoted[2] or "")


def _split(line: str) -> list[str]:
    """The words between spaces and tabs; other white space may be part of a name."""
    words = line.replace("\t", " ").split(" ")
    return [word for word in words if word] if "" in words else words


def _check_spaces(name: str, words: list[str], line: str, where: str) -> None:
    """Refuses a path with spaces that stands without quotes, which shows in words with the dot or slash of a path."""
    if line.startswith('"') or "".join(words).isdigit():
        return
    odd = max((position for position, word in enumerate(words) if re.search(r"[./\\][A-Za-z]", word)), default=None)
    if odd is None:
        return
    labels = words[odd + 1 :]
    path = re.match(r"[ \t]+".join(map(re.escape, (name, *words[: odd + 1]))), line)[0]
    raise InputError(f"{where}: '{words[odd]}' stands where a label should; a path with spaces goes into quotes: "
                     f'"{path}" {" ".join(labels[:3])}{" ..." if len(labels) > 3 else ""}')


def _inside(path: str, folder: pathlib.Path, where: str) -> str:
    """The path with slashes and without needless dots, if it stays below the data set's folder."""
    if "\\" in path and not DRIVE.match(path) and not (folder / path).exists():
        path = path.replace("\\", "/")
    parts = pathlib.PurePosixPath(path)
    if parts.is_absolute() or DRIVE.match(path) or ".." in parts.parts:
        raise InputError(f"{where}: path '{path}' leads out of the data set's folder; write it relative to the folder of the "
                         "list")
    return str(parts)
