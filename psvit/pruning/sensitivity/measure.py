"""Sensitivity analysis: each channel group alone, at each ratio (PSViT, step 2).

A group belongs to one segment of the network's chain. For a batch the base network runs once,
segment by segment; a candidate is masked in place, of its segment only what the mask changes is
computed, and the chain from there on is run. Memory is the activations of one segment for one
batch, whatever the number of groups and images.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from psvit.channels import Plan
from psvit.files import write_text
from psvit.inference import optimize_for_inference
from psvit.neurons import reset_state
from psvit.pruning.ranking import Ranking
from psvit.pruning.sensitivity.replay import Replay
from psvit.pruning.sensitivity.table import Table, read_rows
from psvit.pruning.sensitivity.tallies import BatchTally, Candidate, Sums
from psvit.pruning.surgery import masked

# one batch's images and labels; their number is known, and they can be read again
Batches = Collection[tuple[Tensor, Tensor]]


def measure_sensitivity(
    model: nn.Module,
    batches: Batches,
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
        path: the CSV, written anew behind each batch with what is known by then; the sums lie
            beside it, and a run that was killed goes on behind the last whole batch.
        device: where to run.
        on_row: called with the evaluations done and their total.
        reference: the network whose outputs ``kl`` is measured against; None for ``model``.

    Returns:
        One row a group and ratio, with the columns ``COLUMNS``: ``top1`` and its standard error in
        percent, ``loss`` (cross-entropy) and ``kl`` (divergence from the reference's outputs) in
        nats, ``memory_saving`` a fraction, ``parameters`` of the whole network.
    """
    table = Table(model, ranking, ratios)
    network = optimize_for_inference(model.to(device))
    expecting = network
    if reference is not None and reference is not model:
        expecting = optimize_for_inference(reference.to(device))
    partial_path = path.with_suffix(".partial.json")
    total = len(table.candidates) * len(batches)
    sums = Sums.empty(table.candidates)
    batch_size = before = 0
    for number, (images, labels) in enumerate(batches):
        if number == 0:
            batch_size = len(labels)
            sums = Sums.load(partial_path, table.candidates, batch_size)
        before += len(labels)
        if before <= sums.base.images:
            continue
        on_candidate = partial(_count, on_row, number * len(table.candidates), total)
        sums.add(_measure_batch(network, expecting, images, labels, device, table, on_candidate))
        write_text(path, table.csv(sums))
        if number + 1 < len(batches):
            sums.save(partial_path, batch_size)
    partial_path.unlink(missing_ok=True)
    return read_rows(table.csv(sums))


def _count(on_row: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    on_row(before + done, total)


@torch.inference_mode()
def _measure_batch(
    network: nn.Module,
    expecting: nn.Module,
    images: Tensor,
    labels: Tensor,
    device: torch.device,
    table: Table,
    on_candidate: Callable[[int], None],
) -> Sums:
    images, labels = (x.to(device, non_blocking=True) for x in (images, labels))
    base = network(images)
    tally = BatchTally(base, labels, base if expecting is network else expecting(images))
    sums = Sums({}, tally.of(base))
    candidates = run_candidates(network, images, base, table.candidates, table.plans)
    for done, (candidate, logits) in enumerate(candidates, start=1):
        sums.candidates[candidate] = tally.of(logits)
        on_candidate(done)
    return sums


def run_candidates(
    model: nn.Module,
    images: Tensor,
    base: Tensor,
    candidates: Sequence[Candidate],
    plans: dict[Candidate, Plan],
) -> Iterator[tuple[Candidate, Tensor]]:
    """Logits ``[B, classes]`` of every candidate, those of the first segments first.

    Args:
        model: the base network, in evaluation mode.
        images: a batch.
        base: the base network's logits.
        candidates: what to run.
        plans: of each candidate.
    """
    segments = list(model.segments().items())
    groups = model.channel_groups()
    # candidate -> segment -> what masking changes in it
    changes = {
        candidate: _changes(list(model.segments()), groups[candidate[0]].masked_modules)
        for candidate in candidates
    }
    x = model.encode(images)
    last = max(min(change) for change in changes.values()) if changes else -1
    for start, (_, segment) in enumerate(segments[: last + 1]):
        reset_state(model)
        here = [candidate for candidate in candidates if min(changes[candidate]) == start]
        if not here:
            x = model.step(segment, x)
            continue
        replay = Replay(segment)
        left = replay.record(partial(model.step, segment, x), x)
        for candidate in here:
            with masked(model, plans[candidate]):
                reset_state(model)
                with replay.changed(changes[candidate][start]):
                    y = model.step(segment, x)
                # channels that were silent are not missed; the rest of the chain would not differ
                same = len(changes[candidate]) == 1 and torch.equal(y, left)
                logits = base if same else model.run(y, start + 1)
            yield candidate, logits
        x = left


def _changes(segments: Sequence[str], modules: Sequence[str]) -> dict[int, list[str]]:
    """Number of a segment -> the paths of ``modules`` inside it."""
    found: dict[int, list[str]] = {}
    for module in modules:
        number, path = next(
            (number, path)
            for number, path in enumerate(segments)
            if module == path or module.startswith(f"{path}.")
        )
        found.setdefault(number, []).append(module[len(path) + 1 :])
    return found
