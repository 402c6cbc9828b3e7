"""What a cached result depends on, as plain values and as a hash of them.

Neither torch nor the data is imported before a fingerprint needs them: listing the cache is quick.
"""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from omegaconf import Container, OmegaConf

if TYPE_CHECKING:
    from psvit.data import ImageData

HASH_DIGITS = 20
# what they compute is part of every stage
LIBRARIES = ("torch", "torchvision", "timm", "spikingjelly", "lightning")
# options of a dataset that say where and how its files are read, not what they are
READING = ("root", "download", "verify", "cache")


def canonical(value: Any, where: str = "key") -> Any:
    """``value`` as dicts sorted by name, lists, text, numbers, booleans and None.

    What a config may write in two ways comes out alike: OmegaConf containers (resolved) as plain
    ones, tuples as lists, paths as text, and 1.0 as 1.

    Args:
        value: a config, or what one may hold.
        where: the value's name, for the message.

    Raises:
        TypeError: naming the value that has no plain form, such as a tensor.
        omegaconf.errors.MissingMandatoryValue: if a config holds ``???``.
    """
    if isinstance(value, Container):
        value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    if isinstance(value, Mapping):
        unnamed = [name for name in value if type(name) is not str]
        if unnamed:
            raise TypeError(f"{where}: names are text, not {unnamed[0]!r}")
        return {name: canonical(value[name], f"{where}.{name}") for name in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(entry, f"{where}[{place}]") for place, entry in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted((canonical(entry, where) for entry in value), key=json.dumps)
    if isinstance(value, PurePath):
        return value.as_posix()
    if value is None or type(value) in (str, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return int(number) if number.is_integer() else number
    raise TypeError(f"{where}: a {type(value).__name__} cannot be part of a key: {value!r}")


def key_hash(key: Mapping[str, Any]) -> str:
    """The name of an entry: ``HASH_DIGITS`` hexadecimal digits of the SHA-256 of the key."""
    text = json.dumps(canonical(key), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


@functools.cache
def code_version(*modules: str) -> str:
    """SHA-256 of the source of packages and modules, and of the versions of ``LIBRARIES``.

    Comments and layout do not count, nor does the order of the names. What the modules import does
    not count either unless it is named: name all that the stage depends on.

    The first answer holds for the whole process: a long run goes on with the code that it has
    imported. Call it early.

    Args:
        modules: dotted names, such as ``psvit.models``; a package stands for all it holds.

    Raises:
        ModuleNotFoundError: if there is no such module.
    """
    sources = {name: file for module in modules for name, file in _sources(module)}
    total = hashlib.sha256()
    for name in sorted(sources):
        content = hashlib.sha256(_meaning(sources[name].read_bytes())).hexdigest()
        total.update(f"{name} {content}\n".encode())
    for library in LIBRARIES:
        total.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    return total.hexdigest()


def _meaning(source: bytes) -> bytes:
    """A source file without comments and layout."""
    try:
        return ast.dump(ast.parse(source)).encode()
    except (SyntaxError, ValueError):
        return source


def _sources(module: str) -> Iterator[tuple[str, Path]]:
    """The files of a module, each under a name that does not tell where it is installed."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"no module named {module!r}", name=module)
    top = module.replace(".", "/")
    if spec.submodule_search_locations is None:
        yield f"{top}.py", Path(str(spec.origin))
        return
    for folder in spec.submodule_search_locations:
        for path in Path(folder).rglob("*.py"):
            yield f"{top}/{path.relative_to(folder).as_posix()}", path


def data_fingerprint(data: "ImageData") -> str:
    """SHA-256 of who is in which split, with which label, and of how images are transformed.

    Of images in memory it takes every byte; of files their names under ``dataset.root``, sizes and
    times of change. The options of the dataset count all but ``READING``. The run's seed, in whose
    order training images come, does not: it belongs in the key where it matters.

    Raises:
        UserError: if a file is no longer there.
    """
    options = canonical(data.cfg)
    facts = {
        "options": {name: value for name, value in options.items() if name not in READING},
        "classes": list(data.class_names),
    }
    total = hashlib.sha256(json.dumps(canonical(facts), sort_keys=True).encode())
    for name in ("train", "val", "test"):
        part = getattr(data, name)
        for field in (name.encode(), _bytes_of(part.labels), *_images(part.images, part.root)):
            # hashed one by one: where a field ends is part of what is hashed
            total.update(hashlib.sha256(field).digest())
    return total.hexdigest()


def tensors_fingerprint(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of named tensors: a network's ``state_dict``, the scores of its channels."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        for field in (f"{name} {tensor.dtype}{tuple(tensor.shape)}".encode(), _bytes_of(tensor)):
            total.update(hashlib.sha256(field).digest())
    return total.hexdigest()


def _images(images: Any, root: Path) -> Iterator[bytes | memoryview]:
    from torch import Tensor

    from psvit.data.files import unreadable

    for image in [images] if isinstance(images, Tensor) else images:
        if isinstance(image, Tensor):
            yield f"{image.dtype}{tuple(image.shape)}".encode()
            yield _bytes_of(image)
            continue
        try:
            status = image.stat()
        except OSError as error:
            raise unreadable(image, error, root) from error
        place = image.relative_to(root).as_posix()
        yield f"{place}\n{status.st_size}\n{status.st_mtime_ns}".encode()


def _bytes_of(tensor: Any) -> memoryview:
    from torch import uint8

    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(uint8).numpy())
