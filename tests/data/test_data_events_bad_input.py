"""Recordings that are missing or broken: one line that says what to put where, before training."""

import shutil

import numpy as np
import pytest
from data_files import load_cfg, load_data
from recordings import TINY, write_dataset, zip_archives

from psvit.data import create_data, events
from psvit.data.events import LAYOUTS
from psvit.errors import UserError

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture
def n_mnist(tmp_path, written):
    """A copy of the tiny N-MNIST, converted and with frames, to be damaged."""
    _, root = written("n_mnist")
    load_data("n_mnist", root=str(root), **TINY)
    # other tests may have made other frames
    ignore = shutil.ignore_patterns("frames_number_[!3]*")
    return shutil.copytree(root, tmp_path / "n_mnist", ignore=ignore)


def refused(option, root, name="n_mnist", **overrides):
    with pytest.raises(UserError) as caught:
        load_data(name, root=str(root), **{**TINY, **overrides})
    message = str(caught.value)
    assert message.startswith(f"dataset.{option}=") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("n_mnist", ["Train.zip, Test.zip", "Train/<digit>/*.bin and Test/<digit>/*.bin"]),
        ("cifar10_dvs", ["airplane.zip, automobile.zip", "truck.zip", "<class>/*.aedat"]),
        ("dvs128_gesture", ["DvsGesture.tar.gz", "trials_to_train.txt"]),
    ],
)
def test_nothing_there(tmp_path, name, wanted):
    message = refused("root", tmp_path / "nowhere", name)
    assert "no such folder" in message and not (tmp_path / "nowhere").exists()
    for text in (*wanted, "download/", "extract/", LAYOUTS[name].reader.resource_url_md5()[0][1]):
        assert text in message
    assert f"has no download/{wanted[0].partition(',')[0]}" in refused("root", tmp_path, name)
    # nothing is left that would be taken for the dataset the next time
    assert not list(tmp_path.iterdir())


def test_a_damaged_archive_is_named_and_kept(tmp_path, monkeypatch):
    write_dataset("n_mnist", tmp_path)
    zip_archives(tmp_path, monkeypatch)
    archive = tmp_path / "download" / "Test.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    assert "download/Test.zip is damaged" in refused("root", tmp_path)
    assert archive.exists() and not (tmp_path / "extract").exists()


def test_a_stray_file_among_the_archives(tmp_path, monkeypatch):
    write_dataset("n_mnist", tmp_path)
    zip_archives(tmp_path, monkeypatch)
    (tmp_path / "download" / "notes.doc").touch()
    assert "download/ could not be unpacked" in refused("root", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["download"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("n_mnist", "Test/3/00023.bin"),
        ("cifar10_dvs", "cat/cifar10_cat_1.aedat"),
        ("dvs128_gesture", "DvsGesture/user01_led.aedat"),
        ("dvs128_gesture", "DvsGesture/user01_led_labels.csv"),
        ("dvs128_gesture", "DvsGesture/trials_to_test.txt"),
    ],
)
def test_unpacked_recordings_that_cannot_be_read(tmp_path, name, file):
    write_dataset(name, tmp_path, 2, 1)
    path = tmp_path / "extract" / file
    if path.suffix in (".bin", ".aedat"):
        path.write_bytes(path.read_bytes()[:-2])
    else:
        path.unlink()
    message = refused("root", tmp_path, name)
    assert "extract/ could not be converted" in message and "it should hold" in message
    assert [path.name for path in tmp_path.iterdir()] == ["extract"]


def no_part(root):
    shutil.rmtree(root / "events_np" / "test")
    return "events_np/test/0/ holds no recordings"


def no_class(root):
    shutil.rmtree(root / "events_np" / "train" / "7")
    return "events_np/train/7/ holds no recordings"


def unknown_class(root):
    (root / "events_np" / "test" / "ten").mkdir()
    return "events_np/test/ten/ is no class of this dataset"


