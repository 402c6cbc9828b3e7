"""Recordings of event cameras as frames, read by spikingjelly.

T frames, of H×W pixels of the sensor; a recording is the file of one sample.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from torchvision.datasets import DatasetFolder
from torchvision.datasets.utils import check_integrity

from psvit.data.files import garbage_kept, read_all
from psvit.data.labelled import Labelled, Source
from psvit.data.recordings import RAW, check_same_recordings, note_recordings
from psvit.errors import UserError


def _import_datasets() -> ModuleType:
    """spikingjelly's datasets, also where torchaudio cannot be imported.

    spikingjelly imports torchaudio for its speech dataset. torchaudio's last releases refuse a
    newer torch, and would take the event datasets with them.
    """
    name = "spikingjelly.datasets"
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):
        sys.modules["torchaudio"] = ModuleType("torchaudio")
        try:
            return importlib.import_module(name)
        finally:
            del sys.modules["torchaudio"]


datasets = _import_datasets()

SPLIT_BY = "number"
DIGITS = tuple("0123456789")
# gesture_mapping.csv of the dataset; spikingjelly's labels begin at 0
GESTURES = (
    "hand_clapping",
    "right_hand_wave",
    "left_hand_wave",
    "right_arm_clockwise",
    "right_arm_counter_clockwise",
    "left_arm_clockwise",
    "left_arm_counter_clockwise",
    "arm_roll",
    "air_drums",
    "air_guitar",
    "other_gestures",
)


class Layout(NamedTuple):
    """How a dataset lies on the disk.

    Attributes:
        reader: spikingjelly's class.
        class_names: in the order of the labels.
        folders: the folder of each class, in the same order.
        parts: the folders of the training and the test recordings; one, where they are not split.
        unpacked: what the archives hold, for messages.
    """

    reader: Any
    class_names: tuple[str, ...]
    folders: tuple[str, ...]
    parts: tuple[str, ...]
    unpacked: str


LAYOUTS = {
    "cifar10_dvs": Layout(
        datasets.CIFAR10DVS,
        datasets.CIFAR10DVS_CLASS_NAMES,
        datasets.CIFAR10DVS_CLASS_NAMES,
        ("",),
        "<class>/*.aedat",
    ),
    "dvs128_gesture": Layout(
        datasets.DVS128Gesture,
        GESTURES,
        tuple(str(i) for i in range(11)),
        ("train", "test"),
        "DvsGesture/ with *.aedat, *_labels.csv, trials_to_train.txt and trials_to_test.txt",
    ),
    "n_mnist": Layout(
        datasets.NMNIST,
        DIGITS,
        DIGITS,
        ("train", "test"),
        "Train/<digit>/*.bin and Test/<digit>/*.bin",
    ),
}


def load_frames(path: Path) -> Tensor:
    """The frames of a recording, float32 ``[T, 2, H, W]``: the events at each pixel, counted.

    The channels are polarity 0 and 1 as spikingjelly reads them (for CIFAR10-DVS it inverts the
    bit of the file).
    """
    return torch.from_numpy(datasets.load_npz_frames(path))


def read_events(cfg: DictConfig, root: Path) -> Source:
    """Lists the recordings of an event dataset, cut into ``cfg.frames`` frames.

    Every frame of a recording holds equally many events (the last one, those left over as well).
    The frames are made once, beside the recordings: ``frames_number_T_split_by_number/``. Nothing
    is downloaded.

    Raises:
        UserError: if the recordings are not there or cannot be read, or hold too few events.
    """
    layout = LAYOUTS[cfg.name]
    frames = root / f"frames_number_{cfg.frames}_split_by_{SPLIT_BY}"
    _check_finished(root, root / RAW, frames)
    if not (root / RAW).is_dir():
        _make_raw(layout, root)
    _check_classes(layout, root)
    if not frames.is_dir():
        _make_frames(layout, root, frames, cfg.frames)
    check_same_recordings(root, frames)
    train, *test = (_list(layout, root, part, cfg.frames) for part in layout.parts)
    return Source(list(layout.class_names), train, None, test[0] if test else None, load_frames)


def _open(layout: Layout, root: Path, part: str, frames: int) -> DatasetFolder:
    """spikingjelly's dataset, which makes the frames where they are not there."""
    train = {"train": part == "train"} if part else {}
    return layout.reader(
        str(root), **train, data_type="frame", frames_number=frames, split_by=SPLIT_BY
    )


