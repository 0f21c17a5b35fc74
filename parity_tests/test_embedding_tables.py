"""Tables of embeddings on disk: each form gives each image its own row, and what is wrong with one is said in one line."""

import dataclasses

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import safetensors.numpy
from image_trees import write_lists

from jax_brcd.data import load_dataset, read_embeddings
from jax_brcd.data.dataset import ImageDataset, Images, Place
from jax_brcd.data.digits import enlarge
from jax_brcd.runtime.errors import InputError

TRAIN, TEST, WIDTH = 12, 8, 5
PATHS = {"train": [f"train/{number}.jpg" for number in range(TRAIN)], "test": [f"test/{number}.jpg" for number in range(TEST)]}


def images(name, positions):
    """Images of a part with places in a list of 12 or 8, of which some could not be read."""
    place = Place.whole(name, len(PATHS[name]), PATHS[name]).take(np.array(positions))
    return Images(np.zeros((len(positions), 2, 2, 3), np.uint8), np.ones((len(positions), 1), np.uint8), place=place)


@pytest.fixture(scope="module")
def dataset():
    """All but one of the training images could be read; the test images are shuffled and halved."""
    train = images("train", [number for number in range(TRAIN) if number != 4])
    return ImageDataset("listed", "published", train, train, images("test", [6, 1, 2, 5]), images("test", [0, 7, 3, 4]), ("one",),
                        flip=True, default_k=3)


def rows(name, dtype=np.float32):
    """Each row holds the number of its image, 1 for the first."""
    count = len(PATHS[name])
    return np.repeat(np.arange(1, count + 1)[:, None], WIDTH, axis=1).astype(dtype)


def numpy_file(path, values, paths):
    np.save(path.with_suffix(".npy"), values)
    if paths is not None:
        path.with_suffix(".paths.txt").write_text("\n".join(paths) + "\n")


def safetensors_file(path, values, paths):
    safetensors.numpy.save_file({"vectors": np.ascontiguousarray(values)}, path.with_suffix(".safetensors"))
    if paths is not None:
        path.with_suffix(".paths.txt").write_text("\n".join(paths))


def parquet_file(path, values, paths):
    named = {} if paths is None else {"path": paths}
    table = pa.table({**named, "label": [0] * len(values), "embedding": list(values)})
    pyarrow.parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=5)


FORMS = {"npy": numpy_file, "safetensors": safetensors_file, "parquet": parquet_file}


def write(folder, form="npy", *, paths=False, dtype=np.float32, **tables):
    """A folder of tables; by default those of the whole lists, shuffled where they have paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in ({"train": rows("train", dtype), "test": rows("test", dtype)} | tables).items():
        if values is None:
            continue
        order = np.random.default_rng(0).permutation(len(values)) if paths else np.arange(len(values))
        FORMS[form](folder / name, values[order], [f"./{PATHS[name][row]}" for row in order] if paths else None)
    return folder


def numbers(table, part):
    """The images of a part by what their rows say."""
    found = table.parts[part][:]
    assert found.dtype == np.float32 and found.shape[1] == WIDTH and (found == found[:, :1]).all()
    return (found[:, 0] - 1).astype(int).tolist()


@pytest.mark.parametrize("paths", [False, True], ids=["by row", "by path"])
@pytest.mark.parametrize(("form", "dtype"), [
    ("npy", np.float64), ("npy", np.float16), ("npy", ">i2"), ("npy", np.int8), ("safetensors", ml_dtypes.bfloat16),
    ("safetensors", np.int64), ("parquet", np.float32), ("parquet", np.float16), ("parquet", np.int32)])
def test_every_form_and_type_gives_each_image_its_row(dataset, tmp_path, form, dtype, paths):
    """Images that could not be read keep their row in the whole list's table; the database is taken from the training images."""
    table = read_embeddings(write(tmp_path / "t", form, paths=paths, dtype=dtype), dataset)
    assert numbers(table, "train") == numbers(table, "database") == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert numbers(table, "test") == [0, 7, 3, 4] and table.width == WIDTH
    assert numbers(read_embeddings(tmp_path / "t", dataset, ["validation"]), "validation") == [6, 1, 2, 5]


def test_a_table_may_have_the_rows_of_its_part_alone(dataset, tmp_path):
    own = read_embeddings(write(tmp_path, train=rows("train")[:11], test=rows("test")[:4], database=rows("train")[::-1][:11]), dataset)
    assert numbers(own, "train") == list(range(11)) and numbers(own, "test") == [0, 1, 2, 3]
    assert numbers(own, "database") == list(range(11, 0, -1)), "a table of its own goes first"


