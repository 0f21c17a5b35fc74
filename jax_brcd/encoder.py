"""HashEncoder: a hash model with its preprocessing, code length, role, code space and provenance, as one folder.

The folder holds `config.json` and `model.safetensors`, the weights in the layout that the model's family names (torchvision's,
with the hash head in place of the classifier). An encoder over embeddings is a hash head alone, and takes rows of a table.
"""

import dataclasses
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_brcd.data.rows import as_rows, one_by_one
from jax_brcd.hub import fetch, is_hub_name, model_card, publish, without_places
from jax_brcd.images import as_items, read_ahead
from jax_brcd.models import BACKBONES, HashModel, create_hash_model, model_state
from jax_brcd.models.described import KIND
from jax_brcd.models.initial import abstract
from jax_brcd.models.layouts import LAYOUTS
from jax_brcd.models.placed import DOUBT, Batch, Placed, View, in_batches
from jax_brcd.models.rows import EMBEDDINGS, RowFormat, create_row_model
from jax_brcd.models.variants import Preprocessing
from jax_brcd.models.weights import read_weights, write_weights
from jax_brcd.retrieval.packing import PackedCodes
from jax_brcd.runtime import interruption
from jax_brcd.runtime.digests import digest
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import as_path, read_json, replacing_folder, write_json
from jax_brcd.runtime.progress import Progress, silent
from jax_brcd.runtime.registry import unknown_name
from jax_brcd.views.fitting import check_fits, fitted_view

CONFIG, WEIGHTS, CARD, FORMAT = "config.json", "model.safetensors", "README.md", 1
FIELDS = {"format": int, "backbone": str, "layout": str, "dtype": str, "bits": int, "role": str, "space": str,
          "preprocessing": dict, "provenance": dict}
HEAD = "head"  # the form of the hash head, which only folders with another than the backbone's own tell
TEACHER, STUDENT = "teacher", "student"


