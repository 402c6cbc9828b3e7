"""Event datasets, read by spikingjelly from tiny recordings in their own file formats."""

import ast
import gc
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from data_files import load_data
from PIL import Image
from recordings import (
    CIFAR_CLASSES,
    SIDE,
    TINY,
    frames_of,
    recording_of,
    write_bin,
    write_dataset,
    zip_archives,
)

from psvit.data import create_data, events, files
from psvit.data.events import GESTURES, LAYOUTS
from psvit.errors import UserError
from psvit.networks import build_network
from psvit.pipeline import run

pytestmark = pytest.mark.usefixtures("no_network")
# so few recordings of a class need larger shares
SHARES = {"cifar10_dvs": {"test_fraction": 0.4, "val_fraction": 0.4}}
STILL = {"augment__crop_padding": 0, "augment__hflip": 0.0}


def open_tiny(written, name, **overrides):
    _, root = written(name)
    cfg = {**TINY, **SHARES.get(name, {}), "image_size": SIDE[name], **STILL, **overrides}
    return load_data(name, root=str(root), **cfg)


@pytest.mark.parametrize("name", LAYOUTS)
def test_frames_are_the_events_counted_by_hand(written, name):
    recorded, _ = written(name)
    data = open_tiny(written, name)
    names = {"cifar10_dvs": CIFAR_CLASSES, "dvs128_gesture": GESTURES, "n_mnist": "0123456789"}
    assert data.class_names == list(names[name]) and data.num_classes == len(names[name])
    assert (data.in_channels, data.image_size) == (2, SIDE[name])
    seen = Counter()
    for split in (data.train, data.val, data.test):
        loaded = split.__getitems__(list(range(len(split))))
        for path, (frames, label) in zip(split.images, loaded, strict=True):
            key = part, folder, _ = recording_of(path)
            assert frames.dtype == torch.float32 and label.dtype == torch.int64
            np.testing.assert_array_equal(frames, frames_of(recorded[key], 3, SIDE[name]))
            # gestures are numbered as numbers, not as text
            expected = int(folder) if folder.isdigit() else CIFAR_CLASSES.index(folder)
            assert label == expected
            assert part in ("", "test" if split is data.test else "train")
            seen[key] += 1
    assert seen == Counter(recorded.keys())
    frames, labels = next(iter(data.train_dataloader()))
    side = SIDE[name]
    assert frames.shape == (len(labels), 3, 2, side, side) and frames.dtype == torch.float32
    # some pixels have more than one event, and both polarities are there
    assert frames.max() > 1 and (frames.sum((0, 1, 3, 4)) > 0).all()


def test_no_thread_disturbs_another_ones_reading(written, tmp_path, monkeypatch):
    """Parsing in the midst of numpy's parsing, as other threads may, ends it up to Python 3.11."""
    open_tiny(written, "n_mnist")
    shutil.copytree(written("n_mnist")[1] / "events_np", tmp_path / "events_np")
    monkeypatch.setattr(files, "THUMBNAIL_BYTES", 0)  # so that we read with threads, too

    def parse(phase, _):
        if phase == "start":
            ast.literal_eval("[{}]")

    threshold = gc.get_threshold()
    gc.callbacks.append(parse)
    gc.set_threshold(1, 1000, 1000)
    try:
        data = load_data("n_mnist", root=str(tmp_path), **TINY, image_size=34, **STILL)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(parse)
    assert len(data.train.images) and gc.isenabled()


def test_five_events_in_two_frames(tmp_path):
    write_dataset("n_mnist", tmp_path)
    five = [(10, 3, 7, 1), (11, 3, 7, 0), (12, 3, 7, 1), (70_000, 33, 0, 1), (70_001, 3, 7, 1)]
    write_bin(tmp_path / "extract" / "Test" / "4" / "00000.bin", five)
    data = load_data("n_mnist", root=str(tmp_path), frames=2, val_fraction=0.4, image_size=34)
    index = [recording_of(path)[1:] for path in data.test.images].index(("4", "00000"))
    frames, _ = data.test[index]
    # two events, then the three others; [frame, polarity, y, x]
    assert frames[0].sum() == 2 and frames[1].sum() == 3
    assert frames[0, 1, 7, 3] == 1 and frames[0, 0, 7, 3] == 1
    assert frames[1, 1, 7, 3] == 2 and frames[1, 1, 0, 33] == 1


def test_cifar10_dvs_is_split_by_class_and_by_split_seed_alone(written):
    first, again = open_tiny(written, "cifar10_dvs"), open_tiny(written, "cifar10_dvs", seed=1)
    other = open_tiny(written, "cifar10_dvs", split_seed=1)
    # of 5 recordings of a class 2 are tested, and 1 (0.4 of 3, by the whole 12 of 30) validates
    assert torch.bincount(first.test.labels).tolist() == [2] * 10
    assert len(first.val) == 12 and len(first.train) == 18
    assert set(torch.bincount(first.val.labels).tolist()) == {1, 2}
    assert first.test.images == again.test.images and first.val.images == again.val.images
    assert set(first.test.images) != set(other.test.images)


def test_limits_and_calibration(written):
    data = open_tiny(written, "n_mnist", test_images=10)
    assert torch.bincount(data.test.labels).tolist() == [1] * 10
    frames = torch.cat([frames for frames, _ in data.calibration_dataloader(4)])
    assert frames.shape == (4, 3, 2, 34, 34)


def test_cached_frames_are_the_same(written):
    still = open_tiny(written, "dvs128_gesture", image_size=32)
    cached = open_tiny(written, "dvs128_gesture", image_size=32, cache=True)
    assert cached.train.images.shape == (len(still.train), 3, 2, 32, 32)
    for name in ("train", "val", "test"):
        indices = list(range(len(getattr(still, name))))
        pairs = (getattr(data, name).__getitems__(indices) for data in (still, cached))
        for (a, _), (b, _) in zip(*pairs, strict=True):
            assert torch.equal(a, b)


