"""Image folders as people have them: sub-folders for parts, what systems leave behind, every format of Pillow, links."""

import os
import pathlib

import numpy as np
import pytest
from image_trees import picture, write_images
from PIL import Image

from jax_brcd.data import load_dataset
from jax_brcd.data.decoding import decode, suffixes
from jax_brcd.data.scanning import Walk
from jax_brcd.runtime.errors import InputError


@pytest.fixture
def tree(tmp_path):
    return tmp_path / "tree"


def load(folder, **settings):
    return load_dataset("folder", data_dir=folder, cache_dir=folder.parent / "cache", decode_workers=0, **settings)


def names(folder, count=3, suffix=".png"):
    return [f"{folder}/{number}{suffix}" for number in range(count)]


def squares(folder, paths):
    return np.stack([decode(folder / path) for path in paths])


def same(found, expected):
    """Whether two sets of images are the same, in any order."""
    return sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in expected)


def refused(folder, **settings):
    with pytest.raises(InputError) as error:
        load(folder, **settings)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)


def test_sub_folders_for_parts_are_the_parts(tree):
    for start, (part, count) in enumerate((("train", 3), ("val", 1), ("test", 2))):
        write_images(tree, *names(f"{part}/dog", count), *names(f"{part}/cat", count), start=10 * start)
    data = load(tree)
    assert data.class_names == ("cat", "dog") and data.split == "sub-folders train, val, test"
    assert [len(part) for part in (data.train, data.database, data.validation, data.test)] == [6, 6, 2, 4]
    paths = [*names("test/cat", 2), *names("test/dog", 2)]
    np.testing.assert_array_equal(data.test.images, squares(tree, paths))
    np.testing.assert_array_equal(data.test.labels, [[1, 0], [1, 0], [0, 1], [0, 1]])
    np.testing.assert_array_equal(data.train.images, data.database.images)
    assert data.notes == ()


@pytest.mark.parametrize("part", ["val", "valid", "Validation", "test", "Testing", "query"])
def test_a_part_of_queries_alone_is_halved(tree, part):
    write_images(tree, *names("Train/cat"), *names("Train/dog"), *names(f"{part}/cat", 2), *names(f"{part}/dog", 2))
    data = load(tree)
    assert data.split == f"sub-folders Train, {part}; {part} halved into validation and test queries"
    assert [len(queries) for queries in (data.validation, data.test)] == [2, 2]
    paths = [*names(f"{part}/cat", 2), *names(f"{part}/dog", 2)]
    assert same([*data.validation.images, *data.test.images], squares(tree, paths))


def test_a_part_that_trains_alone_gives_the_queries_too(tree):
    write_images(tree, *names("train/cat", 10), *names("train/dog", 10))
    data = load(tree)
    assert data.split == "sub-folders train; a tenth of train drawn as queries, halved" and data.class_names == ("cat", "dog")
    assert [len(part) for part in (data.train, data.database, data.validation, data.test)] == [18, 18, 1, 1]


def test_a_database_of_its_own_is_searched(tree):
    write_images(tree, *names("train/cat"), *names("gallery/cat", 2), *names("gallery/dog", 2), *names("query/dog", 2))
    data = load(tree)
    assert [len(part) for part in (data.train, data.database, data.validation, data.test)] == [3, 4, 1, 1]
    np.testing.assert_array_equal(data.database.labels, [[1, 0], [1, 0], [0, 1], [0, 1]])
    assert "query has no images of: cat." in data.notes
    assert len(load(tree, train_images="all").train) == 4


def test_parts_without_classes_train_and_have_no_labels(tree):
    write_images(tree, *names("train", 5), *names("test", 2))
    data = load(tree)
    assert not data.labelled and data.class_names == () and len(data.train) == 5 and len(data.test) == 1


def test_a_test_part_without_classes_is_left_out_and_said(tree):
    write_images(tree, *names("train/cat"), *names("train/dog"), *names("val/cat"), *names("val/dog"), *names("test"))
    data = load(tree)
    assert "The images of test have no classes, so they are no queries." in data.notes
    assert [len(data.validation), len(data.test)] == [3, 3] and data.test.labels.sum() == 3
    assert "val halved into validation and test queries" in data.split