@dataclasses.dataclass(frozen=True, eq=False)
class HashEncoder:
    """What turns images into hash codes, and where it comes from.

    Attributes:
        model: maps normalised images, or rows of embeddings, to logits (batch, bits).
        backbone: the registered name of its backbone, or "embeddings".
        preprocessing: what an image becomes before the model sees it; over embeddings, how wide a row is.
        role: "teacher" or "student".
        space: the id of the code space. A teacher and the students taught to give its codes share it; codes of different
            spaces must not be compared.
        provenance: where it comes from: version, protocol, settings, digests and metrics of the run that made it.
    """

    model: HashModel
    backbone: str
    preprocessing: Preprocessing | RowFormat
    bits: int
    role: str
    space: str
    dtype: str = "float32"
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"HashEncoder({self.role}, {self.backbone}, {self.bits} bits, space {self.space})"

    @property
    def over_embeddings(self) -> bool:
        """Whether it encodes rows of a table of embeddings, and no images."""
        return isinstance(self.preprocessing, RowFormat)

    def encode(self, images: Any, *, progress: Progress = silent) -> PackedCodes:
        """Codes of images, or of rows of embeddings; a bit is 1 where the logit is > 0.

        The same pixels give the same bits alone, among others, from a file or from an array.

        Args:
            images: uint8 RGB, an array (n, height, width, 3) or one image (height, width, 3); a Pillow image; the path of an
                image file; or any iterable of such images of any sizes. Pillow images and files of other modes (gray, palette)
                become RGB; orientation tags are ignored, as where data sets are read. No image gives no code.
                Over embeddings: numbers of any real type (n, width), in memory or memory-mapped; a list of rows; or one row.
            progress: told how many images are encoded; of an iterable without a length, how many there are so far.

        Raises:
            InputError: for arrays that are no uint8 RGB images (floats in 0..1: `(255 * images).round().astype("uint8")`; gray
                ones: repeat their channel), and files that are no images; for rows of another width, and for NaN and infinity.
        """
        packed = [np.packbits(logits > 0, axis=1) for logits in self._decided_logits(images, progress)]
        return PackedCodes(np.concatenate([np.zeros((0, -(-self.bits // 8)), np.uint8), *packed]), self.bits, self.space)

    def logits(self, images: Any, *, progress: Progress = silent) -> Float[np.ndarray, "images bits"]:
        """What the bits are the signs of, float32. Their last digits depend on how many images are encoded at once.

        Arguments and errors as `encode`.
        """
        return np.concatenate([np.zeros((0, self.bits), np.float32), *self._decided_logits(images, progress)])

    def features(self, images: Any, *, progress: Progress = silent) -> Float[np.ndarray, "images features"]:
        """What the backbone gives the hash head, float32; compare them by their cosine, and within one backbone alone.

        Their last digits depend on how many images are encoded at once. Arguments and errors as `encode`.
        """
        placed = Placed.of(self.model)
        batches = self._batches(images, progress, placed.features,
                                lambda views, features: np.asarray(features, np.float32)[: len(views)])
        return np.concatenate([np.zeros((0, self.model.backbone.features), np.float32), *batches])

    def save(self, folder: os.PathLike | str) -> pathlib.Path:
        """Writes the encoder's folder, whole or not at all, in place of an encoder that is there; returns its path.

        Raises:
            InputError: where something else lies there, and for a provenance that JSON does not hold.
        """
        folder = as_path(folder)
        _check_place(folder)
        layout, form = self.model.backbone.layout, self.model.form
        head = {} if form is None else {HEAD: form}
        config = {"format": FORMAT, "backbone": self.backbone, "layout": layout, "dtype": self.dtype, "bits": self.bits,
                  "role": self.role, "space": self.space, "preprocessing": self.preprocessing.to_dict(),
                  "provenance": dict(self.provenance), **head}
        try:
            json.dumps(config, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"not what a JSON file holds ({error}); give text, finite numbers, lists and dictionaries",
                             field="provenance") from None
        with replacing_folder(folder) as temporary:
            write_weights(temporary / WEIGHTS, model_state(self.model), model=self.backbone, bits=str(self.bits), **head)
            write_json(temporary / CONFIG, config)
        return folder

    def push_to_hub(
        self, repository: str, *, private: bool = False, card: str | None = None, message: str = "A hash encoder of jax_brcd"
    ) -> str:
        """Publishes the encoder on the Hugging Face hub, for `load("hf:user/name")`.

        Paths of this machine that its provenance holds are published without all but their last part.

        Args:
            repository: user/name; made where there is none yet. private: whether only its owner sees it, where it is new.
            card: the text of its README.md, by default made of the provenance. message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            InputError: for a repository that cannot be made or written to, offline, and as `save`.
        """
        public = dataclasses.replace(self, provenance=without_places(dict(self.provenance)))
        with tempfile.TemporaryDirectory(prefix="jax_brcd.") as temporary:
            folder = public.save(pathlib.Path(temporary) / "encoder")
            text = model_card(read_config(folder), repository) if card is None else card
            (folder / CARD).write_text(text, encoding="utf-8")
            return publish(folder, repository, private=private, message=message)

    def with_provenance(self, **facts: Any) -> "HashEncoder":
        """The encoder with further facts of where it comes from."""
        return dataclasses.replace(self, provenance={**self.provenance, **facts})

    def _decided_logits(self, images: Any, progress: Progress) -> Iterator[Float[np.ndarray, "batch bits"]]:
        placed = Placed.of(self.model)
        return self._batches(images, progress, placed.logits, lambda views, batch: self._decided(placed, views, batch))

    def _batches(
        self, images: Any, progress: Progress, begin: Callable[[list[View]], Any],
        fetch: Callable[[list[View], Any], np.ndarray],
    ) -> Iterator[Float[np.ndarray, "batch outputs"]]:
        """Outputs of all images in order, a batch at a time; the next batch is begun before one is fetched."""
        items, every = self._inputs(images)
        begun, done = None, 0

        def finish(views: list[View], batch: Any) -> np.ndarray:
            nonlocal done
            done += len(views)
            found = fetch(views, batch)
            progress("encode images", done, len(items) if isinstance(items, Sized) else done)
            return found

        for views in in_batches(every, together=math.isfinite(DOUBT[self.dtype])):
            interruption.check()
            following = views, begin(views)
            if begun is not None:
                yield finish(*begun)
            begun = following
        if begun is not None:
            yield finish(*begun)

    def _inputs(self, images: Any) -> tuple[Iterable[Any], Iterator[Any]]:
        """What is to be encoded, and one by one what the model sees of it."""
        if self.over_embeddings:
            rows = as_rows(np.asarray(images) if isinstance(images, jax.Array) else images, self.preprocessing.width)
            return rows, one_by_one(rows)
        items = as_items(images)
        return items, (self._view(pixels, number) for number, pixels in enumerate(read_ahead(items)))

    def _view(self, pixels: np.ndarray, number: int = 0) -> Float[Array, "1 size size 3"]:
        p = self.preprocessing
        try:
            check_fits(*pixels.shape[:2], size=p.size, resize=p.resize)
        except InputError as error:
            raise error if number == 0 else InputError(f"image number {number}, counted from 0: {error}") from None
        return fitted_view(pixels, **vars(p))

    def _decided(self, placed: Placed, views: list[View], batch: Batch) -> Float[np.ndarray, "batch bits"]:
        """The logits of a batch; of images with a logit in doubt those that the program of one image gives."""
        logits, terms = (np.array(part)[: len(views)] for part in batch)
        if len(views) > 1:
            doubtful = np.flatnonzero((np.abs(logits) <= DOUBT[self.dtype] * terms).any(axis=1))
            for row, alone in [(row, placed.logits(views[row : row + 1])) for row in doubtful]:
                logits[row] = np.asarray(alone.logits)[0]
        if not np.isfinite(logits).all():
            raise InputError("logits that are no numbers, of which no bits can be made; save the encoder again, from weights "
                             "and preprocessing that fit each other")
        return logits


def space_of(model: HashModel, backbone: str, preprocessing: Preprocessing | RowFormat) -> str:
    """The id of the code space that a model's own codes are in: its name and a digest of its weights and preprocessing."""
    state = model_state(model)
    parts = [part for name in sorted(state) for part in (name, state[name])]
    return f"{backbone}-{digest('space', json.dumps(preprocessing.to_dict(), sort_keys=True), *parts)}"


def create_encoder(
    model: HashModel, backbone: str, preprocessing: Preprocessing | RowFormat, *, bits: int, role: str, space: str | None = None,
    dtype: str = "float32",
) -> HashEncoder:
    """An encoder; without a `space` its codes are in one of their own."""
    return HashEncoder(model, backbone, preprocessing, bits, role, space or space_of(model, backbone, preprocessing), dtype)


def folder_of(encoder: os.PathLike | str, *, progress: Progress = silent) -> pathlib.Path:
    """Where an encoder lies on this machine: the path that is given, or what is fetched of hf:user/name.

    Raises:
        InputError: see `hub.fetch`.
    """
    return fetch(str(encoder), progress=progress).folder if is_hub_name(encoder) else as_path(encoder)


def holds_encoder(folder: os.PathLike | str) -> bool:
    """Whether a folder is meant to be an encoder's, and not one of weights alone as Hugging Face's libraries write it."""
    try:
        return not _is_foreign(read_json(as_path(folder) / CONFIG))
    except (OSError, ValueError):
        return True


def _is_foreign(config: Any) -> bool:
    return isinstance(config, dict) and KIND in config and "backbone" not in config


def read_config(folder: os.PathLike | str) -> dict[str, Any]:
    """What an encoder's folder says of it.

    Raises:
        InputError: for a folder that is absent or no encoder's, of a newer format, or broken.
    """
    path = as_path(folder) / CONFIG
    if not path.is_file():
        raise InputError(f"{as_path(folder)}: no encoder's folder ({CONFIG} and {WEIGHTS}); give one that a run wrote, such as "
                         "runs/NAME/student_asymmetric")
    try:
        config = read_json(path)
    except ValueError as error:
        raise InputError(f"{path}: broken ({error}); save the encoder again") from None
    config = config if isinstance(config, dict) else {}
    if _is(int, config.get("format")) and config["format"] > FORMAT:
        raise InputError(f"{path}: written by a newer jax_brcd; update this one")
    if isinstance(config.get("settings"), dict):
        inside = ", ".join(str(path.parent) for path in sorted(as_path(folder).glob(f"*/{WEIGHTS}"))) or "none yet"
        raise InputError(f"{as_path(folder)}: a run's directory, and no encoder's; the encoders in it are: {inside}")
    if _is_foreign(config):
        raise InputError(f"{as_path(folder)}: weights of {config[KIND]} without a hash head, and no encoder; a run takes them "
                         "as `teacher_weights` or `student_weights`")
    known = FIELDS | ({HEAD: str} if HEAD in config else {})
    absent = [name for name in FIELDS if name not in config]
    if absent:
        raise InputError(f"{path}: says nothing of {', '.join(absent)}, so it is no encoder's; give an encoder's folder")
    wrong = [name for name, kind in known.items()
             if not _is(kind, config[name]) or (kind is str and not config[name].isprintable())]
    if wrong:
        raise InputError(f"{path}: broken ({wrong[0]} is {json.dumps(config[wrong[0]])[:40]}); save the encoder again")
    return config


def load(folder: os.PathLike | str, *, progress: Progress = silent) -> HashEncoder:
    """The encoder that a folder holds, or a repository of the Hugging Face hub.

    Args:
        folder: its path, or hf:user/name, or hf:user/name@revision. progress: told of the bytes that come from the hub.

    Raises:
        InputError: for a folder that is absent or no encoder's, of a newer format, or whose weights do not fit; and for what
            cannot be had of the hub, see `hub.fetch`.
    """
    if is_hub_name(folder):
        fetched = fetch(str(folder), progress=progress)
        try:
            return load(fetched.folder).with_provenance(fetched=fetched.origin)
        except InputError as error:
            raise InputError(f"{fetched.name}: {error.problem.removeprefix(f'{fetched.folder}: ')}") from None
    folder, config = as_path(folder), read_config(folder)
    try:
        preprocessing = preprocessing_of(config)
        model = _load_model(config, preprocessing, folder / WEIGHTS)
    except InputError as error:
        raise error if str(folder) in error.problem else InputError(f"{folder}: {error}") from None
    return HashEncoder(model, config["backbone"], preprocessing, config["bits"], config["role"], config["space"],
                       config["dtype"], config["provenance"])


def preprocessing_of(config: Mapping[str, Any]) -> Preprocessing | RowFormat:
    """What becomes of an image, or how wide a row is, of an encoder whose folder says this of it.

    Raises:
        InputError: for fields that are unknown, absent or out of bounds.
    """
    return (RowFormat if config["backbone"] == EMBEDDINGS else Preprocessing).from_dict(config["preprocessing"])


def _load_model(config: Mapping[str, Any], preprocessing: Preprocessing | RowFormat, weights: pathlib.Path) -> HashModel:
    if config["dtype"] not in DOUBT:
        raise InputError(unknown_name("arithmetic", config["dtype"], DOUBT))
    over_rows = isinstance(preprocessing, RowFormat)
    if not over_rows and config["backbone"] not in BACKBONES:
        unknown = unknown_name("backbone", config["backbone"], BACKBONES)
        raise InputError(f"{unknown}; one of your own is registered before it is loaded")
    layout, state = LAYOUTS[config["layout"]], read_weights(weights)

    def create(rngs: nnx.Rngs) -> HashModel:
        if over_rows:
            return create_row_model(preprocessing.width, config["bits"], rngs=rngs, form=config.get(HEAD))
        return create_hash_model(config["backbone"], config["bits"], size=preprocessing.size, rngs=rngs,
                                 dtype=jnp.dtype(config["dtype"]), form=config.get(HEAD))

    model = abstract(create)
    if not layout.load(model, state).head:
        raise InputError(f"{weights}: holds no hash head; give an encoder's folder, whose weights have one")
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(model))):
        model = create(nnx.Rngs(0))  # it has what no file holds, such as the random streams of a user's module
        layout.load(model, state)
    return model


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_place(folder: pathlib.Path) -> None:
    """Raises InputError where a folder holds anything but an encoder, which would be lost."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder")
    there = {path.name for path in folder.iterdir()}
    if there and not (there <= {CONFIG, WEIGHTS} and _is_encoder(folder)):
        others = ", ".join(sorted(there - {CONFIG, WEIGHTS})[:3]) or CONFIG
        raise InputError(f"{folder}: holds something that is no encoder ({others}); name another folder")


def _is_encoder(folder: pathlib.Path) -> bool:
    try:
        return bool(read_config(folder))
    except InputError:
        return False