@pytest.mark.parametrize("paths", [False, True], ids=["by row", "by path"])
def test_training_images_of_the_database_take_its_rows_and_not_those_of_the_list_train(tmp_path, paths):
    """As many are drawn as that list has lines, so that its table would fit."""
    lists = write_lists(tmp_path / "lists", 6, 9, 4)
    for name, first in (("train", 100), ("database", 0), ("test", 200)):
        named = [line.split()[0] for line in (lists / f"{name}.txt").read_text().splitlines()]
        values = np.repeat(np.arange(first + 1, first + 1 + len(named))[:, None], WIDTH, axis=1).astype(np.float32)
        numpy_file(tmp_path / name, values, named if paths else None)
    for count in (6, "all"):
        drawn = load_dataset("list", data_dir=lists, cache_dir=tmp_path / "cache", train_images=count)
        positions = drawn.train.place.positions.tolist()
        assert numbers(read_embeddings(tmp_path, drawn), "train") == positions and len(positions) == len(drawn.train)
    published = load_dataset("list", data_dir=lists, cache_dir=tmp_path / "cache")
    assert numbers(read_embeddings(tmp_path, published), "train") == [100, 101, 102, 103, 104, 105]


def test_training_images_of_another_list_have_a_table_of_their_own_where_that_has_none(dataset, tmp_path):
    place = Place.whole("database", 20).take(np.arange(3, 14))
    drawn = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, place=place))
    assert numbers(read_embeddings(write(tmp_path, train=rows("train")[:11]), drawn, ["train"]), "train") == list(range(11))


def test_the_digits_are_taken_from_the_rows_of_all_as_their_images_are(tmp_path):
    """scikit-learn's own order, whatever the seed draws; the pixels stand for embeddings here."""
    from sklearn.datasets import load_digits

    pixels = load_digits().data.astype(np.float32)
    np.save(tmp_path / "all.npy", pixels)
    for seed in (0, 1):
        digits = load_dataset("digits", cache_dir=tmp_path / "cache", seed=seed)
        table = read_embeddings(tmp_path, digits)
        for part in ("train", "test"):
            np.testing.assert_array_equal(enlarge(table.parts[part][:].reshape(-1, 8, 8)), getattr(digits, part).images)


def test_digests_tell_of_rows_and_not_of_files(dataset, tmp_path):
    plain = read_embeddings(write(tmp_path / "a"), dataset).digests()
    assert set(plain) == {"embeddings of train", "embeddings of database", "embeddings of test"}
    assert read_embeddings(write(tmp_path / "b", "parquet", paths=True, dtype=np.float64), dataset).digests() == plain
    other = rows("test")
    other[3, 2] += 1
    changed = read_embeddings(write(tmp_path / "c", test=other), dataset).digests()
    assert [name for name in plain if plain[name] != changed[name]] == ["embeddings of test"]


def spoilt(value, row=2, column=1):
    values = rows("test", np.float64)
    values[row, column] = value
    return values


@pytest.mark.parametrize(("tables", "message"), [
    ({"test": rows("test")[:7]}, "test.npy: 7 rows, of which test cannot take its 4; give 8, one for each image of test in the order of "
                                 "the data set's files or 4, one for each image that is test in this split"),
    ({"train": rows("train")[:5]}, "train.npy: 5 rows, of which train cannot take its 11; give 12"),
    ({"test": spoilt(np.nan)}, "test.npy: row 2, counted from 0, holds NaN, infinity"),
    ({"test": spoilt(-np.inf)}, "test.npy: row 2, counted from 0, holds NaN, infinity"),
    ({"test": spoilt(1e300)}, "numbers too large for float32"),
    ({"test": rows("test") * (np.arange(8) != 5)[:, None]}, "test.npy: row 5, counted from 0, is all zeros"),
    ({"test": rows("test")[:, 0]}, "test.npy: shape (8,), 1 axis instead of 2"),
    ({"test": rows("test")[:, :, None]}, "3 axes instead of 2"),
    ({"test": rows("test")[:, :0]}, "rows without numbers"),
    ({"test": rows("test")[:0]}, "test.npy: no rows"),
    ({"test": rows("test")[:, :3]}, "test.npy: rows of 3 numbers, but those of train.npy have 5; give embeddings of one model"),
    ({"test": rows("test", np.complex64)}, "test.npy: complex64 and no real numbers"),
    ({"test": rows("test", "U3")}, "<U3 and no real numbers"),
    ({"test": rows("test", ml_dtypes.bfloat16).view("V2")}, "NumPy's files forget what bfloat16 is"),
    ({"test": None}, "no table for test (there are: train.npy); give test with 4 rows, one for each image of test in listed"),
    ({"train": None}, "no table for train (there are: test.npy)"),
])
def test_what_is_wrong_with_a_table_is_said_in_one_line(dataset, tmp_path, tables, message):
    assert message in refused(write(tmp_path, **tables), dataset)


