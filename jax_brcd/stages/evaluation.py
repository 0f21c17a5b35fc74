"""Evaluation: the searches of a run with the test queries, and of any encoder's queries in any database."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jax_brcd.data import Embeddings, ImageDataset, read_embeddings
from jax_brcd.data.dataset import RESIZED, square_side
from jax_brcd.data.embeddings import tables_of
from jax_brcd.encoder import STUDENT, TEACHER, HashEncoder
from jax_brcd.report import results
from jax_brcd.report.results import MEASURES
from jax_brcd.retrieval import SearchScores, evaluate_search, mean_average_precision
from jax_brcd.retrieval.packing import PackedCodes, check_spaces
from jax_brcd.runtime import devices
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.files import read_json, write_json
from jax_brcd.runtime.progress import Progress, Say, silent, unheard
from jax_brcd.settings.stages import LARGEST
from jax_brcd.stages.configuration import Config
from jax_brcd.stages.context import Context, load_images
from jax_brcd.stages.distillation import Student
from jax_brcd.stages.folder import StageFolder
from jax_brcd.teachers.base import Encoded, Teacher
from jax_brcd.views.features import weights_digest

METRICS, CODES, CURVES = "metrics.json", "codes.npz", "curves.npz"
TESTED = ("images of test", "labels of test", "images of database", "labels of database")
VALIDATED = ("images of validation", "labels of validation")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, and where it lies.

    Attributes:
        metrics: as metrics.json holds them. curves: (precision, recall) of each search at the Hamming radii 0..bits.
    """

    folder: StageFolder
    metrics: Mapping[str, Any]
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @property
    def codes(self) -> pathlib.Path:
        """The packed codes of every encoder and part, with the labels they are searched with."""
        return self.folder.path / CODES


def evaluate_run(context: Context, teacher: Teacher, student: Student | None) -> Evaluation:
    """The teacher's search of its own codes and the searches of its student with the test queries.

    Args:
        student: None to evaluate the teacher alone.
    """
    encoders = {} if student is None else {str(search): encoder for search, encoder in student.encoders.items()}
    folder = context.folder("evaluation", {
        "teacher": teacher.identity, "k": context.k, "protocol": context.protocol(), "remarks": list(teacher.remarks),
        "models": {role: [encoder.backbone, weights_digest(encoder.model)] for role, encoder in encoders.items()},
        "measures": [*MEASURES, "map of validation"], **context.student_facts(),
        **context.data_facts(*TESTED, *(VALIDATED if _has_validation(context) else ()))})
    with folder.held(context.say):
        if not folder.finished:
            _evaluate(context, folder, teacher, student)
    with folder.reading():
        with np.load(folder.path / CURVES, allow_pickle=False) as arrays:
            curves = {name: tuple(arrays[name]) for name in arrays.files}
        found = Evaluation(folder, read_json(folder.path / METRICS), curves)
        np.load(found.codes, allow_pickle=False).close()
        return found


def _evaluate(context: Context, folder: StageFolder, teacher: Teacher, student: Student | None) -> None:
    dataset = context.dataset
    outputs = {f"{TEACHER}_{part}": teacher.outputs(part) for part in ("database", "test")}
    costs = {TEACHER: {"model": teacher.name, **teacher.cost(dataset.test.images)}}
    searched = {TEACHER: (TEACHER, TEACHER)}
    if student is not None:
        for search, encoder in student.encoders.items():
            outputs[f"{search}_test"] = student.parts.outputs(encoder.model, "test")
            if search.database == STUDENT:
                outputs[f"{search}_database"] = student.parts.outputs(encoder.model, "database")
            searched[f"{STUDENT} {search}"] = (search, search if search.database == STUDENT else TEACHER)
        encoder = next(iter(student.encoders.values()))
        costs[STUDENT] = {"model": encoder.backbone, **context.measure(encoder, dataset.test.images)}
    scores = {name: score(context, outputs[f"{queries}_test"], outputs[f"{database}_database"], alike=queries == database)
              for name, (queries, database) in searched.items()} if dataset.labelled else {}
    validation = _validated(context, teacher, outputs[f"{TEACHER}_database"])
    if devices.is_first():
        results.save_codes(folder.path / CODES, {name: encoded.codes for name, encoded in outputs.items()}, dataset)
        results.save_curves(folder.path / CURVES, {name: score.curve for name, score in scores.items()})
        write_json(folder.path / METRICS, results.metrics(context.protocol(), scores=scores, costs=costs,
                                                          remarks=teacher.remarks, validation=validation))
    folder.finish()


def _has_validation(context: Context) -> bool:
    """Whether there are validation queries with labels, and rows of them where the teacher is a table."""
    return context.dataset.labelled and context.table is None


def _validated(context: Context, teacher: Teacher, database: Encoded) -> float | None:
    """The teacher's mAP of the validation queries, by which students were chosen; None where there are no such labels or rows."""
    dataset = context.dataset
    if not _has_validation(context):
        return None
    return mean_average_precision(teacher.codes("validation"), database.codes, dataset.validation.labels,
                                  dataset.database.labels, context.k)


def score(context: Context, queries: Encoded, database: Encoded, *, alike: bool) -> SearchScores:
    """What the test queries find in the database; `alike` says whether one model gave both, so that their features may be compared."""
    dataset = context.dataset
    return evaluate_search(
        queries.codes, database.codes, dataset.test.labels, dataset.database.labels, context.k, query_logits=queries.logits,
        features=(queries.features, database.features) if alike else None)


