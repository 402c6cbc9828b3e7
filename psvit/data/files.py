"""Reading image files, and other files that may be broken."""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from psvit.errors import UserError

THUMBNAIL_BYTES = 8192

log = logging.getLogger(__name__)
Result = TypeVar("Result")


def decode(path: Path) -> Tensor:
    """The image of a file, uint8 ``[3, height, width]``; grey and palette images become RGB, and
    16 bits a value the upper 8 of them."""
    with Image.open(path) as image:
        return pil_to_tensor(_eight_bits(image).convert("RGB"))


def verify(path: Path) -> None:
    """Decodes a file and forgets it: ``Image.verify`` does not see that a JPEG is truncated."""
    with Image.open(path) as image:
        # An eighth of the resolution reads every byte of a JPEG at a fraction of the cost; the
        # other formats ignore the request.
        image.draft(None, (1, 1))
        image.load()
        _eight_bits(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits a value, as Pillow keeps colors; of more in grey it would clip all
    above 255 to white.

    Raises:
        ValueError: if nothing tells which value is white.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    # PNG and PGM have 16 here; a TIFF may have 12
    bits = getattr(image, "tag_v2", {}).get(BITSPERSAMPLE, (16,))[0]
    if image.mode == "F" or bits > 16:
        raise ValueError("it has 32 bits a value, of which none is known to be white; save 8 or 16")
    values = np.asarray(image)
    if values.min() < 0:
        raise ValueError("it has values below 0; save it with 8 or 16 bits without a sign")
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def read_all(
    paths: list[Path], read: Callable[[Path], Result], root: Path, kind: str = "image"
) -> list[Result]:
    """Applies ``read`` to every file; ``kind`` is what messages call one.

    Raises:
        UserError: naming the first file that cannot be read, and how many there are.
    """

    def attempt(path: Path) -> Result | Exception:
        try:
            return read(path)
        except Exception as error:  # noqa: BLE001  decoders fail in any way on a broken file
            return error

    log.info("reading %d %ss under %s", len(paths), kind, root)
    # Decoders release the interpreter lock, yet on thumbnails threads take twice the time: they
    # mostly wait for the lock.
    sizes = [path.stat().st_size for path in paths[:100] if path.exists()]
    if max(sizes, default=0) < THUMBNAIL_BYTES:
        results = [attempt(path) for path in paths]
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(attempt, paths))
    bad = [(p, r) for p, r in zip(paths, results, strict=True) if isinstance(r, Exception)]
    if bad:
        raise unreadable(*bad[0], root, kind, len(bad))
    return [result for result in results if not isinstance(result, Exception)]


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Collects no garbage inside: for threads that read numpy's files.

    numpy parses the head of an array with ``ast``, and Python 3.11 counts the depth of that for all
    threads together (https://github.com/python/cpython/issues/106905). A collection in the middle
    of it can let another thread in, which reads a head as well, and the first ends with
    "SystemError: AST constructor recursion depth mismatch". Cyclic garbage of reading is little.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def unreadable(
    path: Path, error: Exception, root: Path, kind: str = "image", count: int = 1
) -> UserError:
    """The error for a file that cannot be read; ``count`` is the number of such files."""
    more = f" (the first of {count} such files)" if count > 1 else ""
    # Pillow's text repeats the path.
    reason = str(error).replace(str(path), path.name)
    return UserError(
        "dataset.root",
        root,
        f"the {kind} {path.relative_to(root)}{more} cannot be read ({reason}); "
        "replace it or remove it",
    )
