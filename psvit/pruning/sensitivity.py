"""Sensitivity analysis: each channel group alone, at each ratio (PSViT, step 2).

A group belongs to one segment of the network's chain. For a batch the base network runs once and
leaves each segment's input; a candidate is masked in place and only the chain from its segment on
is run. Memory is one batch's segment inputs, whatever the number of groups.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from psvit.errors import UserError
from psvit.files import read_json, write_json, write_text
from psvit.measure.accuracy import Tally
from psvit.measure.footprint import memory_saving, parameters
from psvit.neurons import reset_state
from psvit.pruning.ranking import Ranking
from psvit.pruning.surgery import masked, pruned_parameters

COLUMNS = [
    "group",
    "kind",
    "size",
    "ratio",
    "removed",
    "parameters",
    "memory_saving",
    "images",
    "top1",
    "loss",
    "kl",
]


def grid_points(ranking: Ranking, ratios: Sequence[float]) -> list[tuple[str, float]]:
    """(group, ratio) for every ratio that prunes something; ratio 0 is the base network.

    Raises:
        UserError: a group is too narrow to lose a channel. It is refused, not called robust.
    """
    for group in ranking.groups.values():
        if any(ratios) and not ranking.units(group.name, max(ratios)):
            raise UserError(
                "pruning.protect",
                group.name,
                f"this group has {group.size} channels in {group.heads} heads and can lose none: "
                f"name it in pruning.protect, use fewer model.num_heads, or a smaller "
                f"pruning.round_to or pruning.min_keep",
            )
    return [
        (name, ratio) for name in ranking.groups for ratio in dict.fromkeys(ratios) if ratio > 0.0
    ]


def measure_sensitivity(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    ratios: Sequence[float],
    ranking: Ranking,
    path: Path,
    device: torch.device,
    on_row: Callable[[int, int], None] = lambda done, total: None,
    reference: nn.Module | None = None,
) -> pd.DataFrame:
    """Accuracy and loss with each of the ranking's groups alone pruned at each ratio.

    Args:
        model: the base network.
        batches: (images, labels) of the validation split, in a fixed order.
        ratios: the grid; 0 is the base network and gives no row.
        ranking: which channels a ratio removes, and from which groups.
        path: the CSV. Rows are appended as they are completed; sums over the batches so far lie
            beside it, and a run that was killed goes on behind the last whole batch.
        device: where to run.
        on_row: called with the evaluations done and their total.
        reference: the network whose outputs ``kl`` is measured against; None for ``model``.

    Returns:
        One row a group and ratio, with the columns ``COLUMNS``: ``top1`` in percent, ``loss``
        (cross-entropy) and ``kl`` (divergence from the reference's outputs) in nats,
        ``memory_saving`` a fraction, ``parameters`` of the whole network.
    """
    points = grid_points(ranking, ratios)
    plans = {point: ranking.plan({point[0]: ranking.units(*point)}) for point in points}
    by_segment = _points_by_segment(model, ranking, points)
    batches = list(batches)
    partial = path.with_suffix(".partial.json")
    tallies = _read_partial(partial, points)
    batches_done = tallies.pop("batches_done")
    for network in (model, reference):
        if network is not None:
            network.eval().to(device)
    base_parameters = parameters(model)
    done = batches_done * len(points)
    for number, (images, labels) in enumerate(batches[batches_done:], start=batches_done + 1):
        last = number == len(batches)
        if last:
            write_text(path, ",".join(COLUMNS) + "\n")
        with torch.inference_mode():
            labels = labels.to(device)
            images = images.to(device)
            expected = (model if reference is None else reference)(images)
            x = model.encode(images)
            reset_state(model)
            for start, (segment_path, segment) in enumerate(model.segments().items()):
                for point in by_segment.get(segment_path, ()):
                    with masked(model, plans[point]):
                        tallies[point].add(model.run(x, start), labels, expected)
                    done += 1
                    on_row(done, len(points) * len(batches))
                    if last:
                        row = _row(
                            point,
                            tallies[point],
                            ranking,
                            base_parameters,
                            pruned_parameters(model, plans[point]),
                            plans[point],
                        )
                        with path.open("a") as table:
                            table.write(",".join(map(str, row)) + "\n")
                reset_state(model)
                x = model.step(segment, x)
        if not last:
            _write_partial(partial, tallies, number)
    partial.unlink(missing_ok=True)
    return pd.read_csv(path)


def _points_by_segment(model: nn.Module, ranking: Ranking, points: list) -> dict[str, list]:
    """The points of each segment: the first one whose weights masking the group changes."""
    segments = list(model.segments())

    def segment_of(module_path: str) -> int:
        return next(
            number
            for number, path in enumerate(segments)
            if module_path == path or module_path.startswith(f"{path}.")
        )

    by_segment: dict[str, list] = {}
    for point in points:
        first = min(segment_of(path) for path in ranking.groups[point[0]].masked_modules)
        by_segment.setdefault(segments[first], []).append(point)
    return by_segment


def _row(point, tally: Tally, ranking: Ranking, base: int, left: int, plan) -> list:
    group = ranking.groups[point[0]]
    removed = group.size - len(plan[group.name])
    return [
        group.name,
        group.kind,
        group.size,
        point[1],
        removed,
        left,
        f"{memory_saving(left, base):.6f}",
        tally.images,
        f"{tally.top1:.4f}",
        f"{tally.loss:.6f}",
        f"{tally.kl:.6f}",
    ]


def _write_partial(path: Path, tallies: dict, batches_done: int) -> None:
    sums = [[*point, t.images, t.correct, t.loss_sum, t.kl_sum] for point, t in tallies.items()]
    write_json(path, {"batches_done": batches_done, "sums": sums})


def _read_partial(path: Path, points: list) -> dict:
    tallies: dict = {point: Tally() for point in points}
    tallies["batches_done"] = 0
    if path.is_file():
        saved = read_json(path)
        sums = {(name, ratio): Tally(*rest) for name, ratio, *rest in saved["sums"]}
        if sums.keys() == set(points):
            tallies = {**sums, "batches_done": saved["batches_done"]}
    return tallies