def load_for_evaluation(
    config: Config, encoders: Iterable[HashEncoder] = (), *, progress: Progress = silent, say: Say = unheard
) -> tuple[ImageDataset, int]:
    """The data set of a configuration, and the ranks its measures look at.

    Args:
        encoders: what is to see its images, which decides to how many pixels image files are decoded.

    Raises:
        InputError: for data that is absent or broken, and ranks beyond the database.
    """
    dataset = load_images(config, square_side=max([RESIZED, *map(_squares_of, encoders)]), progress=progress, say=say)
    return dataset, config.data.k or dataset.default_k


def _squares_of(encoder: HashEncoder) -> int:
    """Pixels of the squares that image files are for an encoder: those of its run, or else what its size needs."""
    protocol = encoder.provenance.get("protocol")
    if not isinstance(protocol, dict):
        return square_side(encoder.preprocessing.size)
    told = protocol.get("squares", RESIZED)
    return told if isinstance(told, int) and RESIZED <= told <= square_side(LARGEST) else RESIZED


def check_pair(queries: HashEncoder, database: HashEncoder | PackedCodes) -> None:
    """Raises InputError for codes of different spaces or lengths, which say nothing of each other."""
    check_spaces(queries, database)
    if queries.bits != database.bits:
        raise InputError(f"queries of {queries.bits} bits cannot be searched in codes of {database.bits}; give codes of one "
                         "length")


def over_embeddings(queries: HashEncoder, database: HashEncoder | PackedCodes) -> dict[str, HashEncoder]:
    """The encoders over embeddings, by the part that each is to encode."""
    return {part: encoder for part, encoder in (("test", queries), ("database", database))
            if isinstance(encoder, HashEncoder) and encoder.over_embeddings}


def check_tables(over: Mapping[str, HashEncoder], folder: pathlib.Path | None, *, given: bool) -> None:
    """Raises InputError where a folder of tables is `given` and no encoder is over embeddings, and where one is and the folder is
    not told or not there. No table is read."""
    if not over:
        if given:
            raise InputError("neither encoder is over embeddings; leave it out", field="embeddings", value=folder)
        return
    if folder is None:
        raise InputError("an encoder over embeddings; name the folder of their tables with `embeddings`", field=_role(over))
    tables_of(folder)


def _role(over: Mapping[str, HashEncoder]) -> str:
    return "queries" if "test" in over else "database"


def rows_for(over: Mapping[str, HashEncoder], dataset: ImageDataset, folder: pathlib.Path | None) -> Embeddings | None:
    """The rows that encoders over embeddings encode, from a folder of tables; None where there are no such encoders.

    Raises:
        InputError: for tables that are not of this data set or these encoders.
    """
    if not over:
        return None
    table = read_embeddings(folder, dataset, over)
    width = next(iter(over.values())).preprocessing.width
    if table.width != width:
        raise InputError(f"rows of {table.width} numbers, but the encoder of `{_role(over)}` takes {width}; give the tables that "
                         "it was made of", field="embeddings", value=folder)
    return table


def pieces(
    outputs: Callable[..., Any], encoder: HashEncoder, dataset: ImageDataset, part: str, table: Embeddings | None,
    progress: Progress,
) -> list[Any]:
    """What a method of an encoder gives for a part of a data set: for its images, or piece by piece for its rows in a table."""
    if not encoder.over_embeddings:
        return [outputs(getattr(dataset, part).images, progress=progress)]
    return [outputs(rows, progress=progress) for rows in table.parts[part].slabs()]


def evaluate_pair(
    queries: HashEncoder, database: HashEncoder | PackedCodes, dataset: ImageDataset, k: int, *, table: Embeddings | None = None,
    progress: Progress = silent,
) -> tuple[SearchScores, PackedCodes]:
    """The search of a database by the test queries of a data set, and the database's codes.

    The cosine of features is measured where both encoders have one backbone, which encodes the images once more for them.

    Args:
        database: the encoder that gives the database's images their codes, or those codes, one an image.
        table: what encoders over embeddings encode, see `rows_for`.

    Raises:
        InputError: for codes of different spaces or lengths, codes that are not of this database, a data set without labels.
    """
    if not dataset.labelled:
        raise InputError(f"{dataset.name} has no labels to evaluate by; give a data set with labels", field="dataset",
                         value=dataset.name)
    check_pair(queries, database)
    if isinstance(database, HashEncoder):
        codes = PackedCodes.concatenate(pieces(database.encode, database, dataset, "database", table, progress))
    else:
        codes = database
        if len(codes) != len(dataset.database):
            raise InputError(f"{len(codes)} codes, but the database of {dataset.name} holds {len(dataset.database)} images; "
                             "give the codes of these images in their order", field="database")
    logits = np.concatenate(pieces(queries.logits, queries, dataset, "test", table, progress))
    features = None
    if isinstance(database, HashEncoder) and same_backbone(queries, database):
        features = tuple(np.concatenate(pieces(encoder.features, encoder, dataset, part, table, progress))
                         for encoder, part in ((queries, "test"), (database, "database")))
    return evaluate_search(PackedCodes.of(logits > 0, queries.space), codes, dataset.test.labels, dataset.database.labels, k,
                           query_logits=logits, features=features), codes


def same_backbone(one: HashEncoder, other: HashEncoder) -> bool:
    """Whether features of both may be compared: their backbones have the same weights and see the same of an image."""
    return (one.backbone, one.preprocessing) == (other.backbone, other.preprocessing) and (
        weights_digest(one.model.backbone) == weights_digest(other.model.backbone))

