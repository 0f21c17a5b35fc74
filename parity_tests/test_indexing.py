"""An index of folders: what is new is encoded, what is known is not read again, what has gone is marked, whatever is wrong."""

import base64
import dataclasses
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from encoders import noise, random_encoder, same
from image_trees import write_images
from PIL import Image

from jax_brcd.encoder import HashEncoder
from jax_brcd.retrieval import PackedCodes
from jax_brcd.runtime.errors import InputError
from jax_brcd.runtime.workers import Lost, Workers
from jax_brcd.search import cluster, indexing, open_store
from jax_brcd.search.encoders import fillers, noted_encoder
from jax_brcd.search.indexing import add_folders
from jax_brcd.search.places import Content, Place, contents
from jax_brcd.search.scanning import Shard
from jax_brcd.search.stores.spelling import as_text
from jax_brcd.search.upkeep import bad_files, remove_folders, remove_missing, status, verify

ENCODER = random_encoder()
# 64 x 48 pixels, the left half blue and the right one red; Pillow's package that reads HEIC does not write it
HEIC = base64.b85decode(
    "c-muNV30{GsVvAy%}izhg51nBLl8SRGck>Ufw49>wIq=N0u(b+a*CjAhJwuG5(YG&l$nzcHpIn&fe{FSfN>#&1_Cu8R?f`KO9S&jqM|@fDif5KQI>27V)7M"
    "amgK^f{LL&VDge@VGYgXQfpi&AnKL6ZNN56Bk=zG{KYxGxU|`^9P5|nVaA4$N{Qn=MfElEM8HD6^F*zgxCAFLw8PQ}GC^WK8d-Y`5&K(>X1`0qSW)Q)km;_YL"
    "=E8We_&_Jn65-_hoT9wsoC=^QF9TZxP)H=RxF8kkGY2TvNX|(tfU-f3H-OS0!1VwB{|_J<hy@BVD>6ZX%p4pXKuRLBAQu+Mz;I)2WMXD*0kZXSQxZXetfaxXU"
    "b5l6=hFTEpNhHEtf~8_!XN);b4_6Ruf_bfZ;d8g_y7QsCt95")


@pytest.fixture
def store():
    return open_store("memory:", create_for=ENCODER)


@pytest.fixture
def photos(tmp_path):
    """Nine images in three folders."""
    folder = tmp_path / "photos"
    write_images(folder, *[f"{number % 3}/{number}.png" for number in range(9)])
    return folder


def add(store, *folders, encoder=ENCODER, place="/encoders/one", processes=0, **told):
    return add_folders(store, folders, encoder, place=place, processes=processes, **told)


def paths(store):
    """Names of the files of the items that are not missing, by ids."""
    return {id: [pathlib.Path(place.path).name for place in content.places] for id, content in contents(store)
            if not content.missing}


def names(store):
    return sorted(name for each in paths(store).values() for name in each)


def missing(store):
    gone = [place.path for _, content in contents(store) if content.missing for place in content.places]
    return sorted(pathlib.Path(path).name for path in gone)


@pytest.fixture
def nothing_is_read(monkeypatch):
    """Fails a test in which a picture is decoded from here on."""

    def forbid():
        def forbidden(path):
            raise AssertionError(f"{path} was read again")

        monkeypatch.setattr(indexing, "read_photo", forbidden)

    return forbid


def test_every_image_below_a_folder_is_kept_with_its_code_its_place_and_a_small_picture(store, photos):
    added = add(store, photos)
    assert (added.encoded, added.unchanged, added.bad) == (9, 0, {}) and len(store) == 9
    for item in store.items():
        about = item.attributes
        same(PackedCodes(item.packed[None], store.bits, store.space), ENCODER.encode(about["path"]))
        file = pathlib.Path(about["path"])
        assert file.is_relative_to(photos) and about["folder"] == str(file.parent) and about["root"] == str(photos)
        assert (about["size"], about["mtime"], about["missing"]) == (file.stat().st_size, file.stat().st_mtime, False)
        assert item.id == about["digest"][:32]
        with Image.open(io.BytesIO(store.thumbnail(item.id))) as small, Image.open(file) as whole:
            assert small.format == "JPEG" and small.size == whole.size
    assert {pathlib.Path(hit.attributes["path"]).name for hit in store.search(
        ENCODER.encode(photos / "0/0.png"), 9, where={"folder": str(photos / "0")})[0]} == {"0.png", "3.png", "6.png"}


