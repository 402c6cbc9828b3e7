"""Everything wrong is one line that names the option, before any training."""

import shutil
from pathlib import Path

import pytest
from data_files import DATASETS, load_cfg, load_data, write_image
from omegaconf import OmegaConf

from psvit.data.options import EVENT_DATASETS, check_options
from psvit.errors import UserError


def refused(option, dataset="digits", **overrides):
    with pytest.raises(UserError) as caught:
        load_data(dataset, **overrides)
    message = str(caught.value)
    assert message.startswith(f"dataset.{option}=") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "mnist"),
        ("root", "some/folder"),
        ("image_size", 0),
        ("image_size", "large"),
        ("image_size", 32.5),
        ("batch_size", 0),
        ("eval_batch_size", -1),
        ("num_workers", -1),
        ("split_seed", 2**32),
        ("test_fraction", 0.0),
        ("test_fraction", 1),
        ("val_fraction", 1.0),
        ("val_fraction", "half"),
        ("val_fraction", float("nan")),
        ("val_fraction", 0.001),  # 1 image for 10 classes
        ("test_fraction", 0.999),
        ("train_images", 0),
        ("train_images", 5),
        ("train_images", 100_000),
        ("val_images", 289),
        ("test_images", 1.5),
        ("crop_pct", 0),
        ("interpolation", "cubic"),
        ("mean", [0.5]),
        ("mean", 0.5),
        ("mean", [0.5, 0.5, "x"]),
        ("std", [1, 1]),
        ("std", [1, 1, 0]),
        ("augment.crop_padding", -1),
        ("augment.crop_padding", 33),
        ("augment.hflip", 1.5),
        ("augment.hflip", True),
        ("augment.random_erasing", -0.1),
        ("augment.random_resized_crop", [0.5]),
        ("augment.random_resized_crop", [0.9, 0.5]),
        ("augment.random_resized_crop", [0, 1]),
        ("augment.auto_augment", "rand-x7"),
        ("augment.auto_augment", "nonsense"),
        ("augment.auto_augment", 7),
    ],
)
def test_bad_value(key, value):
    refused(key, **{key.replace(".", "__"): value})


def test_message_says_what_would_be_right():
    assert "between 10 and 349" in refused("test_images", test_images=355)
    assert "one of digits, cifar10" in refused("name", name="mnist")


def test_root_not_given():
    assert "dataset.root=???: expected a folder with train/<class>/" in refused(
        "root", "image_folder"
    )


def test_key_left_out_of_a_users_own_config():
    cfg = load_cfg("digits")
    OmegaConf.set_struct(cfg, False)
    del cfg.train_images
    with pytest.raises(UserError, match="dataset.train_images="):
        check_options(cfg)


def no_folder(root):
    shutil.rmtree(root)
    return "no such folder"


def empty_folder(root):
    shutil.rmtree(root)
    root.mkdir()
    return "has no train/"


def no_test(root):
    shutil.rmtree(root / "test")
    return "has no test/ or val/"


def empty_train(root):
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    return "train/ holds no class folders"


def empty_class(root):
    (root / "train" / "ape").mkdir()
    return "train/ape/ holds no images"


def no_images(root):
    for path in (root / "test").rglob("*.*"):
        path.rename(path.with_suffix(".txt"))
    return "test/ holds no images (.jpg, .jpeg, .png"


def one_class(root):
    shutil.rmtree(root / "train" / "cat")
    return "one class"


def unknown_class(root):
    write_image(root / "test" / "emu" / "a.png", 70)
    return "the class 'emu' is in test/ and not in train/"


def unknown_val_class(root):
    write_image(root / "val" / "emu" / "a.png", 70)
    return "the class 'emu' is in val/ and not in train/"


@pytest.mark.parametrize(
    "damage",
    [
        no_folder,
        empty_folder,
        no_test,
        empty_train,
        empty_class,
        no_images,
        one_class,
        unknown_class,
        unknown_val_class,
    ],
)
def test_bad_folder(folder, damage):
    expected = damage(folder)
    message = refused("root", "image_folder", root=str(folder), image_size=32)
    assert expected in message and str(folder) in message


