"""``python -m psvit.cache``: what it tells, removes and checks."""

import os
import re
import time

import pytest

from psvit.cache import StageCache
from psvit.cache.__main__ import main
from psvit.cache.keys import key_hash
from psvit.cache.store import lock_of

CODE = "c0ffee" * 10 + "abcd"


def key(seed):
    return {"config": {"model": {"name": "sdt_v1", "depth": 2}}, "seed": seed, "code": CODE}


def write(folder):
    (folder / "weights.bin").write_bytes(bytes(1000))


@pytest.fixture
def cache(tmp_path):
    """Two base networks, one of them used twice, a sensitivity table and unfinished work."""
    cache = StageCache(tmp_path / "cache")
    for seed in (0, 1):
        cache.get("base", key(seed), write)
    for _ in range(2):
        cache.get("base", key(1), write)
    cache.get("sensitivity", key(0), write)

    def fail(folder):
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get("base", key(2), fail)
    return cache


@pytest.fixture
def command(cache, capsys):
    """Runs the command line; gives its status and lines."""

    def run(*arguments):
        status = main(["--root", str(cache.root), *arguments])
        return status, capsys.readouterr().out.splitlines()

    return run


def entry(cache, stage, seed, suffix=""):
    return cache.root / stage / (key_hash(key(seed)) + suffix)


def age(folder, days):
    moment = time.time() - days * 86400
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (moment, moment))


def test_the_list_tells_each_entry_by_names_seeds_and_differences(command, cache):
    status, (*lines, total) = command()
    assert status == 0 and len(lines) == 4
    used = next(line for line in lines if key_hash(key(1))[:8] in line)
    assert used.startswith("base  ") and "model.name=sdt_v1 seed=1" in used and "2×" in used
    # alike in all of them
    assert "depth" not in used and "c0ffee" not in used
    assert re.search(r"1\.\d kB  \d{4}-\d\d-\d\d \d\d:\d\d  0:00:00  2×  \d{4}", used)
    (unfinished,) = [line for line in lines if key_hash(key(2))[:8] in line]
    assert "unfinished" in unfinished
    assert total.startswith("4 entries in ") and "saved 0:00:00" in total


def test_the_time_saved_is_that_of_every_use(command, cache):
    about = entry(cache, "base", 1) / "key.yaml"
    about.write_text(re.sub(r"seconds: .*", "seconds: 1800.0", about.read_text()))
    _, lines = command()
    assert any("0:30:00  2×" in line for line in lines) and lines[-1].endswith("saved 1:00:00")


def test_another_version_of_the_code_shows_where_nothing_else_differs(command, cache):
    cache.get("base", {**key(0), "code": "beef" * 16}, write)
    lines = [line for line in command()[1] if "seed=0" in line and line.startswith("base")]
    assert sorted(re.findall(r"code=(\w+)", " ".join(lines))) == ["beefbeef", "c0ffeec0"]


def test_work_that_a_job_does_now_is_told_and_kept(command, cache):
    with lock_of(cache.root, "base", key_hash(key(2))):
        (line,) = [line for line in command()[1] if key_hash(key(2))[:8] in line]
        assert "being made" in line
        status, lines = command("clear")
    assert status == 0 and lines[-1].startswith("removed 3 entries")
    assert lines[0] == f"kept base/{key_hash(key(2))[:8]}: a job is working on it"
    assert [path.name for path in cache.root.glob("*/*") if path.is_dir()] == [
        f"{key_hash(key(2))}.partial"
    ]


def test_clear_removes_the_entries_of_a_stage(command, cache):
    assert command("clear", "--stage", "base")[0] == 0
    assert not list((cache.root / "base").iterdir())
    assert entry(cache, "sensitivity", 0).is_dir()


def test_clear_removes_what_was_neither_made_nor_used_for_days(command, cache):
    for seed in (0, 1):
        age(entry(cache, "base", seed), 10)
    cache.get("base", key(1), write)
    assert command("clear", "--older-than", "9.5")[1][-1].startswith("removed 1 entry,")
    assert not entry(cache, "base", 0).exists() and entry(cache, "base", 1).exists()


def test_clear_touches_nothing_that_is_no_entry(command, cache):
    for name in ("base/notes", "base/0123", "photos/2024"):
        (cache.root / name).mkdir(parents=True)
    command("clear")
    left = {str(path.relative_to(cache.root)) for path in cache.root.glob("*/*") if path.is_dir()}
    assert left == {"base/notes", "base/0123", "photos/2024"}


def test_verify_names_what_is_damaged_and_removes_nothing(command, cache):
    assert command("verify") == (0, ["3 entries checked, 0 damaged"])
    damaged = entry(cache, "sensitivity", 0)
    (damaged / "weights.bin").write_bytes(bytes(999) + b"\1")
    name = f"sensitivity/{damaged.name[:8]}"
    assert command("verify") == (
        1,
        [f"{name} is damaged: weights.bin has changed", "3 entries checked, 1 damaged"],
    )
    assert damaged.is_dir()


def test_an_entry_whose_key_is_destroyed_is_listed_and_cleared(command, cache):
    for name in ("key.yaml", "uses.txt"):
        (entry(cache, "base", 1) / name).write_bytes(b"\xff\x00: [")
    assert any(key_hash(key(1))[:8] in line for line in command()[1])
    assert command("clear")[1][-1].startswith("removed 4 entries")


def test_a_terminal_gets_a_table(command, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    _, lines = command()
    assert any("stage" in line and "last used" in line for line in lines)
    assert any("model.name=sdt_v1 seed=1" in line for line in lines)


def test_root_may_come_after_the_command_too(cache, capsys):
    assert main(["verify", "--root", str(cache.root)]) == 0
    assert capsys.readouterr().out == "3 entries checked, 0 damaged\n"


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--root", "/no/such/cache"], "--root=/no/such/cache: no such folder"),
        (["clear", "--stage", "bass"], "--stage=bass: the cache holds base, sensitivity"),
        (["clear", "--older-than", "-1"], "--older-than=-1.0: a number of days"),
    ],
)
def test_a_mistake_is_one_line(command, cache, capsys, arguments, message):
    status = main(["--root", str(cache.root), *arguments])
    error = capsys.readouterr().err
    assert status == 2 and error.startswith(message) and error.count("\n") == 1
