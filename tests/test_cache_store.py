"""What is kept, what is made again, and what is removed."""

import hashlib
import json
import os
import time

import pytest
import yaml

from psvit.cache.keys import key_hash
from psvit.cache.store import STALE_DAYS, StageCache, lock_of
from psvit.errors import UserError

KEY = {"model": {"name": "sdt_v1"}, "seed": 3}


class Maker:
    """Writes two files; counts how often."""

    def __init__(self):
        self.times, self.found = 0, []

    def __call__(self, folder):
        self.times += 1
        self.found.append(sorted(path.name for path in folder.iterdir() if path.suffix == ".bin"))
        (folder / "weights.bin").write_bytes(bytes(range(256)))
        (folder / "more").mkdir(exist_ok=True)
        (folder / "more" / "table.csv").write_text("group,ratio\n")


@pytest.fixture
def make():
    return Maker()


@pytest.fixture
def cache(tmp_path):
    return StageCache(tmp_path / "outputs" / "cache")


def test_an_entry_holds_the_files_their_hashes_and_its_key(cache, make):
    folder = cache.get("base", KEY, make)
    assert folder == cache.root / "base" / key_hash(KEY)
    about = yaml.safe_load((folder / "key.yaml").read_text())
    assert (about["stage"], about["key"], about["resumed"]) == ("base", KEY, False)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) == {"key.yaml", "weights.bin", "more/table.csv"}
    digest = hashlib.sha256(bytes(range(256))).hexdigest()
    assert manifest["weights.bin"] == {"sha256": digest, "bytes": 256}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_it_is_made_once_and_every_use_is_noted(cache, make):
    folders = {cache.get("base", KEY, make) for _ in range(3)}
    assert len(folders) == 1 and make.times == 1
    assert len((folders.pop() / "uses.txt").read_text().splitlines()) == 2
    cache.get("base", {**KEY, "seed": 4}, make)
    cache.get("sensitivity", KEY, make)
    assert make.times == 3


@pytest.mark.parametrize("name", ["weights.bin", "more/table.csv", "key.yaml", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "shorten", "remove"])
def test_a_damaged_entry_is_told_and_made_again(cache, make, caplog, name, harm):
    path = cache.get("base", KEY, make) / name
    before = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        middle = len(before) // 2
        flipped = before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :]
        path.write_bytes(flipped if harm == "flip" else before[:-2])
    folder = cache.get("base", KEY, make)
    assert make.times == 2 and make.found == [[], []]
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "damaged" in warning.getMessage()
    if name != "manifest.json":
        assert name in warning.getMessage()
    if name in ("weights.bin", "more/table.csv"):
        assert (folder / name).read_bytes() == before
    cache.get("base", KEY, make)
    assert make.times == 2


def test_a_failed_stage_leaves_no_entry_and_its_work_for_the_next_call(cache, make):
    def fail(folder):
        make(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get("base", KEY, fail)
    assert [path.suffix for path in (cache.root / "base").iterdir()] == [".partial"]
    folder = cache.get("base", KEY, make)
    assert make.found == [[], ["weights.bin"]]
    assert yaml.safe_load((folder / "key.yaml").read_text())["resumed"] is True
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_unfinished_work_that_nobody_comes_back_to_is_given_up(cache, make):
    def fail(folder):
        (folder / "last.bin").touch()
        raise KeyboardInterrupt

    left = {}
    for name in ("old", "young", "busy"):
        with pytest.raises(KeyboardInterrupt):
            cache.get("base", {"name": name}, fail)
        left[name] = cache.root / "base" / f"{key_hash({'name': name})}.partial"
    for name, days in (("old", STALE_DAYS + 1), ("young", STALE_DAYS - 1), ("busy", 99)):
        moment = time.time() - days * 86400
        for path in (*left[name].iterdir(), left[name]):
            os.utime(path, (moment, moment))
    with lock_of(cache.root, "base", key_hash({"name": "busy"})):
        cache.get("base", KEY, make)
    assert {name for name in left if left[name].exists()} == {"young", "busy"}


def refusal(root, make):
    with pytest.raises(UserError) as refused:
        StageCache(root).get("base", KEY, make)
    assert make.times == 0
    message = str(refused.value)
    assert message.startswith(f"paths.cache_dir={root}: cannot be written") and "\n" not in message


def test_a_root_that_cannot_be_made_is_told_before_any_work(tmp_path, make):
    (tmp_path / "file").touch()
    refusal(tmp_path / "file" / "cache", make)


def test_a_read_only_root_is_told_before_any_work(tmp_path, make):
    root = tmp_path / "cache"
    root.mkdir(mode=0o500)
    if os.access(root, os.W_OK):
        pytest.skip("the superuser may write everywhere")
    refusal(root, make)


def test_an_error_of_the_stage_is_not_taken_for_one_of_the_cache(cache):
    def fail(folder):
        raise FileNotFoundError("no images")

    with pytest.raises(FileNotFoundError, match="no images"):
        cache.get("base", KEY, fail)
