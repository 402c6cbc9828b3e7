"""Of which recordings frames were made: they are wrong where a recording is another one now."""

from pathlib import Path
from typing import Any

from psvit.errors import UserError
from psvit.files import read_json, write_json

# in the dataset's folder, the recordings as arrays
RAW = "events_np"
# beside frames, the bytes of every recording that they were made of
SIZES = "recordings.json"


def note_recordings(root: Path, frames: Path) -> None:
    """Leave in a folder of frames what ``check_same_recordings`` compares."""
    write_json(frames / SIZES, _sizes(root))


def check_same_recordings(root: Path, frames: Path) -> None:
    """Raise a UserError where frames are missing, or of recordings that are gone or replaced."""
    sizes = _sizes(root)
    if _noted(frames, sizes) != sizes or sizes.keys() != _places(frames):
        raise UserError(
            "dataset.root",
            root,
            f"{frames.name}/ does not hold the recordings of {RAW}/; remove {frames.name}/, and it "
            "is made again",
        )


def _noted(frames: Path, sizes: dict[str, int]) -> Any:
    """What was noted; of frames that older versions made, ``sizes``."""
    try:
        return read_json(frames / SIZES)
    except FileNotFoundError:
        return sizes
    except ValueError:  # damaged
        return None


def _sizes(root: Path) -> dict[str, int]:
    folder = root / RAW
    return {place: (folder / place).stat().st_size for place in sorted(_places(folder))}


def _places(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.npz")}