def test_files_that_did_not_change_are_not_read_again(store, photos, nothing_is_read, monkeypatch):
    add(store, photos)
    nothing_is_read()
    monkeypatch.setattr(indexing, "know", None)
    assert add(store, photos)[:4] == (9, 0, 0, 0)


def test_files_that_moved_are_known_by_their_content_and_not_encoded_again(store, photos, nothing_is_read):
    add(store, photos)
    before = {id: (item.packed.tobytes(), store.thumbnail(id)) for id in paths(store) for item in store.get([id])}
    nothing_is_read()
    (photos / "0/0.png").rename(photos / "1/renamed.png")
    (photos / "2").rename(photos / "elsewhere")
    shutil.copy(photos / "0/3.png", photos / "0/copy.png")
    added = add(store, photos)
    assert (added.encoded, added.recognised, added.vanished) == (0, 5, 0)
    assert names(store) == sorted(["renamed.png", "copy.png", *(f"{number}.png" for number in range(1, 9))])
    assert ["3.png", "copy.png"] in paths(store).values()
    assert {id: (item.packed.tobytes(), store.thumbnail(id)) for id in paths(store) for item in store.get([id])} == before


def test_what_has_vanished_is_marked_and_what_is_back_is_not_read_again(store, photos, tmp_path, nothing_is_read):
    add(store, photos)
    (photos / "0/0.png").rename(tmp_path / "kept.png")
    assert add(store, photos).vanished == 1 and missing(store) == ["0.png"] and len(store) == 9
    assert add(store, photos)[:4] == (8, 0, 0, 0), "it is marked once"
    nothing_is_read()
    shutil.copy2(tmp_path / "kept.png", photos / "0/0.png")  # with its time
    assert add(store, photos).unchanged == 9 and missing(store) == []
    (photos / "0/0.png").unlink()
    add(store, photos)
    shutil.copy(tmp_path / "kept.png", photos / "new name.png")
    assert add(store, photos).recognised == 1 and missing(store) == [] and "new name.png" in names(store)


def test_one_of_two_equal_files_that_vanishes_leaves_the_other(store, photos):
    shutil.copy(photos / "0/0.png", photos / "0/copy.png")
    assert add(store, photos).encoded == 9 and len(store) == 9
    (photos / "0/0.png").unlink()
    assert add(store, photos).vanished == 0
    assert missing(store) == [] and "copy.png" in names(store) and "0.png" not in names(store)


def test_of_very_many_equal_files_as_many_are_noted_as_every_store_keeps(store, photos):
    for number in range(600):
        shutil.copy(photos / "0/0.png", photos / f"copy {number:04}.png")
    assert add(store, photos)[:3] == (0, 9, 600) and len(store) == 9
    (many,) = (item.attributes for item in store.items() if "further" in item.attributes)
    noted = len(json.loads(many["further"])) + 1
    assert 100 < noted < 600 and len(as_text(many)) < 65_535
    again = add(store, photos)
    assert (again.unchanged, again.encoded, again.recognised, again.vanished) == (8 + noted, 0, 601 - noted, 0)
    assert missing(store) == [] and len(store) == 9
    for number in range(noted):  # all that are noted but for the first
        (photos / f"copy {number:04}.png").rename(photos / f"z {number:04}.png")
    assert add(store, photos).vanished == 0 and missing(store) == []
    other = photos.parent / "z other"
    other.mkdir()
    shutil.copy(photos / "0/0.png", other / "0.png")
    add(store, photos, other)
    assert remove_folders(store, [photos]) == 8 and names(store) == ["0.png"], "which lies elsewhere too"


