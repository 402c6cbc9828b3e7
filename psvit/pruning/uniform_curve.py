"""The whole network pruned at one ratio after the other (PSViT, step 1)."""

import logging
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from psvit.files import write_csv
from psvit.measure.accuracy import evaluate
from psvit.measure.footprint import memory_mb, memory_saving, parameters
from psvit.processes import from_first
from psvit.pruning import allocation
from psvit.pruning.ranking import Ranking
from psvit.pruning.surgery import prune

_log = logging.getLogger(__name__)


def measure_uniform(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    ratios: Sequence[float],
    ranking: Ranking,
    path: Path,
    device: torch.device,
) -> None:
    """Size and accuracy with every group of the ranking pruned at each ratio -> a CSV.

    Args:
        network: the base network.
        batches: (images, labels) of the validation split.
        ratios: the grid; ratio 0, the base network, is put before it.
        ranking: which channels a ratio removes, and from which groups.
        path: the CSV. Rows that a run which was killed left there are not measured again.
        device: where to run.
    """
    # one process's word: only the first one's folder has what was left
    rows = from_first(_whole_rows(path) if path.exists() else [])
    for ratio in [0.0, *ratios][len(rows) :]:
        pruned = prune(network, allocation.uniform(ranking, ratio))
        tally = evaluate(pruned, batches, device)
        count = parameters(pruned)
        rows.append(
            {
                "ratio": ratio,
                "parameters": count,
                "memory_mb": memory_mb(pruned),
                "memory_saving": memory_saving(count, parameters(network)),
                "images": tally.images,
                "top1": tally.top1,
                "top1_stderr": tally.top1_stderr,
                "loss": tally.loss,
            }
        )
        write_csv(path, pd.DataFrame(rows))
        _log.info(
            "uniform %.2f: %.2f %% of parameters saved, validation top-1 %.2f %%",
            ratio,
            100 * rows[-1]["memory_saving"],
            tally.top1,
        )


def _whole_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV; a last line without its end was cut, and its last number may be too."""
    lines = path.read_text().splitlines(keepends=True)
    whole = "".join(line for line in lines if line.endswith("\n"))
    if not whole:
        return []
    return pd.read_csv(StringIO(whole), float_precision="round_trip").to_dict("records")
