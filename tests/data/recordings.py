"""Tiny event datasets in the published file formats, written from the formats' descriptions.

An event is (t in microseconds, x, y, polarity), as spikingjelly is to read it.
"""

import hashlib
import shutil
import struct
import zipfile

import numpy as np

from psvit.data.events import LAYOUTS

# options that go with so few recordings
TINY = {"frames": 3, "val_fraction": 0.4}
SIDE = {"cifar10_dvs": 128, "dvs128_gesture": 128, "n_mnist": 34}
CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def random_events(seed, side, start=0, count=20):
    """Sorted by time; a few pixels only, so that some have several events."""
    rng = np.random.default_rng(seed)
    times = start + np.sort(rng.integers(0, 100_000, count))
    pixels = rng.integers(0, side, (4, 2))[rng.integers(0, 4, count)]
    polarities = rng.integers(0, 2, count)
    return [
        (int(t), int(x), int(y), int(p))
        for t, (x, y), p in zip(times, pixels, polarities, strict=True)
    ]


def write_bin(path, events):
    """N-MNIST: 5 bytes an event: x, y, polarity with 7 bits of the time, 16 bits of the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"".join(bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for t, x, y, p in events)
    )


def write_aedat2(path, events):
    """CIFAR10-DVS: big-endian address and time. The camera lay on its side: spikingjelly turns the
    picture, and calls a set polarity bit 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = b"".join(
        struct.pack(">II", (127 - x) << 8 | (127 - y) << 1 | 1 - p, t) for t, x, y, p in events
    )
    path.write_bytes(b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n" + body)


def write_aedat3(path, events):
    """DVS128 Gesture: little-endian packets with a head of 28 bytes; a packet that holds no events
    of pixels lies between."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def packet(kind, words):
        head = struct.pack("<hhiiiiii", kind, 1, 8, 4, 0, len(words), len(words), len(words))
        return head + b"".join(struct.pack("<II", *word) for word in words)

    words = [(x << 17 | y << 2 | p << 1 | 1, t) for t, x, y, p in events]
    half = len(words) // 2
    path.write_bytes(
        b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
        + packet(1, words[:half])
        + packet(0, [(1, 7), (3, 8)])
        + packet(1, words[half:])
    )


def write_dataset(name, root, train=3, test=2):
    """Unpacked archives under ``root/extract``: ``train`` recordings of each class, ``test`` too.

    Returns:
        Recordings by (part, class folder, file stem); CIFAR10-DVS has the one part "".
    """
    write = {"cifar10_dvs": _cifar10_dvs, "dvs128_gesture": _gestures, "n_mnist": _n_mnist}[name]
    return write(root / "extract", train, test)


def _cifar10_dvs(folder, train, test):
    written = {}
    for name in CIFAR_CLASSES:
        for index in range(train + test):
            stem = f"cifar10_{name}_{index}"
            events = random_events(len(written), 128)
            write_aedat2(folder / name / f"{stem}.aedat", events)
            written["", name, stem] = events
    return written


def _n_mnist(folder, train, test):
    written = {}
    for part, count in (("train", train), ("test", test)):
        for digit in range(10):
            for _ in range(count):
                stem = f"{len(written):05d}"
                events = random_events(len(written), 34)
                write_bin(folder / part.capitalize() / str(digit) / f"{stem}.bin", events)
                written[part, str(digit), stem] = events
    return written


def _gestures(folder, train, test):
    """A file is a user who makes all gestures one after the other, as the CSV beside it tells."""
    folder /= "DvsGesture"
    written = {}
    for part, users in (("train", range(train)), ("test", range(train, train + test))):
        names = []
        for user in users:
            name = f"user{user:02d}_led"
            names.append(f"{name}.aedat\n")
            lines, recording = ["class,startTime_usec,endTime_usec\n"], []
            for gesture in range(11):
                start = 1_000_000 * (gesture + 1)
                events = random_events(len(written), 128, start)
                lines.append(f"{gesture + 1},{start},{start + 100_000}\n")
                written[part, str(gesture), f"{name}_0"] = events
                # between two gestures, what belongs to none
                recording += [*events, (start + 500_000, 5, 5, 1)]
            write_aedat3(folder / f"{name}.aedat", recording)
            (folder / f"{name}_labels.csv").write_text("".join(lines))
        (folder / f"trials_to_{part}.txt").write_text("".join(names))
    return written


def frames_of(events, frames, side):
    """Events counted by hand: ``[T, 2, side, side]``, the frames equally long in events."""
    counts = np.zeros((frames, 2, side, side), dtype=np.float32)
    share = len(events) // frames
    for index, (_, x, y, p) in enumerate(events):
        counts[min(index // share, frames - 1), p, y, x] += 1
    return counts


def recording_of(path):
    """The key under which ``write_dataset`` tells the events of a file."""
    part = path.parent.parent.name
    return part if part in ("train", "test") else "", path.parent.name, path.stem


def zip_archives(root, monkeypatch):
    """The tiny N-MNIST as its two archives, of which spikingjelly is told the checksums."""
    (root / "download").mkdir()
    entries = []
    for name in ("Train", "Test"):
        path = root / "download" / f"{name}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((root / "extract" / name).rglob("*.bin")):
                archive.write(file, file.relative_to(root / "extract"))
        entries.append((path.name, "somewhere", hashlib.md5(path.read_bytes()).hexdigest()))
    shutil.rmtree(root / "extract")
    monkeypatch.setattr(LAYOUTS["n_mnist"].reader, "resource_url_md5", lambda: entries)
