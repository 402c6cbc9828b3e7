"""``python -m psvit.export FOLDER...``: write FOLDER/model.onnx, check it, print a table."""

import argparse
import importlib.util
import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from psvit.errors import UserError, traceback_wanted
from psvit.export import check, logits_only, to_onnx
from psvit.export.check import Agreement, session
from psvit.export.images import choose_images
from psvit.files import write_whole
from psvit.inference import optimize_for_inference
from psvit.measure.footprint import parameters
from psvit.pruning import checkpoint

FILE = "model.onnx"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# images that are compared; batches that are timed
IMAGES, BATCHES = 32, (1, 32)
# repeats behind a first one; the fewer for networks that take longer than so many seconds
REPEATS, FEWEST, SECONDS = 9, 3, 60.0
OLDEST_OPSET = 18


class Exported(NamedTuple):
    """A network in both programs, and what its check found; None where it was left out."""

    folder: Path
    network: nn.Module
    session: Any
    images: Tensor
    found: Agreement | None


def main(arguments: list[str] | None = None) -> int:
    """Export every folder, then time all of them; return the exit status."""
    options = _parser().parse_args(arguments)
    # it tells of every conversion of operators
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        _check_options(options)
        exported = [export(Path(folder), options) for folder in options.folder]
        print()
        print(table(exported))
    except UserError as error:
        if traceback_wanted():
            raise
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m psvit.export", description=__doc__)
    parser.add_argument("folder", nargs="+", help="a saved network, such as RUN/base")
    parser.add_argument("--images", metavar="DIR", help="check with images of this folder")
    parser.add_argument("--batch-size", type=int, default=8, help="images of a batch in the check")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="difference of a logit")
    parser.add_argument("--no-check", action="store_true", help="do not compare with torch")
    parser.add_argument("--opset", type=int, help="version of ONNX's operators, from 18")
    parser.add_argument("--module", help="Python module that registers a network of your own")
    return parser


def _check_options(options: argparse.Namespace) -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError("export", "ONNX", f'needs {missing[0]}: pip install -e ".[export]"')
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if options.opset is not None and not OLDEST_OPSET <= options.opset <= newest:
        raise UserError("--opset", options.opset, f"expected {OLDEST_OPSET} to {newest}")
    if options.batch_size < 1:
        raise UserError("--batch-size", options.batch_size, "expected at least 1")
    if not (options.tolerance > 0 and math.isfinite(options.tolerance)):
        raise UserError("--tolerance", options.tolerance, "expected a number above 0")


def export(folder: Path, options: argparse.Namespace) -> Exported:
    """Write ``folder``/model.onnx if it answers as the network in torch does."""
    network, description = checkpoint.load(folder, "folder", options.module, "--module ")
    # the operators of its neurons are of single precision
    network.float().eval()
    count = max(IMAGES, options.batch_size)
    images, source = choose_images(description, count, options.images)
    # traced with another batch than those of the check
    traced = 3 if min(options.batch_size, len(images)) == 2 else 2
    model = to_onnx(network, images[:1].repeat_interleave(traced, 0), options.opset)
    found = None
    if not options.no_check:
        found = check(
            network, model, images, options.batch_size, options.tolerance, "folder", folder
        )
    model = logits_only(model)
    for key in ("sha256", "preprocessing", "classes"):
        if key in description:
            model.metadata_props.add(key=key, value=json.dumps(description[key]))
    exported = Exported(folder, network, session(model), images, found)
    write_whole(folder / FILE, lambda path: path.write_bytes(model.SerializeToString()))
    print(f"{folder / FILE}: {f'{found}; {source}' if found else f'not checked; {source}'}")
    return exported


def table(exported: Sequence[Exported]) -> str:
    """Size and latency of every network, torch beside onnxruntime, as aligned lines."""
    programs = ("torch", "onnxruntime")
    lines = [["network", "parameters", "MB", "agree"]]
    lines[0] += [f"{program} ms, B={batch}" for batch in BATCHES for program in programs]
    for each in exported:
        found = each.found
        lines.append([str(each.folder), f"{parameters(each.network):,}"])
        lines[-1] += [f"{(each.folder / FILE).stat().st_size / 1e6:.3f}"]
        lines[-1] += [f"{found.agree}/{found.images}" if found else "–"]
    repeats = []
    for batch in BATCHES:
        took = in_alternation([call for each in exported for call in _calls(each, batch)])
        repeats.append(f"{len(took[0])} repeats at B={batch}")
        cells = iter(map(_spread, took))
        for line in lines[1:]:
            line += [next(cells) for _ in programs]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    return "\n".join(rows) + (
        f"\n\nMB: of {FILE}, 10⁶ bytes. agree: images with the same logits, to the tolerance, and "
        "the same top-1.\n"
        f"ms of a batch of B: median (quartiles) of {' and '.join(repeats)}, all networks and "
        "programs in alternation,\n"
        f"on the CPU; torch {torch.__version__} and onnxruntime {version('onnxruntime')} with "
        f"{torch.get_num_threads()} thread(s) each."
    )


def _calls(exported: Exported, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same batch through torch and through onnxruntime."""
    images = exported.images
    # a folder may hold fewer images than the batch
    images = images[torch.arange(batch) % len(images)].contiguous()
    feed = {"images": images.numpy()}
    # as a run's own table is timed: onnxruntime optimises its copy, too
    fast = optimize_for_inference(exported.network, packed=True)
    return lambda: fast(images), lambda: exported.session.run(None, feed)


@torch.inference_mode()
def in_alternation(calls: Sequence[Callable[[], Any]]) -> list[list[float]]:
    """Seconds of each call, again and again by turns, so that all meet the machine alike."""
    took: list[list[float]] = [[] for _ in calls]
    began = time.perf_counter()
    # the first round warms up
    while len(took[0]) <= FEWEST or (
        len(took[0]) <= REPEATS and time.perf_counter() - began < SECONDS
    ):
        for call, seconds in zip(calls, took, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return [seconds[1:] for seconds in took]


def _spread(seconds: list[float]) -> str:
    quartiles = statistics.quantiles(seconds, n=4, method="inclusive")
    low, median, high = (1e3 * value for value in quartiles)
    return f"{median:.2f} ({low:.2f}–{high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
