"""What a batch holds, against Pillow, numpy and timm."""

import os

import numpy as np
import pytest
import torch
from data_files import load_data, write_image
from lightning import seed_everything
from PIL import Image
from timm.data import create_transform
from torchvision.io import encode_png

from psvit.data import create_data
from psvit.data.transforms import padded_crop

STILL = {"augment__crop_padding": 0, "augment__hflip": 0.0}
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]


def by_hand(path):
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) / 255
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("cache", [True, False])
def test_images_are_what_pillow_reads_normalised(folder, cache):
    write_image(folder / "test" / "cat" / "large.tiff", 50)
    Image.open(folder / "test/cat/00.png").convert("L").save(folder / "test" / "cat" / "grey.pgm")
    Image.open(folder / "test/cat/00.png").quantize(16).save(folder / "test/cat/palette.PNG")
    write_image(folder / "test" / "dog" / "photo.jpeg", 51)
    data = load_data(
        "image_folder", root=str(folder), image_size=32, cache=cache, mean=MEAN, std=STD
    )
    images, labels = next(iter(data.test_dataloader()))
    paths = sorted((folder / "test").rglob("*.*"))
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.shape == (14, 3, 32, 32)
    assert labels.tolist() == [["cat", "dog"].index(path.parent.name) for path in paths]
    for image, path in zip(images, paths, strict=True):
        np.testing.assert_allclose(image, by_hand(path), atol=1e-5)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("size", [(60, 40), (33, 90), (20, 20)])
def test_other_sizes_are_resized_and_cropped_as_timm_does(folder, size, cache):
    path = folder / "test" / "cat" / "aa.png"
    gradient = np.indices((size[1], size[0])).sum(0) * 255 / (sum(size) - 2)
    Image.fromarray(np.stack([gradient, gradient[::-1], gradient], -1).astype(np.uint8)).save(path)
    for other in set((folder / "test").rglob("*.*")) - {path}:
        other.unlink()
    data = load_data("image_folder", root=str(folder), image_size=32, cache=cache)
    reference = create_transform(
        (3, 32, 32),
        crop_pct=0.875,
        interpolation="bicubic",
        mean=tuple(data.cfg.mean),
        std=tuple(data.cfg.std),
    )
    image, _ = data.test[0]
    # Pillow and torch may round a pixel differently: by a level or two of 255.
    assert (image - reference(Image.open(path))).abs().max() < 2.5 / 255 / 0.224


def test_digits_are_three_equal_channels():
    images, _ = next(iter(load_data("digits").test_dataloader()))
    assert images.shape == (359, 3, 32, 32)
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])


def test_digits_are_normalised_by_their_own_mean_and_std():
    data = load_data("digits")
    images = torch.cat([x for x, _ in data.calibration_dataloader(len(data.train))])
    assert abs(images.mean()) < 0.02 and abs(images.std() - 1) < 0.02


def test_padded_crop_shifts_each_image_by_its_own_offset():
    torch.manual_seed(0)
    images = torch.randint(1, 256, (200, 3, 6, 5), dtype=torch.uint8)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    offsets = []
    for image, source in zip(padded_crop(images, 1).numpy(), padded, strict=True):
        found = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if np.array_equal(image, source[:, top : top + 6, left : left + 5])
        ]
        assert len(found) == 1
        offsets += found
    assert len(set(offsets)) == 9


def test_flip_is_per_image(folder):
    paths = {"root": str(folder), "image_size": 32, "mean": MEAN, "std": STD}
    always = load_data("image_folder", **paths, augment__crop_padding=0, augment__hflip=1.0)
    for index in range(5):
        np.testing.assert_allclose(
            always.train[index][0],
            by_hand(always.train.images[index])[:, :, ::-1],
            atol=1e-5,
        )
    half = load_data("image_folder", **paths, augment__crop_padding=0, augment__hflip=0.5)
    torch.manual_seed(0)
    flipped = 0
    for index, (image, _) in enumerate(half.train.__getitems__(list(range(len(half.train))))):
        plain = by_hand(half.train.images[index])
        is_plain = np.allclose(image, plain, atol=1e-5)
        flipped += not is_plain
        assert is_plain or np.allclose(image, plain[:, :, ::-1], atol=1e-5)
    assert 5 <= flipped <= len(half.train) - 5


