"""A file is the old one or the new one, whatever happens while it is written."""

import os

import pytest

from psvit.files import read_json, write_json, write_text, write_whole


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    write_text(path, "old")

    def half(temporary):
        temporary.write_text("ne")
        # a reader who comes now
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, half)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"top1": 97.5})
    with pytest.raises(TypeError):
        write_json(path, {"top1": object()})
    assert read_json(path) == {"top1": 97.5}


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "results.json"
    for value in ({"rows": [1, 2.5, None, "x"]}, {"rows": []}):
        write_json(path, value)
        assert read_json(path) == value
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "table.md", "")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "table.md").stat().st_mode & 0o777 == 0o640
