"""What makes an entry another one: values, source code, images and labels."""

import hashlib
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_files import images_of
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from psvit.cache.keys import canonical, code_version, data_fingerprint, key_hash
from psvit.data import create_data
from psvit.errors import UserError


def test_the_hash_is_the_sha256_of_the_canonical_json():
    text = b'{"a":[1,0.5,null,true],"b":{"c":"d"}}'
    key = {"b": {"c": "d"}, "a": (1.0, 0.5, None, True)}
    assert key_hash(key) == hashlib.sha256(text).hexdigest()[:20]


SAME = [
    ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
    ({"lr": 1}, {"lr": 1.0}),
    ({"lr": 0.0}, {"lr": -0.0}),
    ({"lr": 1e-3}, {"lr": np.float64(0.001)}),
    ({"n": 7}, {"n": np.int64(7)}),
    ({"ratios": [0.1, 0.2]}, {"ratios": (0.1, 0.2)}),
    ({"groups": {"a", "b", "c"}}, {"groups": {"c", "a", "b"}}),
    ({"root": Path("data/cifar10")}, {"root": "data/cifar10"}),
    ({"model": {"dims": [8, 16]}}, {"model": OmegaConf.create({"dims": [8, 16]})}),
    ({"a": 2, "b": {"c": 2}}, OmegaConf.create({"a": 2, "b": {"c": "${a}"}})),
]
DIFFERENT = [
    ({"a": 1}, {"a": 2}),
    ({"a": 1}, {"b": 1}),
    ({"a": 1}, {"a": "1"}),
    ({"a": 1}, {"a": True}),
    ({"a": 0}, {"a": None}),
    ({"a": 0.1}, {"a": math.nextafter(0.1, 1)}),
    ({"a": math.inf}, {"a": -math.inf}),
    ({"a": [1, 2]}, {"a": [2, 1]}),
    ({"a": [[1], 2]}, {"a": [[1, 2]]}),
    ({"a": {"b": 1}}, {"a.b": 1}),
]


@pytest.mark.parametrize("one,other", SAME)
def test_what_a_config_may_write_in_two_ways_is_one_key(one, other):
    assert key_hash(one) == key_hash(other)


@pytest.mark.parametrize("one,other", DIFFERENT)
def test_other_values_are_another_key(one, other):
    assert key_hash(one) != key_hash(other)


@pytest.mark.parametrize(
    "value,name",
    [
        ({"a": {"b": [0, torch.zeros(1)]}}, r"key\.a\.b\[1\]: a Tensor"),
        ({"a": torch.float32}, r"key\.a: a dtype"),
        ({"a": {1: 2}}, r"key\.a: names are text, not 1"),
    ],
)
def test_what_has_no_plain_form_is_named(value, name):
    with pytest.raises(TypeError, match=name):
        canonical(value)


def test_a_value_still_to_be_given_is_no_key():
    with pytest.raises(MissingMandatoryValue):
        canonical(OmegaConf.create({"root": "???"}))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two modules, one of them in a sub-package."""
    folder = tmp_path / "here" / "toy_stage"
    (folder / "deep").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "deep" / "__init__.py").write_text("")
    (folder / "deep" / "sum.py").write_text("def add(a, b):\n    return a + b\n")
    (folder / "alone.py").write_text("RATE = 0.5\n")
    monkeypatch.syspath_prepend(folder.parent)
    code_version.cache_clear()
    yield folder
    code_version.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_stage"]:
        del sys.modules[name]


def version(*modules):
    """As another process would find it."""
    code_version.cache_clear()
    return code_version(*modules)


def test_an_edit_is_another_version(package):
    before = version("toy_stage")
    (package / "deep" / "sum.py").write_text("def add(a, b):\n    return a - b\n")
    edited = version("toy_stage")
    (package / "deep" / "new.py").write_text("")
    grown = version("toy_stage")
    (package / "deep" / "new.py").rename(package / "new.py")
    moved = version("toy_stage")
    assert len({before, edited, grown, moved}) == 4


def test_comments_layout_and_byte_code_are_no_other_version(package):
    before = version("toy_stage")
    (package / "deep" / "sum.py").write_text("# adds\ndef add(a,  b):\n\n    return (a + b)\n")
    subprocess.run([sys.executable, "-m", "compileall", "-q", package], check=True)
    assert list(package.rglob("*.pyc")) and version("toy_stage") == before


def test_only_what_is_named_counts_in_any_order(package):
    names = ("toy_stage.alone", "toy_stage.deep")
    before = version(*names)
    assert version(*reversed(names)) == before
    alone = version("toy_stage.alone")
    (package / "deep" / "sum.py").write_text("add = max\n")
    assert version("toy_stage.alone") == alone and version(*names) != before


def test_the_place_of_the_package_does_not_count(package, monkeypatch):
    before = version("toy_stage")
    elsewhere = shutil.copytree(package, package.parents[1] / "there" / package.name)
    monkeypatch.syspath_prepend(elsewhere.parent)
    assert version("toy_stage") == before
    (elsewhere / "alone.py").write_text("RATE = 0.6\n")
    assert version("toy_stage") != before


def test_a_process_keeps_the_version_of_the_code_it_began_with(package):
    before = version("toy_stage")
    (package / "alone.py").write_text("RATE = 0.7\n")
    assert code_version("toy_stage") == before != version("toy_stage")


def test_another_torch_is_another_version(package, monkeypatch):
    before = version("toy_stage")
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: "99.0" if name == "torch" else "1.0"
    )
    other = version("toy_stage")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")
    assert len({before, other, version("toy_stage")}) == 3


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ModuleNotFoundError, match="psvit.no_such_stage"):
        code_version("psvit.no_such_stage")


@pytest.fixture
def digits(config):
    """Makes the digits' data, with options changed."""

    def make(*overrides):
        small = ("dataset.train_images=40", "dataset.val_images=20", "dataset.test_images=20")
        return create_data(config(*small, *overrides).dataset, 0)

    return make


