"""The commands of an index: python -m jax_brcd.index fills one, python -m jax_brcd.search asks it."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import types
import weakref

import numpy as np
import pytest
from encoders import noise, random_encoder
from image_trees import write_images
from PIL import Image
from toy_runs import answer, refusal

from jax_brcd import index, serve
from jax_brcd.retrieval import PackedCodes
from jax_brcd.search import __main__ as search
from jax_brcd.search import indexing, open_store, pictures, searching
from jax_brcd.search.places import shown
from jax_brcd.search.searching import duplicates, nearest

ENCODER = random_encoder()


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder with an encoder, nine images and a bad one, and an index of them at photos.brcd."""
    place = tmp_path_factory.mktemp("search")
    ENCODER.save(place / "encoder")
    write_images(place / "photos", *[f"{number}.png" for number in range(8)])
    Image.fromarray(noise(60, 80)).save(place / "photos/noise.png")
    (place / "photos/bad.jpg").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        index.main(["add", "photos", "--encoder", "encoder", "--decode-workers", "0"])
    return place


@pytest.fixture
def here(filled, monkeypatch):
    """That folder as the working directory, to be left as it is."""
    monkeypatch.chdir(filled)


def test_codes_that_are_damaged_are_told_of_by_verify(filled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(filled)
    shutil.copy("photos.brcd", tmp_path)
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(open_store("photos.brcd")) as store:
        (item,) = (item for item in store.items() if item.attributes["path"].endswith("photos/3.png"))
        packed = item.packed.copy()
        packed[0] ^= 0x80
        store.add([item.id], PackedCodes(packed[None], ENCODER.bits, ENCODER.space), [item.attributes])
    told = refusal(index.main, ["verify", "--sample", "9"], capsys)
    assert told == ("error: --index photos.brcd: 1 of 9 stored codes differ from fresh ones, that of "
                    f"{filled}/photos/3.png for one; remove its folder from the index and add it again")


def test_an_index_is_filled_looked_at_verified_and_emptied(filled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos, encoder = filled / "photos", filled / "encoder"
    assert "`encoder`" not in refusal(index.main, ["add", photos], capsys)
    said = answer(index.main, ["add", photos, "--encoder", encoder, "--decode-workers", "1"], capsys)
    assert said == (f"Cannot be read: {photos}/bad.jpg: no JPEG, PNG, WebP, TIFF or other image that Pillow reads\n"
                    "10 images: 9 encoded, 0 unchanged, 1 that cannot be read. The index holds 9.\n")
    assert "9 unchanged, 1 that cannot be read. The index holds 9." in answer(index.main, ["add", photos], capsys)
    said = answer(index.main, ["status"], capsys).splitlines()
    assert said[0] == "Index: photos.brcd" and re.fullmatch(r"9 images in 9 files of [\d.]+ kB; 0 missing", said[1])
    assert said[2:5] == ["Codes: 20 bits, space teacher-1; every encoder of this space may search them",
                         f"Filled by: student resnet8, {encoder}", f"Folder: {photos}, 9 files"]
    assert said[6].startswith(f"  {photos}/bad.jpg: ")
    assert answer(index.main, ["verify", "--sample", "4"], capsys) == "4 of 4 stored codes equal fresh ones; 0 not checked.\n"
    assert answer(index.main, ["remove", photos], capsys) == "9 images removed. The index holds 0.\n"
    assert answer(index.main, ["remove", "--missing"], capsys) == "0 images removed. The index holds 0.\n"


def test_wrong_words_are_refused_in_one_line(here, capsys):
    for command, words, problem in (
            (index.main, ["add", "nowhere"], "nowhere: is not there; check the path"),
            (index.main, ["add", "photos", "--shard", "3/2"], "--shard 3/2: is no part of a whole"),
            (index.main, ["add", "photos", "--decode-workers", "x"], "--decode-workers"),
            (index.main, ["add", "photos", "--encoder", "photos"], "--encoder photos: no encoder's folder"),
            (index.main, ["status", "--index", "nothing.brcd"], "--index nothing.brcd: there is no "),
            (index.main, ["remove"], "name folders, or give --missing"),
            (index.main, ["verify", "--sample", "0"], "--sample 0: too small"),
            (index.main, [], "required"),
            (search.main, [], "name image files, or give --duplicates"),
            (search.main, ["photos/bad.jpg"], "no JPEG, PNG, WebP"),
            (search.main, ["photos/0.png", "-k", "0"], "--k 0: too small"),
            (search.main, ["photos/0.png", "--html", "photos"], "--html photos: is a folder"),
            (search.main, ["photos/0.png", "--duplicates", "2"], "--duplicates 2: compares the images of the index"),
            (search.main, ["--duplicates", "2", "--soft"], "leave out --soft"),
            (search.main, ["--duplicates", "2", "-k", "10"], "leave out --k"),
            (search.main, ["--duplicates", "2", "--encoder", "encoder"], "leave out --encoder"),
            (search.main, ["photos/0.png", "--json", "--pictures"], "--pictures: draws in the terminal"),
            (index.main, ["add", "photos", "--encodr", "x"], "unknown option '--encodr': did you mean '--encoder'?"),
            (index.main, ["remove", "photos", "--sample", "1"], "unknown option '--sample'"),
            (search.main, ["--duplicates", "-1"], "--duplicates -1: too small"),
            (search.main, ["photos/0.png", "--json", "--html", "x"], "not allowed")):
        assert problem in refusal(command, words, capsys), words


def test_an_addition_that_is_refused_makes_no_index(filled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    add = ["add", "--encoder", filled / "encoder"]
    for words, problem in ((["nowhere"], "nowhere: is not there; check the path"), (["file"], "file: is a file; name the folder"),
                           ([filled / "photos", "--ray", "auto"], "lies on this machine alone")):
        assert problem in refusal(index.main, [*add, *words], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_index_is_not_made_beside_the_log_of_one_that_was_deleted(filled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    add = ["add", filled / "photos", "--encoder", filled / "encoder", "--decode-workers", "0"]
    killed = ("import os, signal, types; from jax_brcd.search import open_store;"
              "kind = types.SimpleNamespace(bits=20, space=None); store = open_store('photos.brcd', create_for=kind);"
              "os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -signal.SIGKILL
    os.unlink("photos.brcd")
    assert refusal(index.main, add, capsys) == (
        "error: photos.brcd-wal: is left of an index that was deleted; end the processes that use it, then delete it and "
        "photos.brcd-shm")
    os.unlink("photos.brcd-wal")
    os.unlink("photos.brcd-shm")
    assert "The index holds 9." in answer(index.main, add, capsys)


def test_no_password_of_an_index_is_shown(capsys):
    for command, words in ((index.main, ["status"]), (index.main, ["add", "."]), (search.main, ["a.png"]),
                           (serve.main, [])):
        told = refusal(command, [*words, "--index", "postgresql://me:secret@127.0.0.1:1/photos"], capsys)
        assert "secret" not in told


def test_the_nearest_images_are_printed_with_rank_distance_and_path(here, capsys):
    said = answer(search.main, ["photos/noise.png", "photos/3.png", "-k", "3"], capsys).splitlines()
    assert said[0] == "photos/noise.png" and said[4] == "photos/3.png" and len(said) == 8
    rank, distance, path = said[1].split()
    assert (rank, distance, path) == ("1", "0", str(pathlib.Path("photos/noise.png").resolve()))
    distances = [int(line.split()[1]) for line in said[1:4]]
    assert distances == sorted(distances)


def test_json_has_what_is_printed_and_soft_distances(here, capsys):
    ask = ["photos/noise.png", "--json"]
    (hard,), (soft,) = (json.loads(answer(search.main, [*ask, *more], capsys)) for more in ((), ("--soft",)))
    assert hard["query"] == "photos/noise.png" and len(hard["pictures"]) == 9
    logits = ENCODER.logits("photos/noise.png")[0].astype(float)
    for found in soft["pictures"]:
        differ = ENCODER.encode(found["path"]).unpack()[0] != np.where(logits > 0, 1, -1)
        assert found["distance"] == pytest.approx(np.abs(logits[differ]).sum(), abs=1e-5)
    bits = {found["path"]: found["distance"] for found in hard["pictures"]}
    assert [bits[found["path"]] for found in soft["pictures"]][0] == 0
    assert [found["rank"] for found in soft["pictures"]] == list(range(1, 10))


def test_a_page_holds_its_pictures_and_asks_nobody(here, tmp_path, capsys):
    said = answer(search.main, ["photos/noise.png", "-k", "4", "--html", tmp_path / "found.html"], capsys)
    page = (tmp_path / "found.html").read_text()
    assert said == f"Page: {tmp_path}/found.html\n" and page.count("data:image/jpeg;base64,") == 5
    assert f"{pathlib.Path('photos/noise.png').resolve()}</a>" in page and "1. distance 0" in page
    assert re.findall(r'(?:src|href)="(?!data:|file:)', page) == [] and "http:" not in page and "https:" not in page


def test_names_with_backticks_are_printed_as_they_are(filled, tmp_path, monkeypatch, capsys):
    """Elsewhere these name settings, which the commands spell as options."""
    monkeypatch.chdir(tmp_path)
    best = tmp_path / "photos/the `best` one.png"
    write_images(tmp_path / "photos", best.name, "other.png")
    (tmp_path / "photos/`bad`.png").touch()
    said = answer(index.main, ["add", "photos", "--encoder", filled / "encoder", "--decode-workers", "0"], capsys)
    assert f"Cannot be read: {tmp_path}/photos/`bad`.png: " in said
    assert f"  {tmp_path}/photos/`bad`.png: " in answer(index.main, ["status"], capsys)
    title, nearest, _ = answer(search.main, [best, "-k", "2"], capsys).splitlines()
    assert title == str(best) and nearest == f"   1       0  {best}"
    (found,) = json.loads(answer(search.main, [best, "-k", "1", "--json"], capsys))
    assert found["query"] == str(best) and found["pictures"][0]["path"] == str(best)
    assert answer(search.main, [best, "--html", "`all`.html"], capsys) == "Page: `all`.html\n"
    best.write_text("no image any more")
    assert f"Not checked: {best}: " in answer(index.main, ["verify"], capsys)


@pytest.mark.parametrize("soft", [False, True])
def test_queries_leave_memory_once_they_are_encoded(here, monkeypatch, soft):
    names, alive, most, read = sorted(map(str, pathlib.Path("photos").glob("*.png"))), set(), [], searching.read_image

    def counted(path, **told):
        image = read(path, **told)
        alive.add(path)
        weakref.finalize(image, alive.discard, path)
        most.append(len(alive))
        return image

    with contextlib.closing(open_store("photos.brcd")) as store:
        whole = searching.search_images(store, ENCODER, names, 3, soft=soft)
        monkeypatch.setattr(searching, "read_image", counted)
        monkeypatch.setattr(indexing, "PIXEL_BYTES", 1)
        found = searching.search_images(store, ENCODER, names, 3, soft=soft)
    assert len(most) == 9 and max(most) <= 2 and not alive
    assert [answer.title for answer in found] == names and [a.thumbnail for a in found] == [a.thumbnail for a in whole]
    for one, other in zip(found, whole, strict=True):
        assert [each.id for each in one.pictures] == [each.id for each in other.pictures]
        assert [each.distance for each in one.pictures] == pytest.approx([each.distance for each in other.pictures], abs=1e-4)


def test_queries_are_seen_upright_as_the_index_sees_its_files(here, tmp_path, capsys):
    turned = Image.Exif()
    turned[0x112] = 6
    Image.open("photos/noise.png").rotate(90, expand=True).save(tmp_path / "turned.png", exif=turned)
    (found,) = json.loads(answer(search.main, [tmp_path / "turned.png", "--json", "-k", "1"], capsys))
    assert found["pictures"][0]["distance"] == 0 and found["pictures"][0]["path"].endswith("/noise.png")


def test_another_encoder_of_the_space_may_ask_and_one_of_another_may_not(here, tmp_path, capsys):
    random_encoder(seed=5).save(tmp_path / "student")
    dataclasses.replace(ENCODER, space="teacher-2").save(tmp_path / "stranger")
    random_encoder(bits=24).save(tmp_path / "longer")
    assert answer(search.main, ["photos/0.png", "--encoder", tmp_path / "student", "-k", "1"], capsys).count("\n") == 2
    for name, problem in (("stranger", "their bits mean different things"), ("longer", "gives codes of 24 bits")):
        for more in ([], ["--soft"]):
            told = refusal(search.main, ["photos/0.png", "--encoder", tmp_path / name, *more], capsys)
            assert told.startswith(f"error: --encoder {tmp_path / name}: ") and problem in told


def store_of(**numbers):
    """A store of 8-bit codes by their numbers; names that end in _gone are missing."""
    store = open_store("memory:", create_for=types.SimpleNamespace(bits=8, space=None))
    store.add(list(numbers), PackedCodes(np.array([*numbers.values()], np.uint8).reshape(-1, 1), 8),
              [{"missing": id.endswith("_gone")} for id in numbers])
    return store


def test_duplicates_are_the_groups_that_chains_of_near_codes_make():
    store = store_of(a=0b0, b=0b11, c=0b1111, d=0b11110000, e=0b11110000, f=0b10101010, g_gone=0b0)
    ids = [[picture.id for picture in found.pictures] for found in duplicates(store, 2)]
    assert ids == [["a", "b", "c"], ["d", "e"]]
    assert [picture.distance for picture in duplicates(store, 2)[0].pictures] == [0, 2, 4]
    assert [[picture.id for picture in found.pictures] for found in duplicates(store, 0)] == [["d", "e"]]
    assert duplicates(store_of(), 3) == [] and duplicates(store_of(a=1), 3) == []


def test_duplicates_that_another_process_deletes_meanwhile_are_of_no_group():
    store = store_of(a=0b0, b=0b0, c=0b1111, d=0b1111, e=0b11110000, f=0b11110000, g=0b11110000)
    found = duplicates(store, 0, progress=lambda *step: store.delete(["a", "b", "c", "e"]))
    assert [(group.title, [picture.id for picture in group.pictures]) for group in found] == [("Group 1 of 1", ["f", "g"])]


@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("many", [10, searching.MANY], ids=["tables", "scan"])
def test_duplicates_of_many_equal_codes_are_those_of_all_pairs_and_each_code_is_asked_for_once(radius, many, monkeypatch):
    draw = np.random.default_rng(radius)
    kinds = draw.integers(0, 2**16, 60, dtype=np.uint16)
    kinds[30:] = kinds[:30] ^ (np.uint16(1) << draw.integers(0, 16, 30, dtype=np.uint16))
    packed = np.zeros((400, 3), np.uint8)  # of 20 bits, the last 4 of which are 0 here
    packed[:, :2] = draw.choice(kinds, 400).astype(">u2")[:, None].view(np.uint8)
    gone = draw.random(400) < 0.1
    ids = [f"{number:03}" for number in draw.permutation(400)]
    store = open_store("memory:", create_for=types.SimpleNamespace(bits=20, space=None))
    store.add(ids, PackedCodes(packed, 20), [{"missing": bool(each)} for each in gone])
    asked, searched = [], searching.HammingIndex.search_radius
    monkeypatch.setattr(searching, "MANY", many)
    monkeypatch.setattr(searching, "TOGETHER", 16)
    monkeypatch.setattr(searching.HammingIndex, "search_radius", lambda index, codes, radius: (
        asked.extend(map(bytes, codes.packed)), searched(index, codes, radius))[1])
    monkeypatch.setattr(store, "search_radius", lambda *_: pytest.fail("its hits hold the attributes of each pair"))
    steps = []
    found = duplicates(store, radius, progress=lambda *step: steps.append(step))
    here = {id: code for id, code, missing in zip(ids, packed, gone) if not missing}
    assert sorted(asked) == sorted({bytes(code) for code in here.values()}) and 30 < len(asked) <= 60 < len(here)
    assert steps[-1] == ("compare codes", len(asked), len(asked))
    expected, left = [], sorted(here)
    while left:
        group, new = set(), {left[0]}
        while new:
            group |= new
            new = {id for id in left if id not in group and any(
                np.bitwise_count(here[id] ^ here[other]).sum() <= radius for other in new)}
        left = [id for id in left if id not in group]
        away = {id: int(np.bitwise_count(here[id] ^ here[min(group)]).sum()) for id in group}
        if len(group) > 1:
            expected.append(sorted((away[id], id) for id in group))
    expected.sort(key=lambda group: (-len(group), group[0]))
    assert [[(each.distance, each.id) for each in answer.pictures] for answer in found] == expected
    assert [answer.title for answer in found] == [f"Group {place + 1} of {len(found)}" for place in range(len(found))]
    assert len(expected) > 1 and len(expected[0]) > 4


def test_equal_files_are_duplicates_and_the_command_lists_them(filled, tmp_path, monkeypatch, capsys):
    shutil.copytree(filled, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    shutil.copy("photos/noise.png", "photos/again.png")
    assert "10 moved, renamed or equal to another" in answer(index.main, ["add", "photos", "--decode-workers", "0"], capsys)
    groups = json.loads(answer(search.main, ["--duplicates", "0", "--json"], capsys))
    names = [sorted(map(os.path.basename, (picture["path"], *picture["others"])))
             for group in groups for picture in group["pictures"]]
    assert ["again.png", "noise.png", "noise.png"] in names
    assert answer(search.main, ["--duplicates", "0"], capsys).count("  same  ") == 10


def test_images_whose_files_have_vanished_are_found_only_where_they_are_wanted():
    store = store_of(**{f"n{number}_gone": number for number in range(1, 32)}, far=0b11111111, near=0b0)
    query = PackedCodes(np.zeros((1, 1), np.uint8), 8)
    assert [hit.id for hit in nearest(store, query, 2)[0]] == ["near", "far"]
    assert [hit.id for hit in nearest(store, query, 5)[0]] == ["near", "far"]
    assert len(nearest(store, query, 5, missing=True)[0]) == 5


def test_names_that_would_move_the_cursor_are_shown_as_text():
    assert shown("a\x1b[2J\n\udcffé图.jpg") == "a\\x1b[2J\\n\\udcffé图.jpg"


def test_pictures_are_drawn_in_a_terminal_and_nowhere_else(here, monkeypatch, capsys):
    pytest.importorskip("textual_image")
    assert pictures.drawer(None) is None and pictures.drawer(False) is None, "pytest's output is no terminal"
    plain = answer(search.main, ["photos/noise.png", "-k", "1"], capsys)
    drawn = answer(search.main, ["photos/noise.png", "-k", "1", "--pictures"], capsys)
    assert len(drawn.splitlines()) >= len(plain.splitlines()) + 2 * pictures.ROWS - 2
    assert [line for line in drawn.splitlines() if "noise.png" in line] == plain.splitlines()
    monkeypatch.setitem(sys.modules, "textual_image.renderable", None)
    assert "--pictures" in refusal(search.main, ["photos/noise.png", "--pictures"], capsys)