@pytest.mark.parametrize(("paths", "message"), [
    (["train/cat/0.png", "train/dog/0.png", "test/cat/0.png", "test/bird/0.png"],
     "test: class bird is not in train, which has cat, dog"),
    (["train/cat/0.png", "train/cat/1.png", "test/unknown/0.png"], "test: class unknown is not in train, which has cat"),
    (["train/cat/0.png", "train/dog/0.png", "test/0.png", "test/1.png"],
     "test: its images have no classes and those of train have"),
    (["train/0.png", "train/1.png", "test/cat/0.png", "test/dog/0.png"], "test: class cat is not in train, which has none"),
    (["test/cat/0.png", "val/cat/0.png"], "test, val alone, and no images that train"),
    (["train/cat/0.png", "test/cat/0.png", "cat/0.png"], "test, train may be parts of a data set or classes beside cat"),
    (["train/cat/0.png", "extra/0.png"], "train may be parts of a data set or classes beside extra"),
    (["train/cat/0.png", "val/cat/0.png", "valid/cat/0.png"], "val and valid are the same part"),
    (["train/cat/0.png", "train/0.png", "test/cat/0.png"], "train: images lie both beside and in sub-folders"),
    (["train/cat/0.png", "test/cat/0.png", "0.png"], "images lie beside the parts train, test (0.png)"),
    (["train/cat/0.png", "train/cat/1.png", "test/cat/0.png"], "test: one image; at least two are needed"),
    (["cat/train/0.png", "cat/test/0.png", "dog/train/0.png", "dog/val/0.png"],
     "the parts lie inside of the classes (cat/test, "),
    (["pets/cat/0.png", "pets/dog/0.png"], "all images lie in the sub-folders of pets; name"),
    (["train/train/cat/0.png", "test/test/cat/0.png"], "all images lie in the sub-folders of"),
])
def test_a_folder_that_may_be_meant_in_two_ways_is_refused_in_one_line(tree, paths, message):
    write_images(tree, *paths)
    assert message in refused(tree)


def test_vehicles_may_have_a_class_called_train(tree):
    write_images(tree, *names("car", 5), *names("train", 5), *names("truck", 5))
    assert load(tree).class_names == ("car", "train", "truck")


def test_images_of_one_class_are_told_that_measures_say_nothing(tree):
    write_images(tree, *names("cat", 6))
    assert any("one class, cat, so every answer is right" in note for note in load(tree).notes)


LEFT_BEHIND = [".ipynb_checkpoints/x.png", "cat/.ipynb_checkpoints/x.png", "cat/deep/.git/x.png", "__MACOSX/cat/x.png",
               "cat/__MACOSX/x.png", "cat/@eaDir/x.png", "$RECYCLE.BIN/x.png", "lost+found/x.png", "cat/._0.png",
               "dog/.hidden.png", "System Volume Information/x.png", "cat/@EADIR/y.png"]


def test_hidden_and_system_folders_and_files_are_skipped_at_every_depth(tree):
    write_images(tree, *names("cat"), *names("dog"), "cat/deep/3.png", *LEFT_BEHIND)
    for name in (".DS_Store", "Thumbs.db", "cat/Thumbs.db", "cat/desktop.ini"):
        (tree / name).write_bytes(b"")
    data = load(tree)
    assert data.class_names == ("cat", "dog")
    everything = [*data.database.images, *data.validation.images, *data.test.images]
    assert same(everything, squares(tree, [*names("cat"), *names("dog"), "cat/deep/3.png"]))
    note, = data.notes
    assert note == "Passed over in the folder: hidden or of the system: 16 ($RECYCLE.BIN, .DS_Store, .ipynb_checkpoints, ...)."


def test_the_folder_itself_may_be_hidden(tmp_path):
    write_images(tmp_path / ".cache", *names("cat"), *names("dog"))
    assert load(tmp_path / ".cache").class_names == ("cat", "dog")