def _list(layout: Layout, root: Path, part: str, frames: int) -> Labelled:
    dataset = _open(layout, root, part, frames)
    # torchvision numbers the folders as text, so that gesture 10 would come before gesture 2
    labels = torch.tensor([layout.folders.index(c) for c in dataset.classes])[dataset.targets]
    return Labelled([Path(path) for path, _ in dataset.samples], labels)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Where to make ``folder``: it appears under its name when it is complete, or not at all."""
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
        made = Path(place) / folder.name
        yield made
        made.rename(folder)


def _make_raw(layout: Layout, root: Path) -> None:
    """Unpacks the archives and converts the recordings; each step where it is not yet done."""
    extract, download = root / "extract", root / "download"
    step = "unpacked"
    try:
        if not extract.is_dir():
            _check_archives(layout, root)
            with _whole(extract) as folder:
                folder.mkdir()
                layout.reader.extract_downloaded_files(download, folder)
        step = "converted"
        with _whole(root / RAW) as folder:
            folder.mkdir()
            layout.reader.create_raw_from_extracted(extract, folder)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  decoders fail in any way on a broken file
        source, expected = (
            (extract, layout.unpacked) if step == "converted" else (download, "the archives alone")
        )
        raise UserError(
            "dataset.root",
            root,
            f"{source.name}/ could not be {step} ({_reason(error)}); it should hold {expected}",
        ) from error


def _check_archives(layout: Layout, root: Path) -> None:
    """Asks for archives that are not there: spikingjelly would download or delete them."""
    archives = [
        entry for entry in layout.reader.resource_url_md5() if entry[0].endswith((".zip", ".gz"))
    ]
    missing = [entry for entry in archives if not (root / "download" / entry[0]).is_file()]
    if missing:
        name, url, _ = missing[0]
        found = f"has no download/{name}" if root.is_dir() else "no such folder"
        raise UserError(
            "dataset.root",
            root,
            f"{found}; put {', '.join(name for name, _, _ in archives)} into its folder download/ "
            f"({name} is from {url}), or their content into extract/: {layout.unpacked}",
        )
    for name, _, md5 in archives:
        if not check_integrity(root / "download" / name, md5):
            raise UserError(
                "dataset.root",
                root,
                f"download/{name} is damaged: its MD5 is not {md5}; get it again",
            )


def _check_finished(root: Path, *folders: Path) -> None:
    """Refuses what spikingjelly, elsewhere, began to make and did not finish."""
    for folder in folders:
        marker = folder.with_name(f"{folder.name}.building")
        if marker.exists():
            raise UserError(
                "dataset.root",
                root,
                f"{folder.name}/ is unfinished; if nothing is making it now, remove it and "
                f"{marker.name}",
            )


def _check_classes(layout: Layout, root: Path) -> None:
    for part in layout.parts:
        where = f"{RAW}/{part}".rstrip("/")
        found = {path.name for path in (root / where).glob("*/")}
        unknown = sorted(found - set(layout.folders))
        if unknown:
            raise UserError(
                "dataset.root",
                root,
                f"{where}/{unknown[0]}/ is no class of this dataset ({', '.join(layout.folders)}); "
                "remove it",
            )
        for folder in layout.folders:
            if next((root / where / folder).glob("*.npz"), None) is None:
                raise UserError(
                    "dataset.root",
                    root,
                    f"{where}/{folder}/ holds no recordings; complete extract/ "
                    f"({layout.unpacked}) and remove {RAW}/",
                )


@garbage_kept()  # both we and spikingjelly read recordings with threads
def _make_frames(layout: Layout, root: Path, folder: Path, frames: int) -> None:
    height, width = layout.reader.get_H_W()

    def count(path: Path) -> int:
        """The events of a recording."""
        with np.load(path) as events:
            t, x, y, p = (events[key] for key in "txyp")
        if not len(t) == len(x) == len(y) == len(p):
            raise ValueError("it ends in the middle of an event")
        if len(t) and not (0 <= x.min() <= x.max() < width and 0 <= y.min() <= y.max() < height):
            raise ValueError(f"it has events outside of {width}x{height} pixels")
        return len(t)

    paths = sorted((root / RAW).rglob("*.npz"))
    events, path = min(zip(read_all(paths, count, root, "recording"), paths, strict=True))
    if events < frames:
        raise UserError(
            "dataset.frames",
            frames,
            f"at most {events}: {path.relative_to(root)} has no more events (dataset.root={root})",
        )
    try:
        with _whole(folder) as made:
            # spikingjelly finds the recordings beside the frames that it makes
            (made.parent / RAW).symlink_to((root / RAW).resolve())
            _open(layout, made.parent, layout.parts[0], frames)
            note_recordings(root, made)
    except OSError as error:
        raise UserError(
            "dataset.root", root, f"{folder.name}/ could not be made ({_reason(error)})"
        ) from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
