"""Errors about what lies at a path name the setting that the path was given by."""

import errno

import pytest

from jax_brcd.runtime.errors import InputError, UnknownName, of_setting
from jax_brcd.runtime.files import as_path, check_file
from jax_brcd.settings.options import check
from jax_brcd.settings.stages import DataConfig, ObjectiveConfig, StudentConfig
from jax_brcd.stages.claim import read_claim, weights_digests
from jax_brcd.stages.command import named_places
from jax_brcd.stages.configuration import create_config
from jax_brcd.stages.sight import brought_encoder


@pytest.mark.parametrize(("error", "line"), [
    (InputError("/x/encoder: no encoder's folder; give one"), "--teacher /x/encoder: no encoder's folder; give one"),
    (InputError("/x/encoder/config.json: broken"), "--teacher /x/encoder: /x/encoder/config.json: broken"),
    (InputError("too small; give 1", field="bits", value=0), "--teacher /x/encoder: bits 0: too small; give 1"),
    (UnknownName("unknown backbone 'a'", field="backbone", value="a"), "--teacher /x/encoder: unknown backbone 'a'"),
])
def test_an_error_about_what_lies_at_a_path_names_its_setting(error, line):
    with pytest.raises(InputError) as refused, of_setting("teacher", "/x/encoder"):
        raise error
    assert refused.value.line("--{}".format) == line and refused.value.field == "teacher"


@pytest.mark.parametrize(("file", "names"), [("/x/encoder", True), ("/x/encoder/config.json", True), ("/cache/weights", False)])
def test_an_error_of_the_system_about_a_path_names_its_setting(file, names):
    with pytest.raises(InputError if names else OSError) as refused, of_setting("teacher", "/x/encoder"):
        raise PermissionError(errno.EACCES, "Permission denied", file)
    assert not names or str(refused.value) == "teacher /x/encoder: Permission denied; mend the path"


def test_a_name_too_long_for_weights_names_its_setting():
    with pytest.raises(InputError, match="^student_weights x+: File name too long; mend the path"):
        weights_digests(create_config(student_weights="x" * 300), student=True)


@pytest.mark.parametrize(("file", "line"), [
    ("/runs/a/config.json", "out /runs/a: /runs/a/config.json: Not a directory; free space or mend the path, then run"),
    ("/runs/a", "out /runs/a: Not a directory; free space"), ("/runs", "out /runs/a: /runs: Not a directory; free space"),
    ("/runs/.a.lock", "out /runs/a: Not a directory; free space"),
    ("/runs/a/cache/x", "cache_dir /runs/a/cache: /runs/a/cache/x: Not"),
])
def test_an_error_of_the_system_names_the_place_that_it_is_about(tmp_path, file, line):
    places = {"out": as_path("/runs/a"), "cache_dir": as_path("/runs/a/cache"), "data_dir": None}
    with pytest.raises(InputError) as refused, named_places(places):
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory", file)
    assert str(refused.value).startswith(line)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   OSError(errno.EIO, "Input/output error", "/else"),
                                   ConnectionResetError(errno.ECONNRESET, "reset", "/runs/a"), ValueError("other")])
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as raised, named_places({"out": as_path("/runs/a")}):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("setting", ["out", "cache_dir", "data_dir"])
@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a\0b"])
def test_a_path_that_can_be_none_is_refused_with_its_setting(setting, path):
    with pytest.raises(InputError) as refused:
        create_config(**{setting: path})
    assert refused.value.field == setting


def test_a_directory_that_is_no_encoders_is_refused_with_the_setting_that_names_it(tmp_path):
    with pytest.raises(InputError, match=f"^teacher_weights {tmp_path}: no encoder's folder"):
        brought_encoder(create_config(teacher_weights=str(tmp_path)), "teacher_weights")


def test_a_file_in_the_place_of_a_run_and_a_folder_in_that_of_codes_are_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"^out {tmp_path / 'file'}: is a file; name a folder"):
        read_claim(tmp_path / "file")
    with pytest.raises(InputError, match=f"^save_codes {tmp_path}: is a folder; name a file"):
        check_file(tmp_path, field="save_codes")
    check_file(tmp_path / "codes", field="save_codes")


@pytest.mark.parametrize(("settings", "message"), [
    (ObjectiveConfig(bits=10**9), "bits 1000000000: too large; give 65536 or less"),
    (DataConfig(views=10**9), "views 1000000000: too large"), (DataConfig(decode_workers=10**8),
                                                               "decode_workers 100000000: too large"),
    (StudentConfig(epochs=10**12), "epochs 1000000000000: too large; give 1000000 or less"),
    (StudentConfig(lr=1e300), "lr 1e.300: too large to compute with in 32 bits; give 3e.38 or less"),
])
def test_numbers_that_no_run_can_have_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        check(settings)