READ = (".tif", ".TIFF", ".webp", ".bmp", ".gif", ".jpg", ".JPEG", ".jfif", ".ppm", ".tga", ".jp2", ".pcx", ".ico", ".avif",
        ".qoi", ".apng", ".mpo", ".dds", ".sgi")


def test_every_format_of_pillow_that_holds_photographs_is_read(tree):
    write_images(tree, *names("all", 2), *(f"cat/{number}{suffix}" for number, suffix in enumerate(READ)))
    data = load(tree)
    assert data.class_names == ("all", "cat")
    assert sum(len(part) for part in (data.database, data.validation, data.test)) == 2 + len(READ)
    assert data.notes == ()


def test_films_documents_and_drawings_are_no_images(tree):
    assert suffixes().isdisjoint({".pdf", ".mpg", ".mpeg", ".eps", ".ps", ".wmf", ".emf", ".h5", ".hdf", ".fits", ".grib",
                                  ".flc"})
    write_images(tree, *names("cat", 6), *names("dog"))
    for name in ("cat/a.pdf", "cat/b.cr2", "dog/c.cr2", "dog/d.CR2", "dog/README", "fish/e.cr2"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_bytes(b"content")
    data = load(tree)
    assert data.class_names == ("cat", "dog")
    assert data.notes == (
        "Passed over in the folder: of no image format that is read: 6 (4 .cr2: cat/b.cr2, 1 .pdf: cat/a.pdf, 1 without "
        "suffix: dog/README).", "Sub-folders without images that are read, which count as nothing: fish.")


def test_a_folder_without_images_says_what_lies_there_instead(tree):
    tree.mkdir()
    for number in range(9):
        (tree / f"{number}.cr2").write_bytes(b"content")
    assert "0 images; at least 4 are needed" in refused(tree) and "9 .cr2: 0.cr2" in refused(tree)


def test_a_linked_folder_is_followed_but_not_round_in_circles(tree, tmp_path):
    write_images(tree, *names("cat"), *names("dog"))
    write_images(tmp_path / "elsewhere", *names("more", 2), "0.png", start=10)
    (tree / "cat" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tree / "cat" / "again").symlink_to(tmp_path / "elsewhere" / "more", target_is_directory=True)
    (tmp_path / "elsewhere" / "up").symlink_to(tree / "cat", target_is_directory=True)
    (tree / "dog" / "round").symlink_to(tree, target_is_directory=True)
    (tree / "dog" / "self").symlink_to(tree / "dog" / "self")
    (tree / "bird").symlink_to(tmp_path / "elsewhere" / "more", target_is_directory=True)
    (tree / "dog" / "linked.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    walk = Walk(tree)
    assert [len(walk.images_below(name)) for name in ("cat", "dog", "bird")] == [3 + 3, 3 + 1, 2]
    data = load(tree)
    assert data.class_names == ("bird", "cat", "dog")
    note, alike = data.notes
    assert alike.startswith("Images of the same pixels under several names: 6 (bird/0.png = cat/again/0.png, ")
    assert "links to folders that were read already or hold the link: 3 (" in note
    assert "of no image format that is read: 1 (1 without suffix: dog/self)" in note


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tree):
    write_images(tree, *names("cat"), *names("dog"))
    (tree / "cat" / "gone.png").symlink_to(tree / "nowhere.png")
    with pytest.raises(InputError, match=r"cat/gone\.png: no such file"):
        load(tree)
    assert any("cat/gone.png: no such file" in note for note in load(tree, max_bad_images=1).notes)


def test_what_is_no_file_is_passed_over(tree):
    """Reading a pipe that nobody writes to would wait for ever."""
    write_images(tree, *names("cat"), *names("dog"))
    os.mkfifo(tree / "cat" / "pipe.png")
    assert load(tree).notes == ("Passed over in the folder: neither file nor folder: 1 (cat/pipe.png).",)


def test_a_folder_that_may_not_be_read_is_passed_over_and_said(tree, monkeypatch):
    write_images(tree, *names("cat"), *names("dog"), "cat/closed/9.png")
    scandir = os.scandir

    def closed(path):
        if pathlib.PurePath(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert load(tree).notes == ("Passed over in the folder: folders that may not be read: 1 (cat/closed).",)


def test_colours_of_the_images_come_with_their_classes(tree):
    for number in range(12):
        place = tree / ("red", "green", "blue")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        picture(number, 30, 20).save(place / f"{number}.tif")
    data = load(tree)
    for part in (data.database, data.test):
        channel = np.asarray(part.images).mean(axis=(1, 2)).argmax(axis=1)
        assert [("red", "green", "blue")[each] for each in channel] == [data.class_names[row.argmax()] for row in part.labels]


def test_an_image_of_any_size_in_the_folder_is_a_square(tree):
    write_images(tree, *names("cat", 6))
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tree / "cat" / "dot.png")
    assert load(tree).database.images.shape[1:] == (256, 256, 3)


# Links to what holds them, and the same pixels under several names


@pytest.mark.parametrize("target", [".", "..", "cat"])
def test_a_link_to_what_is_a_class_already_or_holds_the_classes_is_no_class(tree, target):
    write_images(tree, *names("cat"), *names("dog", 2))
    (tree / "another").symlink_to(tree / target, target_is_directory=True)
    (tree / "dog" / "up").symlink_to(tree.parent, target_is_directory=True)
    data = load(tree)
    assert data.class_names == ("cat", "dog") and len(data.database) + len(data.validation) + len(data.test) == 5
    assert data.notes == ("Passed over in the folder: links to folders that were read already or hold the link: 2 (another, "
                          "dog/up).",)


def test_of_two_links_to_one_folder_the_first_is_the_class(tree, tmp_path):
    write_images(tmp_path / "elsewhere", *names(".", 3))
    write_images(tree, *names("cat"), start=10)
    for name in ("bird", "animal"):
        (tree / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert load(tree).class_names == ("animal", "cat")


def test_links_that_lead_round_through_each_other_end(tree):
    write_images(tree, *names("cat"), *names("dog/one"), "dog/two/7.png")
    (tree / "dog" / "one" / "there").symlink_to(tree / "dog" / "two", target_is_directory=True)
    (tree / "dog" / "two" / "back").symlink_to(tree / "dog" / "one", target_is_directory=True)
    assert len(Walk(tree).images_below("dog")) == 4


def test_a_part_that_is_a_link_to_another_is_that_part(tree):
    write_images(tree, *names("train/cat"), *names("train/dog"), *names("test/cat", 2))
    (tree / "database").symlink_to(tree / "train", target_is_directory=True)
    data = load(tree)
    assert data.split == "sub-folders train, test; test halved into validation and test queries" and len(data.database) == 6


def test_the_same_pixels_under_several_names_are_counted_and_told(tree):
    write_images(tree, *names("cat", 5), *names("dog", 5))
    assert load(tree).notes == ()
    Image.open(tree / "cat" / "0.png").save(tree / "cat" / "copy.bmp")
    (tree / "dog" / "linked.png").symlink_to(tree / "cat" / "1.png")
    note, = load(tree).notes
    assert note.startswith("Images of the same pixels under several names: 4 (cat/0.png = cat/copy.bmp, cat/1.png = "
                           "dog/linked.png); 2 of")
    assert "2 of them have labels that differ" in note


def test_queries_whose_pixels_are_in_the_database_are_counted(tree):
    write_images(tree, *names("train/cat"), *names("train/dog"), *names("val/cat", 2), *names("test/dog", 2))
    assert load(tree).notes == ("val has no images of: dog.", "test has no images of: cat.")
    (tree / "test" / "dog" / "0.png").write_bytes((tree / "train" / "dog" / "1.png").read_bytes())
    assert load(tree).notes[-1] == ("Images of the same pixels under several names: 2 (test/dog/0.png = train/dog/1.png); 1 "
                                   "are queries that so find themselves in the database.")