@pytest.mark.parametrize(
    "augment",
    [
        {"augment__random_resized_crop": [0.3, 1.0]},
        {"augment__auto_augment": "rand-m7-mstd0.5-inc1"},
        {"augment__auto_augment": "augmix-m3"},
        {"augment__auto_augment": "original"},
        {"augment__random_erasing": 1.0},
    ],
)
@pytest.mark.parametrize("cache", [True, False])
def test_augmentation_changes_training_images_only(folder, augment, cache):
    write_image(folder / "train" / "cat" / "wide.png", 60, size=(70, 40))
    cfg = {"root": str(folder), "image_size": 32, "cache": cache, **STILL}
    plain, augmented = load_data("image_folder", **cfg), load_data("image_folder", **cfg, **augment)

    def batch(loader):
        # timm's augmentations draw from Python's generator and from numpy's, as the run seeds them
        seed_everything(0, verbose=False)
        return next(iter(loader))[0]

    before, after = batch(plain.train_dataloader()), batch(augmented.train_dataloader())
    assert after.shape == before.shape and after.isfinite().all()
    assert (before != after).flatten(1).any(1).float().mean() > 0.5
    assert torch.equal(batch(plain.val_dataloader()), batch(augmented.val_dataloader()))
    assert torch.equal(batch(plain.test_dataloader()), batch(augmented.test_dataloader()))


def test_a_second_run_of_the_same_files_decodes_none(folder, caplog):
    options = {"root": str(folder), "image_size": 32, "cache": True}
    first = load_data("image_folder", **options)
    with caplog.at_level("INFO", "psvit.data.files"):
        again = load_data("image_folder", **options)
    assert not caplog.messages
    assert torch.equal(first.test.images, again.test.images)
    # another image in an old file's place is seen
    path = folder / "test" / "cat" / "00.png"
    write_image(path, 999)
    os.utime(path, ns=(1, 1))
    with caplog.at_level("INFO", "psvit.data.files"):
        changed = load_data("image_folder", **options)
    assert caplog.messages == [f"reading 10 images under {folder}"]
    assert not torch.equal(first.test.images, changed.test.images)
    # and other preprocessing is other images
    assert load_data("image_folder", **options | {"image_size": 16}).test.images.shape[-1] == 16


def test_imagenet_on_a_made_folder_of_1000_classes(config, tmp_path):
    """Shape and flow: classes, batches, an image several times an epoch."""
    image = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8)
    bytes_of_it = encode_png(image).numpy().tobytes()
    for part in ("train", "val"):
        for number in range(1000):
            folder = tmp_path / part / f"n{number:08d}"
            folder.mkdir(parents=True)
            for name in ("a", "b") if part == "train" else ("a",):
                (folder / f"{name}.png").write_bytes(bytes_of_it)
    cfg = config(
        "dataset=imagenet",
        f"dataset.root={tmp_path}",
        "dataset.image_size=32",
        "dataset.num_workers=0",
        "dataset.batch_size=12",
        "dataset.val_fraction=0.5",
        "dataset.augment.repeats=3",
    )
    data = create_data(cfg.dataset, 0)
    assert (data.num_classes, len(data.train), len(data.val), len(data.test)) == (1000,) * 4
    loader = data.train_dataloader()
    images, labels = next(iter(loader))
    assert images.shape == (12, 3, 32, 32) and images.dtype == torch.float32
    # four images, three times each, cropped and augmented differently
    assert sorted(labels.bincount()[labels.unique()].tolist()) == [3, 3, 3, 3]
    assert not torch.equal(images[0], images[1])
    assert len(loader) == 1000 // 12 + 1
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape[1:] == (3, 32, 32) and torch.equal(images[0], images[5])