def test_the_code_of_a_file_that_was_replaced_goes(store, photos):
    add(store, photos)
    Image.fromarray(noise(20, 30)).save(photos / "0/0.png")
    (photos / "0/3.png").rename(photos / "0/6.png")  # and the place of another is taken
    assert add(store, photos)[1:4] == (1, 1, 0)
    assert len(store) == 8 and missing(store) == [] and names(store).count("0.png") == 1
    hit = store.search(ENCODER.encode(noise(20, 30)), 1)[0][0]
    assert hit.distance == 0 and hit.attributes["path"] == str(photos / "0/0.png")


def test_a_folder_that_is_not_there_marks_nothing_and_is_told_of(store, photos, tmp_path):
    """As a disk that is not connected, whose mount point may be an empty folder."""
    other = tmp_path / "other"
    write_images(other, "a.png", start=20)
    add(store, photos, other)
    photos.rename(tmp_path / "away")
    for make in (lambda: None, photos.mkdir):
        make()
        said = []
        assert add(store, photos, other, say=said.append).unchanged == 1
        assert len(said) == 1 and f"{photos} " in said[0] and "its 9 images stay as they are" in said[0]
        assert missing(store) == []
    assert not status(store).roots[str(other)].files == 0 and status(store).roots[str(photos)].files == 9
    with pytest.raises(InputError, match="nowhere: is not there; check the path"):
        add(store, tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"a\.png: is a file; name the folder"):
        add(store, other / "a.png")


