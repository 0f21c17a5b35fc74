"""List files as people write them: class numbers, other systems' text, spaces and slips; and what is said of their labels."""

import codecs

import numpy as np
import pytest
from image_trees import write_images

from jax_brcd import distill
from jax_brcd.data import load_dataset
from jax_brcd.data.listfile import read_list
from jax_brcd.runtime.errors import InputError
from jax_brcd.settings.command_line import one_line, run_command
from jax_brcd.stages.configuration import create_config
from torch_ref import distill as torch_distill

NAMES = [f"{number}.png" for number in range(6)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of six images that data sets of these tests share."""
    folder = tmp_path_factory.mktemp("lists")
    write_images(folder, *NAMES, "my image.png", "sub/a b.png", "#7.png")
    return folder


@pytest.fixture
def write(images):
    """A function that writes lists, of the labels of the first images or of whole lines, and gives the folder."""

    def lists(train, database=None, test=None):
        for name, labels in (("train", train), ("database", database or train), ("test", test or train)):
            lines = labels if "\n" in labels else "".join(
                f"{path} {label}\n" for path, label in zip(NAMES, labels, strict=False))
            (images / f"{name}.txt").write_text(lines)
        return images

    return lists


def load(folder, **settings):
    return load_dataset("list", data_dir=folder, cache_dir=folder / "cache", decode_workers=0, **settings)


@pytest.mark.parametrize("labels", ["01010", "00000", "37210", "11111"])
def test_one_label_an_image_is_refused_until_it_is_told_what_it_means(write, labels):
    folder = write(labels)
    with pytest.raises(InputError) as error:
        load(folder)
    line = one_line(error.value)
    assert line.startswith(f"{folder / 'train.txt'}: one label an image, which may be the number of its class or a 0 or 1")
    assert "--label-format class-numbers or multi-hot" in line and "a.jpg 1 0" in line and "\n" not in line


def test_class_numbers_are_one_hot_and_class_0_is_a_class(write):
    data = load(write("0101", "010110", "1001"), label_format="class-numbers")
    np.testing.assert_array_equal(data.database.labels, np.eye(2)[[0, 1, 0, 1, 1, 0]])
    np.testing.assert_array_equal(data.train.labels, np.eye(2)[[0, 1, 0, 1]])
    assert sorted(np.concatenate([data.validation.labels, data.test.labels]).argmax(axis=1)) == [0, 0, 1, 1]
    assert data.class_names == ("class 0", "class 1") and not any("label" in note for note in data.notes)


def test_classes_are_the_numbers_that_occur_in_any_list(write):
    data = load(write(["3", "10"], ["3", "10", "200000"], ["3", "007"]), label_format="class-numbers")
    assert data.class_names == ("class 3", "class 7", "class 10", "class 200000")
    np.testing.assert_array_equal(data.database.labels, [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert any(note.endswith("that share no label with any image of the database, and so score 0: 1.") for note in data.notes)


@pytest.mark.parametrize(("labels", "settings", "message"), [
    (["0", "-1"], {"label_format": "class-numbers"}, "train.txt:2: label '-1' is no class number; number the classes from 0"),
    (["0", "cat"], {"label_format": "class-numbers"}, "train.txt:2: label 'cat' is no class number"),
    (["0", "1.0"], {"label_format": "class-numbers"}, "train.txt:2: label '1.0' is no class number"),
    (["0", "\u0662"], {"label_format": "class-numbers"}, "train.txt:2: label '\u0662' is no class number"),
    (["0", "9" * 5000], {"label_format": "class-numbers"}, "999' is no class number"),
    (["0 1", "1 0"], {"label_format": "class-numbers"}, "train.txt:1: 2 labels; under label_format class-numbers a line is"),
    (["0", "2"], {"label_format": "multi-hot"}, "train.txt:2: label '2' is neither 0 nor 1"),
    (["0", "2"], {"label_format": "multi-hot"}, "say label_format class-numbers"),
    (["0", "1"], {"label_format": "multihot"}, "unknown label format 'multihot': did you mean 'multi-hot'"),
])
def test_labels_that_are_no_class_numbers_are_refused_with_their_line(write, labels, settings, message):
    with pytest.raises(InputError) as error:
        load(write(labels), **settings)
    assert message in str(error.value)


def test_a_list_of_one_multi_hot_class_is_possible_and_its_unlabelled_images_are_counted(write):
    data = load(write("0110", "01101", "0101"), label_format="multi-hot")
    np.testing.assert_array_equal(data.database.labels[:, 0], [0, 1, 1, 0, 1])
    note = next(note for note in data.notes if note.startswith("Images without any label"))
    assert "2 of 4 in train, 2 of 5 in database" in note


def test_queries_and_images_without_any_label_are_counted(write):
    data = load(write(["1 0", "0 0"], ["1 0", "0 0", "0 0", "0 1"], ["0 0", "0 0"]))
    assert data.notes[0] == ("Images without any label, which are relevant to nothing: 1 of 2 in train, 2 of 4 in database, "
                             "1 of 1 in validation, 1 of 1 in test.")


def test_the_label_format_is_a_setting_with_its_words():
    assert create_config(label_format="class-numbers").data.label_format == "class-numbers"
    assert create_config().data.label_format is None
    with pytest.raises(InputError, match="multi-hot"):
        create_config(label_format="words")


@pytest.mark.parametrize("main", [distill.main, torch_distill.main])
def test_the_commands_hand_the_label_format_on_and_spell_it_as_an_option(write, tmp_path, capsys, main):
    options = ["--dataset", "list", "--data-dir", str(write(["0", "cat"])), "--cache-dir", str(tmp_path), "--out",
               str(tmp_path / "run")]
    for told, line in (([], "--label-format class-numbers or multi-hot"),
                       (["--label-format", "class-numbers"], "train.txt:2: label 'cat' is no class number")):
        with pytest.raises(SystemExit) as stop:
            run_command(main, [*options, *told])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and line in error and error.count("\n") == 1


TEXT = '0.png 1 0\n1.png 0 1\n'
LABELS = ["1 0", "0 1"]


@pytest.mark.parametrize("content", [
    codecs.BOM_UTF8 + TEXT.encode(),
    TEXT.replace("\n", "\r\n").encode(),
    TEXT.replace("\n", "\r").encode(),
    TEXT.replace(" ", "\t").encode(),
    TEXT.replace(" ", "  \t ").encode() + b"\n \n\t\n\r\n",
    TEXT.strip().encode(),
    TEXT.replace("\n", "   \n").encode(),
    b"# path cat dog\n#\n## more\n" + TEXT.encode(),
    TEXT.replace("0.png", '"0.png"').encode(),
    TEXT.replace("0.png", "./0.png").encode(),
    TEXT.replace("0.png", ".\\0.png").encode(),
])
def test_a_list_is_read_as_any_system_writes_it(write, content):
    folder = write(LABELS)
    for name in ("train", "database", "test"):
        (folder / f"{name}.txt").write_bytes(content)
    data = load(folder)
    np.testing.assert_array_equal(data.database.labels, [[1, 0], [0, 1]])
    assert read_list(folder / "train.txt").images[0].path == "0.png"
    assert data.notes and all("more than once" not in note for note in data.notes)  # the queries are in the database here


@pytest.mark.parametrize(("content", "message"), [
    (TEXT.encode("utf-16"), "train.txt: UTF-16 text; save it as UTF-8"),
    (TEXT.encode("utf-16-be"), "train.txt: UTF-16 text; save it as UTF-8"),
    (TEXT.encode("utf-16-le"), "train.txt: UTF-16 text; save it as UTF-8"),
    (TEXT.encode("utf-32"), "train.txt: UTF-32 text; save it as UTF-8"),
    (codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"), "train.txt: UTF-32 text; save it as UTF-8"),
    ("0.png 1 0\nK\u00fche.png 0 1\n".encode("latin-1"), "train.txt:2: no text in UTF-8 (byte 0xfc)"),
    (b"\x89PNG\r\n\0\0\0\0\0\0abc", "train.txt: no text, it has zero bytes"),
    (codecs.BOM_UTF8, "train.txt: names no image"),
    (b"# nothing yet\n\n", "train.txt: names no image"),
    (b"0.png,1,0\n", "no labels; a line is a path, in quotes if it has spaces, then 0 or 1 for each class, with spaces or tabs "
                     "between; this one has commas"),
    (b"my image.png 1 0\n", "train.txt:1: 'image.png' stands where a label should; a path with spaces goes into quotes: "
                            '"my image.png" 1 0'),
    (b'0.png 1 0\nsub/a b.png 0 1\n', '"sub/a b.png" 0 1'),
    (b'"0.png 1 0\n', "train.txt:1: a path in quotes that do not end"),
    (b"C:\\images\\0.png 1 0\n", "path 'C:\\images\\0.png' leads out of the data set's folder"),
    (b"..\\0.png 1 0\n", "path '../0.png' leads out of the data set's folder"),
])
def test_text_that_is_no_list_is_refused_with_what_it_is(write, content, message):
    folder = write(LABELS)
    (folder / "train.txt").write_bytes(content)
    with pytest.raises(InputError) as error:
        load(folder)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_paths_with_spaces_stand_in_quotes_and_backslashes_are_slashes(write):
    folder = write('"my image.png" 1 0\n"sub\\a b.png"\t0 1\n#7.png 0 1\n')
    part = read_list(folder / "train.txt")
    assert [image.path for image in part.images] == ["my image.png", "sub/a b.png", "#7.png"]
    assert part.words == [["1", "0"], ["0", "1"], ["0", "1"]]
    np.testing.assert_array_equal(load(folder).train.labels, [[1, 0], [0, 1], [0, 1]])


def test_white_space_that_is_no_space_or_tab_is_part_of_a_name(images):
    write_images(images, "\u5bab\u3000\u57ce.png")
    (images / "odd.txt").write_text("\u5bab\u3000\u57ce.png 1 0\n")
    assert read_list(images / "odd.txt").images[0].path == "\u5bab\u3000\u57ce.png"


def test_paths_that_begin_where_another_program_ran_are_told_what_to_leave_out(write):
    """As in HashNet's lists, whose paths are relative to its code."""
    folder = write("./data/nuswide_81/0.png 1 0\n./data/nuswide_81/1.png 0 1\n")
    with pytest.raises(InputError) as error:
        load(folder, max_bad_images=100)
    assert str(error.value) == (
        f"{folder / 'train.txt'}:1: data/nuswide_81/0.png: no such file, but 0.png is there; paths are relative to the folder "
        "of the list, so take data/nuswide_81/ away from the lines")


def test_a_folder_in_the_place_of_a_list_is_named(write, tmp_path):
    (tmp_path / "train.txt").mkdir()
    with pytest.raises(InputError, match=r"train\.txt: a folder; a list is a text file"):
        load(tmp_path)


def test_images_that_a_list_names_twice_and_queries_in_the_database_are_said(write):
    database = "0.png 1 0\n1.png 0 1\n./0.png 0 1\n1.png 0 1\n"
    data = load(write(LABELS, database, "1.png 0 1\n2.png 1 0\n"))
    assert "database.txt names 2 images more than once, 1 of them with other labels each time: 0.png, 1.png." in data.notes
    assert "1 queries of test.txt are in database.txt too, so that each finds itself: 1.png." in data.notes


def test_the_folders_may_be_texts_and_begin_with_the_home_folder(write, monkeypatch):
    folder = write(LABELS)
    monkeypatch.setenv("HOME", str(folder.parent))
    data = load_dataset("list", data_dir=f"~/{folder.name}", cache_dir=f"~/{folder.name}/cache", decode_workers=0)
    assert len(data.train) == 2
    assert (folder / "cache" / "images").is_dir()
