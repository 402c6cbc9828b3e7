"""Split sizes are counted by hand; an image is known by its bytes."""

from collections import Counter

import numpy as np
import pytest
import torch
from data_files import load_data, write_image
from sklearn.datasets import load_digits

PLAIN = {"image_size": 8, "augment__crop_padding": 0, "mean": [0, 0, 0], "std": [1, 1, 1]}


def stored(part):
    return Counter(image.numpy().tobytes() for image in part.images)


def class_counts(part):
    return torch.bincount(part.labels).tolist()


def test_digits_are_split_once_in_proportion():
    data = load_data("digits")
    # 1,797 images: 0.2 of them, then 0.2 of the 1,438 left.
    assert (len(data.test), len(data.val), len(data.train)) == (359, 288, 1150)
    whole = np.bincount(load_digits().target)
    for part in (data.train, data.val, data.test):
        fair = whole * len(part) / 1797
        assert np.abs(np.array(class_counts(part)) - fair).max() < 1.5
    # Every image is in exactly one split, with its label.
    pixels = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    expected = Counter(np.stack([image] * 3).tobytes() for image in pixels)
    assert stored(data.train) + stored(data.val) + stored(data.test) == expected
    targets = load_digits().target
    label_of = {np.stack([i] * 3).tobytes(): t for i, t in zip(pixels, targets, strict=True)}
    for part in (data.train, data.val, data.test):
        for image, label in zip(part.images, part.labels, strict=True):
            assert label_of[image.numpy().tobytes()] == label


def test_split_depends_on_split_seed_alone():
    first, other_run = load_data("digits", seed=0), load_data("digits", seed=1)
    other_split = load_data("digits", split_seed=1)
    for name in ("train", "val", "test"):
        a, b = getattr(first, name), getattr(other_run, name)
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        assert stored(a) != stored(getattr(other_split, name))


def test_folder_validation_is_split_from_train(folder):
    data = load_data("image_folder", root=str(folder), cache=True, image_size=32, val_fraction=0.2)
    assert data.class_names == ["cat", "dog"] and data.num_classes == 2
    assert class_counts(data.train) == [8, 16]
    assert class_counts(data.val) == [2, 4]
    assert class_counts(data.test) == [4, 6]
    everything = stored(data.train) + stored(data.val) + stored(data.test)
    assert len(everything) == 40 and set(everything.values()) == {1}


def test_val_folder_validates_beside_test_and_tests_alone(folder):
    cfg = {"root": str(folder), "image_size": 32}
    write_image(folder / "val" / "dog" / "a.png", 100)
    both = load_data("image_folder", **cfg)
    assert class_counts(both.train) == [10, 20]
    assert [p.name for p in both.val.images] == ["a.png"] and both.val.labels.tolist() == [1]
    assert class_counts(both.test) == [4, 6]

    for path in sorted((folder / "test").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (folder / "test").rmdir()
    alone = load_data("image_folder", val_fraction=0.1, **cfg)
    assert [p.name for p in alone.test.images] == ["a.png"]
    assert class_counts(alone.train) == [9, 18] and class_counts(alone.val) == [1, 2]


def test_limits_keep_the_proportions(folder):
    limits = {"train_images": 12, "val_images": 3, "test_images": 5}
    data = load_data("image_folder", root=str(folder), val_fraction=0.2, image_size=32, **limits)
    assert class_counts(data.train) == [4, 8]
    assert class_counts(data.val) == [1, 2]
    assert class_counts(data.test) == [2, 3]
    full = load_data("image_folder", root=str(folder), val_fraction=0.2, image_size=32)
    assert set(data.train.images) < set(full.train.images)
    assert set(data.val.images) < set(full.val.images)


def test_limit_may_be_the_whole_split(folder):
    data = load_data("image_folder", root=str(folder), image_size=32, test_images=10)
    assert len(data.test) == 10


@pytest.mark.parametrize("images", [1, 30, 1150])
def test_calibration_images_are_plain_training_images(images):
    data = load_data("digits", **PLAIN)
    batches = list(data.calibration_dataloader(images))
    taken = torch.cat([x for x, _ in batches])
    assert taken.shape == (images, 3, 8, 8)
    levels = (taken * 255).round().to(torch.uint8)
    assert not Counter(image.numpy().tobytes() for image in levels) - stored(data.train)
    again = torch.cat([x for x, _ in data.calibration_dataloader(images)])
    assert torch.equal(taken, again)


def test_the_seed_says_which_images_calibrate():
    first, second = (load_data("digits", seed=seed, **PLAIN) for seed in (0, 1))
    taken = [torch.cat([x for x, _ in d.calibration_dataloader(30)]) for d in (first, second)]
    assert not torch.equal(*taken)
    # and not who is in which split
    assert torch.equal(first.train.images, second.train.images)