def test_what_is_passed_over_or_closed_has_not_vanished(store, photos, monkeypatch):
    """A folder that was added by its own name though its name hides it, and one that cannot be read for once."""
    write_images(photos / ".hidden", "a.png", start=20)
    add(store, photos / ".hidden")
    add(store, photos)
    scandir = os.scandir

    def failing(path):
        if pathlib.Path(path).name == "1":
            raise OSError(5, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    said = []
    added = add(store, photos, say=said.append)
    assert (added.unchanged, added.vanished) == (6, 0) and len(names(store)) == 10
    assert "hidden or of the system: 1 (.hidden)" in said[0] and "may not be read: 1 (1)" in said[0]


def test_originals_are_never_written_to(store, photos):
    def all_there_is():
        return {path: (path.stat().st_mtime_ns, path.stat().st_mode, path.is_file() and path.read_bytes())
                for path in (photos, *photos.rglob("*"))}

    before = all_there_is()
    (add(store, photos), verify(store, 9, encoder=ENCODER), remove_folders(store, [photos]))
    assert all_there_is() == before


def halves(left, right):
    """64 x 48 pixels of two colours."""
    image = Image.new("RGB", (64, 48), right)
    image.paste(left, (0, 0, 32, 48))
    return image


def odd_files(folder):
    """Files of many kinds, all of which show the same two halves."""
    blue, red = (40, 60, 209), (200, 40, 40)
    upright = halves(blue, red)
    turned = Image.Exif()
    turned[0x112] = 6  # is shown after a quarter turn to the right
    upright.rotate(90, expand=True).save(folder / "turned.png", exif=turned)
    upright.save(folder / "animated.png", save_all=True, append_images=[upright.rotate(180)])
    upright.quantize(16).save(folder / "palette.png")
    upright.convert("RGBA").save(folder / "alpha.webp", lossless=True)
    (folder / "two.heic").write_bytes(zlib.decompress(HEIC))
    upright.save(folder / "two.avif", quality=95)
    return upright


def test_photographs_of_all_kinds_are_read_upright(store, tmp_path):
    upright = odd_files(tmp_path)
    pytest.importorskip("pi_heif")
    said = []
    assert add(store, tmp_path, say=said.append).bad == {} and said == []
    near = {pathlib.Path(hit.attributes["path"]).name: hit for hit in store.search(ENCODER.encode(upright), 9)[0]}
    assert set(near) == {"turned.png", "animated.png", "palette.png", "alpha.webp", "two.heic", "two.avif"}
    for name, hit in near.items():
        assert hit.distance <= (2 if name in ("two.heic", "two.avif") else 0), name  # whose colours are not quite those
        with Image.open(io.BytesIO(store.thumbnail(hit.id))) as small:
            left, right = (np.array(small.resize((4, 3)).getpixel((place, 1)), int) for place in (0, 3))
        assert small.size == (64, 48) and left[2] > 150 > left[0] and right[0] > 150 > right[2], name


def test_gray_sixteen_bit_and_cmyk_images_are_read(store, tmp_path):
    gray = Image.fromarray(noise(40, 50)[..., 0])
    gray.save(tmp_path / "gray.jpg", quality=95)
    gray.save(tmp_path / "gray.png")
    Image.fromarray(np.asarray(gray).astype(np.uint16) << 8).save(tmp_path / "deep.png")
    Image.fromarray(noise(40, 50)).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert add(store, tmp_path).bad == {} and len(store) == 4
    hits = {pathlib.Path(hit.attributes["path"]).name: hit.distance for hit in store.search(
        ENCODER.encode(np.repeat(np.asarray(gray)[..., None], 3, axis=2)), 4)[0]}
    assert hits["gray.png"] == hits["deep.png"] == 0 and "cmyk.jpg" in hits


def test_bad_files_are_listed_with_their_reasons_and_stop_nothing(store, photos, monkeypatch):
    (photos / "text.jpg").write_text("no image")
    (photos / "empty.png").touch()
    (photos / "half.png").write_bytes((photos / "0/0.png").read_bytes()[:200])
    (photos / "gone.png").symlink_to("nowhere")
    Image.fromarray(noise(200, 200)).save(photos / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    said = []
    added = add(store, photos, progress=lambda *told: said.append(told))
    reasons = {pathlib.Path(path).name: reason for path, reason in added.bad.items()}
    assert added.encoded == 9 and set(reasons) == {"text.jpg", "empty.png", "half.png", "gone.png", "bomb.png"}
    assert reasons["bomb.png"] == "too large, of more than 20,000 pixels" and reasons["gone.png"] == "no such file"
    assert reasons["half.png"].startswith("truncated") and reasons["text.jpg"].startswith("no JPEG")
    assert bad_files(store) == added.bad and said[-1] == ("index images", 13, 13)
    monkeypatch.undo()
    (photos / "text.jpg").unlink()
    assert {pathlib.Path(path).name for path in add(store, photos).bad} == {"empty.png", "half.png", "gone.png"}
    assert len(bad_files(store)) == 3 and len(store) == 10


def test_names_of_any_bytes_are_kept(tmp_path):
    folder = tmp_path / os.fsdecode(b"d\xff")
    write_images(tmp_path, "0.png")
    folder.mkdir()
    (tmp_path / "0.png").rename(folder / os.fsdecode(b"\xfe\x1b.png"))
    (folder / os.fsdecode(b"bad\xfe.png")).touch()
    store = open_store(str(tmp_path / "photos.brcd"), create_for=ENCODER)
    assert add(store, folder).encoded == 1 and names(store) == ["\udcfe\x1b.png"]
    assert add(store, folder).unchanged == 1 and [os.path.basename(path) for path in bad_files(store)] == ["bad\udcfe.png"]
    for line in status(store).lines():
        line.encode()


def test_workers_end_what_takes_too_long_or_ends_them_and_do_the_rest():
    workers = Workers(1, 0.5)
    hung, crashed, failed, good = (workers.submit(time.sleep, 60), workers.submit(os._exit, 3), workers.submit(int, "no"),
                                   workers.submit(os.path.basename, "a/b"))
    assert good.result(60) == "b"
    with pytest.raises(Lost, match="gave no answer within 0.5 seconds"):
        hung.result(0)
    with pytest.raises(Lost, match="ended the process"):
        crashed.result(0)
    with pytest.raises(ValueError, match="invalid literal"):
        failed.result(0)
    begin = time.monotonic()
    workers.submit(time.sleep, 60)
    workers.close()
    assert time.monotonic() - begin < 30


def test_an_index_refuses_codes_of_another_space_and_notes_encoders_of_its_own(store, photos):
    add(store, photos / "0")
    other = random_encoder(seed=4)  # of the same space, as a teacher and its student
    assert add(store, photos / "1", encoder=other, place="hf:user/teacher").encoded == 3
    assert [filler.place for filler in fillers(store).values()] == ["/encoders/one", "hf:user/teacher"]
    assert noted_encoder(store) == "/encoders/one"
    add(store, photos / "1", place="/encoders/moved")
    assert noted_encoder(store) == "/encoders/moved" and len(fillers(store)) == 2
    lines = "\n".join(status(store).lines())
    assert "Filled by: student resnet8, /encoders/moved\nFilled also by: student resnet8, hf:user/teacher" in lines
    for stranger, problem in ((random_encoder(bits=24), "24 bits"),
                              (dataclasses.replace(ENCODER, space="teacher-2"), "their bits mean different things")):
        with pytest.raises(InputError, match=problem):
            add(store, photos, encoder=stranger)
    found = verify(store, 9, encoder=other)
    assert (found.equal, len(found.unchecked)) == (3, 3) and not found.different


def test_shards_share_the_files_and_leave_what_others_see_to(store, photos):
    shards = [Shard(number, 3) for number in (1, 2, 3)]
    counts = [add(store, photos, shard=shard).encoded for shard in shards]
    assert sum(counts) == len(store) == 9 and max(counts) < 9
    (photos / "0/0.png").unlink()
    (photos / "bad.png").touch()
    lost = [add(store, photos, shard=shard) for shard in shards]
    assert sorted(each.vanished for each in lost) == [0, 0, 1] and len(bad_files(store)) == 1
    assert sum(each.unchanged for each in lost) == 8
    for text in ("0/3", "4/3", "1", "a/b", "-1/3", ""):
        with pytest.raises(InputError, match="is no part of a whole"):
            Shard.parse(text)


def test_folders_are_removed_from_the_index_whether_they_are_there_or_not(store, photos):
    shutil.copy(photos / "0/0.png", photos / "1/copy.png")
    add(store, photos)
    shutil.rmtree(photos / "0")
    assert remove_folders(store, [photos / "0"]) == 2, "the third is in another folder too"
    assert names(store) == sorted(["copy.png", *(f"{number}.png" for number in (1, 2, 4, 5, 7, 8))])
    with pytest.raises(InputError, match="nothing of the index lies there"):
        remove_folders(store, [photos / "0"])
    (photos / "1/copy.png").unlink()
    add(store, photos)
    assert missing(store) == ["copy.png"] and remove_missing(store) == 1 and len(store) == 6
    remove_folders(store, [photos])
    assert len(store) == 0 and status(store).roots == {}


def test_verification_encodes_as_many_images_as_their_bytes_allow(store, photos, monkeypatch):
    add(store, photos)
    together, encode = [], HashEncoder.encode
    monkeypatch.setattr(HashEncoder, "encode", lambda self, images: (
        together.append([image.nbytes for image in images]), encode(self, images))[1])
    assert verify(store, 9, encoder=ENCODER) == (9, [], {}) and together.pop() == 9 * [12 * 10 * 3] and not together
    monkeypatch.setattr(indexing, "PIXEL_BYTES", 12 * 10 * 3)
    assert verify(store, 9, encoder=ENCODER) == (9, [], {}) and [len(each) for each in together] == [2, 2, 2, 2, 1]


def test_verification_finds_codes_that_are_not_those_of_their_files(store, photos):
    add(store, photos)
    assert verify(store, 5, encoder=ENCODER) == (5, [], {})
    item = next(store.items())
    store.add([item.id], PackedCodes(item.packed[None] ^ np.array([[128, 0, 0]], np.uint8), store.bits, store.space),
              [item.attributes])
    (photos / "0/0.png").write_bytes(b"another")
    found = verify(store, 100, encoder=ENCODER)
    wrong = item.attributes["path"]
    assert found.different == [path for path in [wrong] if path != str(photos / "0/0.png")]
    assert found.unchecked == {str(photos / "0/0.png"): "changed since it was added"}
    assert found.equal == 9 - len(found.different) - 1


def test_two_machines_that_find_a_content_at_once_keep_both_files(store, photos):
    """The second writes what it encoded, and not over what the first has found."""
    other = photos.parent / "other"
    shutil.copytree(photos, other)
    known = indexing.Catalogue([])
    add(store, photos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexing, "Catalogue", lambda known_now: known)  # read before the first had written
        add(store, other)
    assert len(store) == 9 and all(len(each) == 2 for each in paths(store).values())


FILLING = """
import pathlib, sys, jax_brcd
from jax_brcd.search import indexing
indexing.TOGETHER = 8
encoder = jax_brcd.load(sys.argv[1])
store = jax_brcd.open_store(sys.argv[2], create_for=encoder)
indexing.add_folders(store, [sys.argv[3]], encoder, place=sys.argv[1], processes=1,
                     progress=lambda what, done, total: print(done, flush=True))
"""


def test_a_killed_addition_loses_nothing_that_was_written_and_goes_on(tmp_path, started):
    folder = tmp_path / "photos"
    write_images(folder, *[f"{number}.png" for number in range(200)])
    place, url = str(ENCODER.save(tmp_path / "encoder")), str(tmp_path / "photos.brcd")
    filling = started([sys.executable, "-c", FILLING, place, url, str(folder)], stdout=subprocess.PIPE, text=True)
    done = 0
    while done < 24:
        line = filling.stdout.readline()
        assert line, "it ended by itself"
        done = int(line)
    filling.send_signal(signal.SIGKILL)
    filling.wait()
    store = open_store(url, create_for=ENCODER)
    there = len(store)
    assert done <= there < 200 and verify(store, 8, encoder=ENCODER).equal == 8
    added = add(store, folder)
    assert (added.unchanged, added.encoded) == (there, 200 - there) and len(store) == 200


def test_the_parts_of_a_pipeline_on_a_cluster_fill_an_index_as_one_machine_does(tmp_path, photos):
    """Ray hands them batches of columns; here they get one after the other."""
    place, url = str(ENCODER.save(tmp_path / "encoder")), str(tmp_path / "photos.brcd")
    store = open_store(url, create_for=ENCODER)
    (photos / "bad.png").touch()
    add(store, photos / "0")
    (photos / "0/0.png").rename(photos / "1/moved.png")

    def elsewhere(waiting, identity):
        encoder = cluster.Encoder(url, place, identity)
        for batch in (waiting[:5], waiting[5:]):
            reader = cluster.Reader(url)
            columns = encoder(reader({name: np.array(values) for name, values in zip(Place._fields, zip(*batch))}))
            reader._workers.close()
            for values in zip(*columns.values()):
                yield cluster.outcome_of(dict(zip(columns, values)))

    added = add(store, photos, elsewhere=elsewhere)
    assert (added.unchanged, added.encoded, added.recognised, added.vanished) == (2, 6, 1, 0)
    assert [pathlib.Path(path).name for path in bad_files(store)] == ["bad.png"]
    assert "moved.png" in names(store) and "0.png" not in names(store) and len(store) == 9
    assert verify(store, 9, encoder=ENCODER).equal == 9 and all(store.thumbnail(id) for id in paths(store))
    with pytest.raises(InputError, match="lies on this machine alone"):
        cluster.check_server(url)
    cluster.check_server("postgresql://server/photos")


def test_an_interrupted_addition_keeps_what_was_encoded(store, photos, monkeypatch):
    monkeypatch.setattr(indexing, "TOGETHER", 2)

    def interrupt(what, done, total):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(store, photos, progress=interrupt)
    assert len(store) == 4
    assert add(store, photos)[:2] == (4, 5)


def test_attributes_of_items_that_no_folder_gave_are_left_alone(store, photos):
    store.add(["mine"], ENCODER.encode(noise(20, 20)), [{"folder": "2024"}])
    assert Content.of({"folder": "2024"}) is None
    add(store, photos)
    assert len(store) == 10 and remove_folders(store, [photos]) == 9 and store.get(["mine"])[0].attributes == {"folder": "2024"}