def test_the_same_data_has_one_fingerprint(digits):
    assert data_fingerprint(digits()) == data_fingerprint(digits())


def pixel(data, part):
    getattr(data, part).images[3, 0, 4, 4] ^= 1


def label(data, part):
    labels = getattr(data, part).labels
    labels[3] = (labels[3] + 1) % 10


def order(data, part):
    for values in (getattr(data, part).images, getattr(data, part).labels):
        values[[0, 1]] = values[[1, 0]]


def exchange(data, part):
    """An image and its label with one of another split."""
    other = {"train": "val", "val": "test", "test": "train"}[part]
    for field in ("images", "labels"):
        one, two = getattr(getattr(data, part), field), getattr(getattr(data, other), field)
        kept = one[0].clone()
        one[0], two[0] = two[0], kept


@pytest.mark.parametrize("change", [pixel, label, order, exchange])
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_one_pixel_label_or_place_is_another_fingerprint(digits, change, part):
    data = digits()
    before = data_fingerprint(data)
    change(data, part)
    assert data_fingerprint(data) != before


@pytest.mark.parametrize(
    "option", ["mean=[0.4,0.5,0.5]", "augment.crop_padding=3", "split_seed=1", "batch_size=7"]
)
def test_options_of_the_data_are_part_of_the_fingerprint(digits, option):
    assert data_fingerprint(digits(f"dataset.{option}")) != data_fingerprint(digits())


@pytest.fixture
def folder(config, tmp_path):
    """Makes the data of a folder of image files; its options are changed by words."""
    options = images_of(train__cat=8, train__dog=8, test__cat=4, test__dog=4)(tmp_path / "images")

    def make(*overrides):
        return create_data(config(*options, *overrides).dataset, 0)

    make.root = tmp_path / "images"
    return make


def test_where_the_files_lie_does_not_count(folder, tmp_path):
    on_disk = ("dataset.cache=false",)
    before = data_fingerprint(folder(*on_disk))
    # keeps the times
    moved = shutil.copytree(folder.root, tmp_path / "moved")
    assert data_fingerprint(folder(*on_disk, f"dataset.root={moved}")) == before


def test_a_file_that_changed_is_another_fingerprint(folder):
    path = folder.root / "train" / "cat" / "0.png"
    before = data_fingerprint(folder("dataset.cache=false"))
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    touched = data_fingerprint(folder("dataset.cache=false"))
    path.rename(path.with_name("9.png"))
    renamed = data_fingerprint(folder("dataset.cache=false"))
    assert len({before, touched, renamed}) == 3


def test_of_files_read_into_memory_the_pixels_count_and_not_the_times(folder):
    before = data_fingerprint(folder("dataset.cache=true"))
    one, other = (folder.root / "train" / "cat" / name for name in ("0.png", "1.png"))
    os.utime(one)
    assert data_fingerprint(folder("dataset.cache=true")) == before
    shutil.copyfile(other, one)
    assert data_fingerprint(folder("dataset.cache=true")) != before


def test_a_file_that_is_gone_is_named(folder):
    data = folder("dataset.cache=false")
    path = data.val.images[0]
    path.unlink()
    with pytest.raises(UserError, match=path.name):
        data_fingerprint(data)


def test_images_of_different_sizes_and_frames_count_whole():
    def data(images):
        part = SimpleNamespace(images=images, labels=torch.zeros(2, dtype=torch.int64), root=None)
        return SimpleNamespace(
            cfg=OmegaConf.create({"name": "any"}),
            class_names=["a"],
            train=part,
            val=part,
            test=part,
        )

    zeros = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    nearly = torch.zeros(2, 3, 4, 6)
    nearly[1, 2, 3, 5] = 1e-30
    found = [
        data_fingerprint(data(images))
        for images in (
            zeros,
            zeros.reshape(2, 3, 6, 4),
            zeros.float(),
            nearly,
            [zeros[0], zeros[1, :, :2]],
            [zeros[0, :, :2], zeros[1]],
        )
    ]
    assert len(set(found)) == len(found)
    # how the bytes lie in memory does not count
    apart = zeros.contiguous(memory_format=torch.channels_last)
    assert data_fingerprint(data(apart)) == found[0]