def recordings_removed(root):
    next((root / "events_np" / "test" / "7").glob("*.npz")).unlink()
    return "frames_number_3_split_by_number/ does not hold the recordings of events_np/"


def recording_replaced(root):
    path = next((root / "events_np" / "test" / "7").glob("*.npz"))
    with np.load(path) as events:
        np.savez(path, **{name: values[:-1] for name, values in events.items()})
    return "frames_number_3_split_by_number/ does not hold the recordings of events_np/"


def unfinished(root):
    (root / "events_np.building").touch()
    return "events_np/ is unfinished"


def unfinished_frames(root):
    (root / "frames_number_3_split_by_number.building").touch()
    return "remove it and frames_number_3_split_by_number.building"


@pytest.mark.parametrize(
    "damage",
    [
        *(no_part, no_class, unknown_class, recordings_removed, recording_replaced),
        *(unfinished, unfinished_frames),
    ],
)
def test_bad_folder(n_mnist, damage):
    expected = damage(n_mnist)
    message = refused("root", n_mnist)
    assert expected in message and str(n_mnist) in message


def not_an_archive(path, _arrays):
    path.write_text("no events")


def in_the_middle(path, arrays):
    np.savez(path, **{**arrays, "t": arrays["t"][:-1]})


def outside(path, arrays):
    np.savez(path, **{**arrays, "x": arrays["x"] + 34})


@pytest.mark.parametrize("damage", [not_an_archive, in_the_middle, outside])
def test_a_broken_recording_is_named(n_mnist, damage):
    path = next((n_mnist / "events_np" / "train" / "2").glob("*.npz"))
    with np.load(path) as file:
        damage(path, dict(file))
    message = refused("root", n_mnist, frames=2)
    assert f"the recording events_np/train/2/{path.name} cannot be read" in message
    assert not (n_mnist / "frames_number_2_split_by_number").exists()


def test_broken_frames_are_named_when_they_are_read(n_mnist):
    data = load_data("n_mnist", root=str(n_mnist), **TINY)
    data.test.images[0].write_text("no frames")
    with pytest.raises(UserError, match="frames_number_3_split_by_number/test/0/.* cannot be read"):
        data.test[0]


def test_more_frames_than_events(n_mnist):
    message = refused("frames", n_mnist, frames=21)
    assert "dataset.frames=21: at most 20: events_np/test/0/" in message
    assert not (n_mnist / "frames_number_21_split_by_number").exists()


def test_a_folder_that_cannot_be_written(n_mnist, monkeypatch):
    def refuse(prefix, dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(events, "TemporaryDirectory", refuse)
    # what has been made is only read
    load_data("n_mnist", root=str(n_mnist), **TINY)
    message = refused("root", n_mnist, frames=2)
    assert "frames_number_2_split_by_number/ could not be made" in message
    assert "Permission denied" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frames", 0),
        ("frames", 2.5),
        ("frames", "many"),
        ("frames", None),
        ("root", None),
        ("root", ""),
        ("cache", "yes"),
        ("interpolation", "bicubic"),
        ("mean", [0.0, 0.0, 0.0]),
        ("std", [1.0]),
        ("std", [1.0, 0.0]),
        ("image_size", 0),
        ("augment.hflip", 2),
        ("augment.crop_padding", -1),
        ("augment.crop_padding", 200_000),
        ("val_fraction", 1.0),
        ("test_images", 21),
    ],
)
def test_bad_value(written, key, value):
    _, root = written("n_mnist")
    overrides = {"root": str(root), **TINY, key.replace(".", "__"): value}
    with pytest.raises(UserError, match=f"dataset.{key}="):
        load_data("n_mnist", **overrides)


def test_frames_need_a_network_or_a_number():
    # a user's own network may have no time_steps
    with pytest.raises(UserError, match="dataset.frames=.*whole number"):
        create_data(load_cfg("n_mnist"), 0)
