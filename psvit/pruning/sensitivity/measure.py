"""Sensitivity analysis: each channel group alone, at each ratio (PSViT, step 2).

A group belongs to one segment of the network's chain. For a batch the base network runs once,
segment by segment; a candidate is masked in place, of its segment only what the mask changes is
computed, and the chain from there on is run. Memory is the activations of one segment for one
batch, whatever the number of groups and images.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from psvit.cache import key_hash, tensors_fingerprint
from psvit.channels import Plan
from psvit.files import write_json, write_text
from psvit.inference import optimize_for_inference
from psvit.neurons import reset_state
from psvit.pruning.ranking import Ranking
from psvit.pruning.sensitivity.adaptive import Stopping
from psvit.pruning.sensitivity.mended import Mending
from psvit.pruning.sensitivity.processes import of_all, rank_and_world
from psvit.pruning.sensitivity.replay import Replay, written_in_place
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
    autocast: bool = False,
    stopping: Stopping | None = None,
    mending: Mending | None = None,
) -> pd.DataFrame:
    """Accuracy and loss with each of the ranking's groups alone pruned at each ratio.

    Args:
        model: the base network.
        batches: (images, labels) of the validation split, in a fixed order.
        ratios: the grid; 0 is the base network and gives no row.
        ranking: which channels a ratio removes, and from which groups.
        path: the CSV, written anew behind each batch with what is known by then; the sums lie
            beside it, and a run that was killed, of the same networks, cuts and images, goes on
            behind the last whole batch. A JSON of the same name sums the analysis up.
        device: where to run.
        on_row: called with the evaluations done and their total.
        reference: the network whose outputs ``kl`` is measured against; None for ``model``.
        autocast: half precision on CUDA. Rounding flips spikes: rows differ by noise.
        stopping: which rows need no further images; None for all images.
        mending: what recovery changes in a candidate; None for candidates as they are cut.

    Returns:
        One row a group and ratio, with the columns ``COLUMNS``: ``top1`` and its standard error in
        percent; ``drop`` against the base network on the same images and the standard error of that
        difference, in points; ``loss`` (cross-entropy) and ``kl`` (divergence from the reference's
        outputs) in nats; ``memory_saving`` a fraction; ``parameters`` of the whole network. In
        every process, where ``torch.distributed`` runs several.
    """
    table = Table(model, ranking, ratios)
    sums = measure_candidates(
        model, batches, table, path, device, on_row, reference, autocast, stopping, mending=mending
    )
    if rank_and_world()[0] == 0:
        mended = {"mended": True} if mending else {}
        write_json(path.with_suffix(".json"), _summary(sums, stopping) | mended)
    return read_rows(table.csv(sums.values()))


def _summary(sums: Sums, stopping: Stopping | None) -> dict[str, Any]:
    """What ``results.json`` says of the analysis."""
    shown = sum(tally.images for tally in sums.candidates.values())
    every = sums.base.images * len(sums.candidates)
    summary = {"method": "measured", "candidates": len(sums.candidates), "images": sums.base.images}
    if stopping is not None:
        stopped = len(sums.candidates) - len(sums.going_on)
        summary |= {
            "tolerance": stopping.tolerance,
            "stopped_early": stopped,
            "share_of_images_shown": shown / every if every else 1.0,
            # that a stopped row is on the side of the tolerance where it was put; that all are
            "confidence_of_a_row": stopping.confidence,
            "confidence_of_all_rows": max(0.0, 1.0 - stopped * (1.0 - stopping.confidence)),
        }
    return summary


def measure_candidates(
    model: nn.Module,
    batches: Batches,
    table: Table,
    path: Path,
    device: torch.device,
    on_row: Callable[[int, int], None] = lambda done, total: None,
    reference: nn.Module | None = None,
    autocast: bool = False,
    stopping: Stopping | None = None,
    candidates: Sequence[Candidate] | None = None,
    mending: Mending | None = None,
) -> Sums:
    """The sums of ``candidates``, or of all that the table has; see ``measure_sensitivity``."""
    network = optimize_for_inference(model.to(device))
    expecting = network
    if reference is not None and reference is not model:
        expecting = optimize_for_inference(reference.to(device))
    candidates = list(table.candidates if candidates is None else candidates)
    partial_path = path.with_suffix(".partial.json")
    rank, world = rank_and_world()
    total = len(candidates) * len(batches)
    key, before = "", 0
    in_place: Collection[str] = ()
    sums, own = Sums.empty(candidates), None
    for number, (images, labels) in enumerate(batches):
        if number == 0:
            key = _key(model, reference, table, stopping, mending, len(labels))
            # one process's word, should the others see other files
            sums = of_all(Sums.load(partial_path, candidates, key))[0]
            in_place = written_in_place(network, images[:1].to(device))
        before += len(labels)
        if before <= sums.base.images:
            continue
        if number % world == rank:
            # what is decided behind the batches before it is known only to the round's first one;
            # the others measure rows that may turn out not to be needed
            going_on = _going_on(sums, None if number % world else stopping, number)
            on_candidate = partial(_count, on_row, number * len(candidates), total)
            with torch.autocast("cuda", enabled=autocast):
                own = _measure_batch(
                    network,
                    expecting,
                    images.to(device),
                    labels,
                    table,
                    going_on,
                    on_candidate,
                    mending,
                    in_place,
                )
        last = number + 1 == len(batches)
        if not last and (number + 1) % world:
            continue
        # batch by batch, as one process would
        first = number - number % world
        for offset, batch in enumerate(of_all(own)):
            if batch is not None:
                sums.add(batch, _going_on(sums, stopping, first + offset))
        own = None
        if rank == 0:
            write_text(path, table.csv(sums.values()))
            if not last:
                sums.save(partial_path, key)
    if rank == 0:
        partial_path.unlink(missing_ok=True)
    return sums


def _key(
    model: nn.Module,
    reference: nn.Module | None,
    table: Table,
    stopping: Stopping | None,
    mending: Mending | None,
    batch_size: int,
) -> str:
    """What the sums depend on, but the images: those of the same path are the same."""
    networks = [model, model if reference is None else reference]
    plans = [[*candidate, *map(list, plan.items())] for candidate, plan in table.plans.items()]
    return key_hash(
        {
            "networks": [tensors_fingerprint(network.state_dict()) for network in networks],
            "plans": plans,
            "stopping": None if stopping is None else asdict(stopping),
            "ridge": None if mending is None else mending.ridge,
            "batch_size": batch_size,
        }
    )


def _going_on(sums: Sums, stopping: Stopping | None, batches: int) -> list[Candidate]:
    """The candidates that need the batch behind the first ``batches``."""
    return [
        candidate
        for candidate in sums.going_on
        if stopping is None or not stopping.decided(sums.candidates[candidate], batches)
    ]


def _count(on_row: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    on_row(before + done, total)


@torch.inference_mode()
def _measure_batch(
    network: nn.Module,
    expecting: nn.Module,
    images: Tensor,
    labels: Tensor,
    table: Table,
    candidates: Sequence[Candidate],
    on_candidate: Callable[[int], None],
    mending: Mending | None,
    in_place: Collection[str],
) -> Sums:
    base = network(images)
    expected = base if expecting is network else expecting(images)
    tally = BatchTally(base, labels.to(images.device), expected)
    sums = Sums({}, tally.of(base))
    found = run_candidates(network, images, base, candidates, table.plans, mending, in_place)
    for done, (candidate, logits) in enumerate(found, start=1):
        sums.candidates[candidate] = tally.of(logits)
        on_candidate(done)
    return sums


def run_candidates(
    model: nn.Module,
    images: Tensor,
    base: Tensor,
    candidates: Sequence[Candidate],
    plans: dict[Candidate, Plan],
    mending: Mending | None = None,
    in_place: Collection[str] = (),
) -> Iterator[tuple[Candidate, Tensor]]:
    """Logits ``[B, classes]`` of every candidate, those of the first segments first.

    Args:
        model: the base network, in evaluation mode.
        images: a batch.
        base: the base network's logits.
        candidates: what to run.
        plans: of each candidate.
        mending: what recovery changes in it.
        in_place: the segments ``written_in_place``, which are computed whole, on copies.
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
    for start, (path, segment) in enumerate(segments[: last + 1]):
        reset_state(model)
        here = [candidate for candidate in candidates if min(changes[candidate]) == start]
        if not here:
            x = model.step(segment, x)
            continue
        replay = Replay(segment)
        if path in in_place:
            left = model.step(segment, x.clone())
        else:
            left = replay.record(partial(model.step, segment, x), x)
        for candidate in here:
            plan = plans[candidate]
            mended = mending.changes(model, candidate, plan) if mending else {}
            with masked(model, plan, groups):
                for layer, change in mended.items():
                    model.get_submodule(layer).weight.add_(change)
                reset_state(model)
                with replay.changed(changes[candidate][start]):
                    y = model.step(segment, x.clone() if path in in_place else x)
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