def refused(folder, dataset):
    with pytest.raises(InputError) as error:
        read_embeddings(folder, dataset)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_objects_are_never_unpickled(dataset, tmp_path):
    write(tmp_path)
    np.save(tmp_path / "test.npy", np.array([[1.0], [1.0, 2.0]], dtype=object), allow_pickle=True)
    assert "test.npy: objects and no numbers (rows of different lengths, say), which are never unpickled" in refused(tmp_path, dataset)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_off_or_of_something_else_is_damaged(dataset, tmp_path, form):
    (path,) = write(tmp_path, form, train=None).iterdir()
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"embeddings"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{path.name}: (truncated|empty)"):
            read_embeddings(tmp_path, dataset, ["test"])


def test_tables_of_two_formats_are_refused(dataset, tmp_path):
    write(tmp_path, "parquet", train=None)
    assert "train.npy beside test.parquet; give all tables in one format" in refused(write(tmp_path, test=None), dataset)
    assert "no such folder" in refused(tmp_path / "nowhere", dataset)


@pytest.mark.parametrize(("change", "message"), [
    (lambda paths: [*paths[:3], "test/99.jpg", *paths[4:]], "row 3, counted from 0, is of test/99.jpg, which is no image of test"),
    (lambda paths: [*paths[:3], paths[1], *paths[4:]], "rows 1 and 3, counted from 0, are both of"),
    (lambda paths: paths[:7], "no row for"),
])
@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_paths_that_are_unknown_repeated_or_absent_are_named(dataset, tmp_path, form, change, message):
    write(tmp_path, form, paths=True)
    paths = change(list(PATHS["test"]))
    FORMS[form](tmp_path / "test", rows("test")[: len(paths)], paths)
    assert message in refused(tmp_path, dataset)


def test_paths_must_be_one_a_row_and_of_images_that_have_some(dataset, tmp_path):
    write(tmp_path / "a", paths=True)
    (tmp_path / "a" / "test.paths.txt").write_text("test/0.jpg\n")
    assert "test.paths.txt: 1 lines, but test.npy has 8 rows" in refused(tmp_path / "a", dataset)
    digits = load_dataset("digits", cache_dir=tmp_path / "cache")
    (tmp_path / "b").mkdir()
    numpy_file(tmp_path / "b" / "all", rows("test"), PATHS["test"])
    assert "all.npy: has paths, and the images of digits have none" in refused(tmp_path / "b", digits)


@pytest.mark.parametrize(("columns", "message"), [
    ({"embedding": [[1.0, 2.0], [3.0]]}, "row 1 of 'embedding', counted from 0, has 1 numbers and row 0 has 2"),
    ({"embedding": [[1.0], None]}, "1 rows of 'embedding' are empty"),
    ({"embedding": [[1.0, None], [2.0, 3.0]]}, "has rows with numbers left out"),
    ({"embedding": [["a"], ["b"]]}, "no real numbers|objects and no numbers"),
    ({"a": [1.0, 2.0]}, "no column of lists among a; put the numbers of a row into one list"),
    ({"a": [[1.0], [2.0]], "b": [[1.0], [2.0]]}, "columns of lists a, b; put"),
    ({"path": ["a", None], "embedding": [[1.0], [2.0]]}, "row 1 of 'path', counted from 0, is None"),
])
def test_what_is_wrong_with_a_parquet_file_is_said_in_one_line(dataset, tmp_path, columns, message):
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "test.parquet")
    with pytest.raises(InputError, match=message):
        read_embeddings(tmp_path, dataset, ["test"])
    pyarrow.parquet.write_table(pa.table({"embedding": pa.array([], pa.list_(pa.float32()))}), tmp_path / "test.parquet")
    with pytest.raises(InputError, match="no rows|rows without numbers"):
        read_embeddings(tmp_path, dataset, ["test"])


def test_a_safetensors_file_of_several_tensors_names_its_table(dataset, tmp_path):
    path = write(tmp_path, "safetensors") / "test.safetensors"
    safetensors.numpy.save_file({"a": rows("test"), "b": rows("test")}, path)
    assert "2 tensors (a, b); give one, or call the table 'embeddings'" in refused(tmp_path, dataset)
    safetensors.numpy.save_file({"a": rows("train"), "embeddings": rows("test")}, path)
    assert numbers(read_embeddings(tmp_path, dataset), "test") == [0, 7, 3, 4]
