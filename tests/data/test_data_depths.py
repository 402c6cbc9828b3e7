"""Images of more than 8 bits a value, against whole-number arithmetic on what was written."""

import struct

import numpy as np
import pytest
from data_files import load_data
from PIL import Image

from psvit.data.files import decode
from psvit.errors import UserError

VALUES = np.arange(32 * 32).reshape(32, 32) * 64
VALUES[0, 0] = 65535
LINES = {
    "float.tiff": "it has 32 bits a value",
    "long.tiff": "it has 32 bits a value",
    "signed.tiff": "it has values below 0",
}


def write_tiff(path, values, bits, sample_format, kind):
    """A grey TIFF as its specification lays it out; ``kind`` is numpy's, of the bytes."""
    height, width = values.shape
    data = values.astype(kind).tobytes()
    if bits == 12:
        # two values in three bytes, the first one's upper bits first
        pairs = values.reshape(-1, 2)
        data = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in pairs)
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8 + 2 + 12 * 10 + 4}
    tags |= {277: 1, 278: height, 279: len(data), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(head + data)


def write(path):
    """``VALUES`` in the format that the name says."""
    if path.name == "packed.tiff":
        write_tiff(path, VALUES // 16, 12, 1, "<u2")
    elif path.name == "signed.tiff":
        write_tiff(path, VALUES - 32768, 16, 2, "<i2")
    elif path.name == "long.tiff":
        write_tiff(path, VALUES, 32, 1, "<u4")
    elif path.name == "float.tiff":
        write_tiff(path, VALUES / 65535, 32, 3, "<f4")
    else:
        kind = ">u2" if path.name == "motorola.tiff" else "<u2"
        Image.fromarray(VALUES.astype(kind)).save(path)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("grey.png", "I;16"),
        ("grey.tiff", "I;16"),
        ("motorola.tiff", "I;16B"),
        ("grey.pgm", "I"),
        ("packed.tiff", "I;16"),
    ],
)
def test_sixteen_bits_become_the_upper_eight(tmp_path, name, mode):
    write(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode == mode
    for channel in decode(tmp_path / name):
        np.testing.assert_array_equal(channel, VALUES // 256)


@pytest.mark.parametrize("cache", [True, False])
def test_a_network_sees_them_as_it_sees_eight_bits(folder, cache):
    for path in (folder / "test" / "cat").iterdir():
        path.unlink()
    write(folder / "test" / "cat" / "a.png")
    Image.fromarray((VALUES // 256).astype(np.uint8)).save(folder / "test" / "cat" / "b.png")
    data = load_data("image_folder", root=str(folder), image_size=32, cache=cache)
    deep, plain = data.test[0][0], data.test[1][0]
    assert deep.equal(plain) and deep.std() > 0.1


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", LINES)
def test_values_without_a_known_white_are_refused(folder, name, cache):
    write(folder / "train" / "cat" / name)
    with pytest.raises(UserError) as caught:
        load_data("image_folder", root=str(folder), image_size=32, cache=cache)
    assert f"the image train/cat/{name} cannot be read ({LINES[name]}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unverified_ones_are_refused_when_they_are_read(folder):
    write(folder / "test" / "cat" / "float.tiff")
    data = load_data("image_folder", root=str(folder), image_size=32, verify=False)
    with pytest.raises(UserError, match="the image test/cat/float.tiff cannot be read"):
        list(data.test_dataloader())