def test_frames_are_resized_and_normalised(written):
    recorded, _ = written("dvs128_gesture")
    plain = open_tiny(written, "dvs128_gesture").test[3][0].numpy()

    def resized(interpolation, **overrides):
        data = open_tiny(
            written, "dvs128_gesture", image_size=64, interpolation=interpolation, **overrides
        )
        return data.test[3][0].numpy(), data

    blocks = plain.reshape(3, 2, 64, 2, 64, 2)
    np.testing.assert_allclose(resized("area")[0], blocks.mean((3, 5)), atol=1e-6)
    np.testing.assert_array_equal(resized("nearest")[0], blocks[:, :, :, 1, :, 1])
    pillow = [
        [np.asarray(Image.fromarray(c).resize((64, 64), Image.Resampling.BILINEAR)) for c in frame]
        for frame in plain
    ]
    np.testing.assert_allclose(resized("bilinear")[0], pillow, atol=1e-5)
    frames, data = resized("area", mean=[0.1, 0.2], std=[0.5, 2.0])
    expected = (blocks.mean((3, 5)) - np.reshape([0.1, 0.2], (2, 1, 1))) / [[[0.5]], [[2.0]]]
    np.testing.assert_allclose(frames, expected, atol=1e-6)
    assert data.preprocessing == {
        "frames": 3,
        "image_size": 64,
        "mean": [0.1, 0.2],
        "std": [0.5, 2.0],
        "interpolation": "area",
    }


def test_all_frames_of_a_recording_move_together(written):
    plain = open_tiny(written, "n_mnist")
    indices = list(range(len(plain.train)))
    still = [frames.numpy() for frames, _ in plain.train.__getitems__(indices)]
    flipped = open_tiny(written, "n_mnist", augment__hflip=1.0).train.__getitems__(indices)
    for (frames, _), source in zip(flipped, still, strict=True):
        np.testing.assert_array_equal(frames, source[..., ::-1])

    torch.manual_seed(0)
    data = open_tiny(written, "n_mnist", augment__crop_padding=2)
    offsets = set()
    for (frames, _), source in zip(data.train.__getitems__(indices), still, strict=True):
        padded = np.pad(source, ((0, 0), (0, 0), (2, 2), (2, 2)))
        found = {
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(frames, padded[..., top : top + 34, left : left + 34])
        }
        assert found
        offsets |= found
    assert len(offsets) > 5
    # and what is tested stays where it is
    assert torch.equal(data.test[0][0], plain.test[0][0])


def test_frames_are_made_once(written):
    open_tiny(written, "n_mnist")
    _, root = written("n_mnist")

    def ages():
        return {path: path.stat().st_mtime_ns for path in root.rglob("*")}

    before = ages()
    open_tiny(written, "n_mnist", seed=5)
    assert ages() == before
    # nothing half-made is left
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


def test_archives_are_unpacked(tmp_path, monkeypatch):
    written = write_dataset("n_mnist", tmp_path)
    zip_archives(tmp_path, monkeypatch)
    data = load_data("n_mnist", root=str(tmp_path), image_size=34, **TINY)
    frames, _ = data.test[0]
    key = recording_of(data.test.images[0])
    np.testing.assert_array_equal(frames, frames_of(written[key], 3, 34))


def test_datasets_without_torchaudio(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("spikingjelly.datasets")]:
        monkeypatch.delitem(sys.modules, name)
    # None: importing it fails
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    assert events._import_datasets().NMNIST.get_H_W() == (34, 34)
    assert "torchaudio" not in sys.modules


TINY_RUN = (
    "dataset=n_mnist",
    "dataset.val_fraction=0.4",
    "model.embed_dims=[8,16,16,16]",
    "model.depth=[1,1,1,1,1]",
    "model.mlp_ratio=2",
    "model.time_steps=2",
    "trainer.max_epochs=1",
    "training.warmup_epochs=0",
    "pruning=uniform",
    "pruning.ratios=[0.5]",
    "pruning.calibration_images=10",
    "logger=none",
    "report=tables",
    "finetune.epochs=1",
    "measure.images=8",
    "measure.batch_sizes=[1,4]",
    "measure.repeats=1",
)


def test_the_frames_follow_the_networks_steps(config, written):
    _, root = written("n_mnist")
    cfg = config(*TINY_RUN, f"dataset.root={root}", "model.time_steps=5")
    frames, _ = next(iter(create_data(cfg.dataset, 0).test_dataloader()))
    assert frames.shape == (20, 5, 2, 32, 32)


def test_a_run_on_events(config, written, tmp_path):
    _, root = written("n_mnist")
    cfg = config(*TINY_RUN, f"dataset.root={root}", f"paths.output_dir={tmp_path}")
    results = run(cfg, tmp_path)
    base, pruned, finetuned = results["rows"]
    assert base["images"] == 20 and results["validation"]["images"] == 12
    assert pruned["parameters"] == finetuned["parameters"] < base["parameters"]
    text = (tmp_path / "finetuned" / "model.yaml").read_text()
    assert "frames: 2" in text and "in_channels: 2" in text


def test_a_network_for_images_is_refused(config, written):
    _, root = written("n_mnist")
    cfg = config(*TINY_RUN, f"dataset.root={root}", "model.in_channels=3")
    data = create_data(cfg.dataset, 0)
    with pytest.raises(UserError, match="model.in_channels=3: dataset=n_mnist has 2"):
        build_network(cfg, data, None)