def test_class_with_one_image_cannot_be_split(folder):
    write_image(folder / "train" / "emu" / "a.png", 70)
    message = refused("val_fraction", "image_folder", root=str(folder), image_size=32)
    assert "'emu' has 1 image" in message


def test_more_images_than_there_are(folder):
    write_image(folder / "val" / "emu" / "a.png", 70)
    write_image(folder / "train" / "emu" / "a.png", 71)
    message = refused("val_images", "image_folder", root=str(folder), image_size=32, val_images=64)
    assert "at most 1" in message


def test_hidden_folders_are_no_classes(folder):
    write_image(folder / "train" / ".ipynb_checkpoints" / "a.png", 70)
    data = load_data("image_folder", root=str(folder), image_size=32)
    assert data.class_names == ["cat", "dog"]


def test_a_class_without_test_images_is_told(folder, caplog):
    load_data("image_folder", root=str(folder), image_size=32)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    shutil.rmtree(folder / "test" / "cat")
    load_data("image_folder", root=str(folder), image_size=32)
    (told,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "test split" in told.getMessage() and "cat" in told.getMessage()


def test_class_that_would_lose_every_training_image(folder):
    for index in range(2):
        write_image(folder / "train" / "emu" / f"{index}.png", 70 + index)
    message = refused(
        "train_images", "image_folder", root=str(folder), image_size=32, train_images=4
    )
    assert "leaves no training image of the class 'emu'" in message


@pytest.mark.parametrize("size", [(32, 32), (200, 200)])  # read in turn, and in threads
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_truncated_image_is_named(folder, part, suffix, cache, size):
    path = folder / part / "dog" / f"half.{suffix}"
    write_image(path, 80, size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    cfg = {"root": str(folder), "image_size": 32, "cache": cache}
    message = refused("root", "image_folder", **cfg)
    assert f"the image {part}/dog/half.{suffix} cannot be read" in message


@pytest.mark.parametrize("cache", [True, False])
def test_files_that_are_no_images_are_counted(folder, cache):
    (folder / "train" / "cat" / "note.png").write_text("not an image")
    (folder / "train" / "cat" / "void.jpg").touch()
    (folder / "train" / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
    message = refused("root", "image_folder", root=str(folder), image_size=32, cache=cache)
    assert "first of 3 such files" in message and message.count(str(folder)) == 1


def test_unverified_image_is_named_when_it_is_read(folder):
    (folder / "test" / "cat" / "00.png").write_text("not an image")
    data = load_data("image_folder", root=str(folder), image_size=32, verify=False)
    with pytest.raises(UserError, match="the image test/cat/00.png cannot be read"):
        next(iter(data.test_dataloader()))


@pytest.mark.parametrize("images", [0, 1151])
def test_too_many_calibration_images(images):
    with pytest.raises(UserError, match="between 1 and 1150"):
        load_data("digits").calibration_dataloader(images)


@pytest.mark.parametrize("path", sorted(DATASETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path: Path):
    cfg = load_cfg(path.stem)
    assert cfg.name == path.stem
    if cfg.name in ("image_folder", "imagenet"):
        cfg.root = "anywhere"
    shared, augment = set(load_cfg("cifar10")) - {"download"}, set(load_cfg("cifar10").augment)
    own = {
        "digits": {"test_fraction"},
        "image_folder": {"cache", "verify"},
        "imagenet": {"cache", "verify"},
        "cifar10_dvs": {"frames", "cache", "test_fraction"},
        "dvs128_gesture": {"frames", "cache"},
        "n_mnist": {"frames", "cache"},
    }
    if cfg.name in EVENT_DATASETS:
        cfg.frames = 4
        shared, augment = shared - {"crop_pct"}, {"crop_padding", "hflip"}
    if cfg.name == "imagenet":
        augment = augment | {"repeats"}
    check_options(cfg)
    assert set(cfg) == shared | own.get(cfg.name, {"download"})
    assert set(cfg.augment) == augment
