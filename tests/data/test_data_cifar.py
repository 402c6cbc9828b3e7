"""CIFAR in its published file format, a few images of it, through torchvision's own checks."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from data_files import load_data
from torchvision import datasets

from psvit.errors import UserError

FORMATS = {
    "cifar10": (datasets.CIFAR10, "labels", "label_names", ["a", "b"], "cifar-10-batches-py"),
    "cifar100": (
        datasets.CIFAR100,
        "fine_labels",
        "fine_label_names",
        ["a", "b"],
        "cifar-100-python",
    ),
}


def write_cifar(monkeypatch, root, name):
    """Writes 40 training and 10 test images, and tells torchvision their checksums."""
    dataset, label_key, names_key, names, base_folder = FORMATS[name]
    folder = root / base_folder
    folder.mkdir(parents=True)

    def write(filename, content):
        (folder / filename).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / filename).read_bytes()).hexdigest()

    rng = np.random.default_rng(0)
    written = {}
    for part, count in (("train", 40), ("test", 10)):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = [index % 2 for index in range(count)]
        checksum = write(f"{part}_batch", {"data": pixels, label_key: labels})
        monkeypatch.setattr(dataset, f"{part}_list", [[f"{part}_batch", checksum]])
        written[part] = pixels.reshape(count, 3, 32, 32), labels
    checksum = write("meta", {names_key: names})
    meta = {"filename": "meta", "key": names_key, "md5": checksum}
    monkeypatch.setattr(dataset, "meta", meta)
    return written


@pytest.mark.parametrize("name", FORMATS)
def test_published_format(monkeypatch, tmp_path, name):
    written = write_cifar(monkeypatch, tmp_path, name)
    data = load_data(name, root=str(tmp_path), mean=[0, 0, 0], std=[1, 1, 1])
    assert data.class_names == ["a", "b"]
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 10)
    images, labels = next(iter(data.test_dataloader()))
    pixels, expected = written["test"]
    assert torch.equal((images * 255).round().to(torch.uint8), torch.from_numpy(pixels))
    assert labels.tolist() == expected


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_failed_download_is_one_line(monkeypatch, tmp_path, name, download):
    # A port that nothing listens on: the download fails as it does without a network.
    monkeypatch.setattr(FORMATS[name][0], "url", "http://127.0.0.1:9/cifar.tar.gz")
    root = tmp_path / "data" / "cifar"
    with pytest.raises(UserError) as caught:
        load_data(name, root=str(root), download=download)
    message = str(caught.value)
    assert message.startswith(f"dataset.root={root}: ") and "\n" not in message
    assert not list(tmp_path.iterdir())
    assert "dataset.download=true" in message and "dataset=image_folder" in message


def test_damaged_file_is_refused(monkeypatch, tmp_path):
    write_cifar(monkeypatch, tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "train_batch").write_bytes(b"damaged")
    with pytest.raises(UserError, match="dataset.root="):
        load_data("cifar10", root=str(tmp_path), download=False)
