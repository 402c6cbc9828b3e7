"""A sensitivity table from gradients, calibrated on a few rows that are measured.

What a channel group's cut does to an image's log odds is predicted to first order: s = Σ x·∂m/∂x
over what the cut takes from the group's readers, m the true class's logit less the log-sum-exp of
the others'. One backward pass of a batch gives it for all ratios of all groups (Taylor, as in
arXiv 1906.10771, of the log odds: the loss itself is flat where a trained network is sure). The
divergence of the outputs is to second order ½ E[s²] (Fisher), up to a scale.

A few rows, spread evenly over the order so predicted, are measured. On them is fitted
Δkl = a·(½ E[s²])^b by least squares of the logarithms, b at least 0, so that the order stays; Δkl
is what the cut adds to the divergence that the network itself has from the reference, where it was
cut before. What top-1 and loss lose is taken as proportional to Δkl. Measured rows are left alone.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from psvit.channels import ChannelGroup
from psvit.files import write_json, write_text
from psvit.neurons import reset_state
from psvit.pruning.calibration import readers
from psvit.pruning.image_axis import Seen, keep_output, products_per_image, shapes_of_others
from psvit.pruning.ranking import Ranking
from psvit.pruning.sensitivity.measure import Batches, measure_candidates
from psvit.pruning.sensitivity.processes import rank_and_world
from psvit.pruning.sensitivity.table import Table, read_rows
from psvit.pruning.sensitivity.tallies import Candidate, Sums, Values

# a prediction of nothing, such as a silent channel's, has no logarithm
LEAST = 1e-12
# images of a backward pass, which keeps every layer's activations
AT_ONCE = 32


def estimate_sensitivity(
    model: nn.Module,
    batches: Batches,
    ratios: Sequence[float],
    ranking: Ranking,
    path: Path,
    device: torch.device,
    calibration: Iterable[tuple[Tensor, Tensor]],
    measured_rows: int,
    on_row: Callable[[int, int], None] = lambda done, total: None,
    reference: nn.Module | None = None,
    autocast: bool = False,
) -> pd.DataFrame:
    """The table of ``measure_sensitivity``, most of its rows estimated.

    Args:
        calibration: (images, labels) of the training split, for the gradients.
        measured_rows: how many different cuts to measure, at least 2.
        model, batches, ratios, ranking, path, device, on_row, reference, autocast: see
            ``measure_sensitivity``.

    Returns:
        The same columns. Of an estimated row ``images`` is that of the calibration, and both
        standard errors are the root mean square error of the fit on the measured rows. The JSON
        beside the CSV has the rank correlations of predicted and measured rows.
    """
    table = Table(model, ranking, ratios)
    found, images = predict(model.to(device), ranking, table, calibration, device)
    order = sorted(table.candidates, key=found.__getitem__)
    places = np.linspace(0, len(order) - 1, min(measured_rows, len(order))).round().astype(int)
    chosen = [order[place] for place in np.unique(places)]
    sums = measure_candidates(
        model, batches, table, path, device, on_row, reference, autocast, candidates=chosen
    )
    estimated = calibrate(found, sums, images)
    measured = sums.values()
    csv = table.csv(estimated | measured)
    if rank_and_world()[0] == 0:
        write_text(path, csv)
        write_json(
            path.with_suffix(".json"),
            {
                "method": "estimated",
                "candidates": len(table.candidates),
                "measured": len(measured),
                "calibration_images": images,
                "rank_correlation": {
                    column: rank_correlation(found, measured, column)
                    for column in ("kl", "loss", "top1")
                },
            },
        )
    return read_rows(csv)


def predict(
    model: nn.Module,
    ranking: Ranking,
    table: Table,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
) -> tuple[dict[Candidate, float], int]:
    """½ E[s²] of every candidate, and the number of images."""
    removed = {
        candidate: sorted(set(range(ranking.groups[candidate[0]].size)) - set(plan[candidate[0]]))
        for candidate, plan in table.plans.items()
    }
    sums, total = dict.fromkeys(removed, 0.0), 0
    parts = (
        part
        for images, labels in batches
        for part in zip(images.split(AT_ONCE), labels.split(AT_ONCE), strict=True)
    )
    for images, labels in parts:
        effects = log_odds_effects(
            model, ranking.groups.values(), images.to(device), labels.to(device)
        )
        total += len(labels)
        for candidate, units in removed.items():
            sums[candidate] += float(effects[candidate[0]][:, units].sum(1).square().sum())
    return {candidate: 0.5 * squares / total for candidate, squares in sums.items()}, total


def log_odds_effects(
    model: nn.Module, groups: Iterable[ChannelGroup], images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """What removing each unit takes from each image's log odds, to first order: ``[B, size]``.

    Args:
        model: the network; it is left as it was, in evaluation mode.
        groups: what to look at.
        images: ``[B, C, H, W]`` or ``[B, T, C, H, W]``.
        labels: ``[B]``.

    Raises:
        UserError: a group that nothing reads.
    """
    groups = list(groups)
    # a query is read by a product, and no module: its spikes stand for what is read
    read_by = {
        group.name: readers(group, "all" if group.consumers else "first") for group in groups
    }
    maps: Seen = {}
    with ExitStack() as stack, torch.enable_grad():
        for path in {path for paths in read_by.values() for path in paths}:
            module = model.get_submodule(path)
            if hasattr(module, "weight"):
                handle = module.register_forward_pre_hook(partial(_keep_input, maps, path))
            else:
                handle = module.register_forward_hook(partial(keep_output, maps, path))
            stack.callback(handle.remove)
        shapes = shapes_of_others(model.eval(), images, maps)
        logits = model(images)
        others = logits.scatter(1, labels.unsqueeze(1), -torch.inf).logsumexp(1)
        log_odds = logits.gather(1, labels.unsqueeze(1)).squeeze(1) - others
        effects = products_per_image(log_odds.sum(), maps, shapes, len(labels), model)
    reset_state(model)
    return {
        # a module may be kept for its checkpoint and never run
        group.name: sum(
            (
                effects[path].unflatten(1, (group.size, -1)).sum(2)
                for path in read_by[group.name]
                if path in effects
            ),
            start=logits.new_zeros(len(labels), group.size, dtype=torch.float64),
        )
        for group in groups
    }


def _keep_input(maps: Seen, path: str, _module: nn.Module, args: tuple) -> tuple:
    # of a tensor that others read or write to, what this module alone reads; with nothing but
    # frozen parameters before it, the graph begins here
    x = args[0].clone().requires_grad_()
    maps.setdefault(path, []).append(x)
    return (x, *args[1:])


def calibrate(found: dict[Candidate, float], sums: Sums, images: int) -> dict[Candidate, Values]:
    """The estimated values of every candidate, fitted on those that ``sums`` holds."""
    measured = sums.values()
    base = sums.base
    top1, loss = 100.0 * base.correct / base.images, base.loss_sum / base.images
    x = np.log([max(found[candidate], LEAST) for candidate in measured])
    own = base.kl_sum / base.images
    kl = np.array([values.kl for values in measured.values()]) - own
    # a cut that adds nothing, or brings a network that was cut before closer, has no logarithm
    adds = kl > 0 if (kl > 0).any() else np.ones_like(kl, dtype=bool)
    at, y = x[adds], np.log(np.maximum(kl[adds], LEAST))
    spread = at - at.mean()
    slope = max(float(spread @ y) / max(float(spread @ spread), LEAST), 0.0)
    fit = {
        candidate: float(np.exp(y.mean() + slope * (np.log(max(value, LEAST)) - at.mean())))
        for candidate, value in found.items()
    }
    predicted = np.array([fit[candidate] for candidate in measured])
    drops = np.array([values.drop for values in measured.values()])
    rises = np.array([values.loss for values in measured.values()]) - loss
    # per nat of divergence
    drop, rise = (
        max(float(kl @ lost) / max(float(kl @ kl), LEAST), 0.0) for lost in (drops, rises)
    )
    error = float(np.sqrt(np.mean((drops - np.minimum(drop * predicted, top1)) ** 2)))

    def values(added: float) -> Values:
        lost = min(drop * added, top1)
        return Values(
            images, top1 - lost, error, lost, error, loss + rise * added, own + added, "estimated"
        )

    return {candidate: values(added) for candidate, added in fit.items()}


def rank_correlation(
    found: dict[Candidate, float], measured: dict[Candidate, Values], column: str
) -> float | None:
    """Spearman's of the prediction and a measured column; None where either is all the same, or
    nothing was measured."""
    sign = -1.0 if column == "top1" else 1.0
    pairs: list[tuple[Any, Any]] = [
        (found[candidate], sign * getattr(values, column)) for candidate, values in measured.items()
    ]
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    if len(set(ours)) < 2 or len(set(theirs)) < 2:
        return None
    return float(spearmanr(ours, theirs).statistic)
