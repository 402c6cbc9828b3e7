"""Which files of a folder are its images."""

import os
from functools import cache
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

READABLE = ", ".join(IMG_EXTENSIONS)


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    return name.lower().endswith(IMG_EXTENSIONS)


@cache
def _other_types() -> frozenset[str]:
    """The extensions of images that Pillow can open and that are not read."""
    Image.init()
    can_open = {
        extension
        for extension, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and Image.MIME.get(kind, "").startswith("image/")
    }
    return frozenset(can_open.difference(IMG_EXTENSIONS))


def other_type(name: str) -> str | None:
    """The extension of a file that holds an image of a type that is not read; else None."""
    extension = os.path.splitext(name)[1].lower()
    return extension if extension in _other_types() else None


def visible(folder: Path | str) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in ``folder``, sorted.

    Hidden ones are left out: editors and macOS keep copies and halves of images in them
    (.ipynb_checkpoints/, ._photo.jpg), and a copy would be split from its image.
    """
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                (folders if _is_folder(entry) else files).append(entry.name)
    return sorted(folders), sorted(files)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it says so
        return False


def walk(top: Path | str) -> list[tuple[str, list[str]]]:
    """Every folder from ``top`` down and the names of its files, sorted; nothing hidden.

    Links to folders are followed, unless they lead back into ``top``, to what holds it, or to what
    was read already: each folder is met once.

    Raises:
        OSError: if a folder cannot be read.
    """
    start = os.path.realpath(top)
    found, met, left = [], {start}, [(os.fspath(top), start)]
    while left:
        folder, real = left.pop()
        folders, files = visible(folder)
        found.append((folder, files))
        for name in folders:
            inner, place = os.path.join(folder, name), os.path.join(real, name)
            leads_back = False
            if os.path.islink(inner):
                place = os.path.realpath(inner)
                leads_back = os.path.commonpath([start, place]) in (start, place)
            if place not in met and not leads_back:
                met.add(place)
                left.append((inner, place))
    return sorted(found)
