"""Recovery without training: what a few calibration images can mend after a cut."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from psvit.channels import INPUT, OUTPUT, Plan
from psvit.errors import UserError
from psvit.neurons import reset_state
from psvit.pruning.calibration import hooks
from psvit.pruning.gram import input_rows
from psvit.pruning.surgery import Cuts, plan_cuts

RECOVERIES = ("none", "bn", "least_squares", "both")
# those that solve weights again
SOLVING = ("least_squares", "both")


def recover(
    pruned: nn.Module,
    base: nn.Module,
    plan: Plan,
    images: Sequence[Tensor],
    method: str,
    ridge: float = 0.1,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Mend ``pruned`` in place, segment by segment in the network's order, and return it.

    ``least_squares`` solves the weights of every layer that lost inputs again, so that its output
    on the calibration images stays what it was in the base network (2204.09656; here with inputs
    from the part that is already pruned and mended, so that errors do not add up). ``bn``
    re-estimates the batch norms' statistics (EagleEye, 2007.02491; here by their change against
    the base network's on the same images). ``both`` does the one and then
    the other in each segment.

    Args:
        pruned: ``prune(base, plan)``.
        base: the network it was cut from.
        plan: the cut.
        images: calibration batches, ``[B, C, H, W]`` or ``[B, T, C, H, W]``, of the training split.
        method: one of ``RECOVERIES``.
        ridge: λ of the solve, as a share of the mean diagonal of the Gram matrix.
        device: where to run.

    Raises:
        UserError: a batch norm sees a batch of one number a channel.
    """
    if method == "none" or not plan:
        return pruned
    cuts = plan_cuts(base, plan)
    # before: weights that moved in inference mode could not be trained afterwards
    base.eval().to(device)
    pruned.eval().to(device)
    with torch.inference_mode():
        base_inputs = [base.encode(batch.to(device)) for batch in images]
        inputs = list(base_inputs)
        segments = base.segments()
        for path, small in pruned.segments().items():
            ours = _Part(pruned, small, inputs)
            theirs = _Part(base, segments[path], base_inputs)
            if method in SOLVING:
                for layer, calls in _layers_with_lost_inputs(ours, path, cuts).items():
                    kept = cuts.get((f"{path}.{layer}", OUTPUT))
                    _solve(layer, calls, ours, theirs, kept, ridge)
            if method in ("bn", "both"):
                _estimate_batch_norms(ours, theirs, path, cuts)
            inputs, base_inputs = ours.outputs(), theirs.outputs()
    return pruned


@dataclass
class _Part:
    """A segment of a network, and the calibration batches that enter it."""

    network: nn.Module
    segment: nn.Module
    inputs: list[Tensor]

    def outputs(self) -> list[Tensor]:
        return [_step(self.network, self.segment, x) for x in self.inputs]


def _step(network: nn.Module, segment: nn.Module, x: Tensor) -> Tensor:
    reset_state(segment)
    # a block may write to what enters it; one image that is all steps lets nobody
    shown_again = x.shape[0] > 1 and x.stride(0) == 0
    return network.step(segment, x if shown_again else x.clone())


def _layers_with_lost_inputs(part: _Part, path: str, cuts: Cuts) -> dict[str, int]:
    """Paths, within the segment and in the order they run, of the layers to solve again, and how
    often each runs."""
    calls: Counter[str] = Counter()
    lost = {
        name[len(path) + 1 :]
        for name, axis in cuts
        if axis == INPUT and name.startswith(f"{path}.")
    }

    def count(name: str) -> Callable:
        return lambda *_: calls.update([name])

    with hooks(
        part.segment.get_submodule(name).register_forward_hook(count(name)) for name in lost
    ):
        _step(part.network, part.segment, part.inputs[0][:, :1])
    return calls


def _solve(
    layer: str, calls: int, pruned: _Part, base: _Part, kept: list[int] | None, ridge: float
) -> None:
    """W' = W_k + (W C − W_k G)(G + λI)⁻¹: the least squares solution nearest to W_k.

    W are the base network's weights, W_k those of the kept inputs, G = XᵀX of the mended network's
    inputs and C = X_baseᵀ X. Damped towards W_k and not towards 0: what the images do not
    determine stays as it was, and where nothing has changed so far nothing does. ``calls``: how
    often the layer runs. ``kept``: its outputs that are left; None for all.
    """
    ours, theirs = (part.segment.get_submodule(layer) for part in (pruned, base))

    def products(x: Tensor, x_base: Tensor) -> tuple[Tensor, Tensor]:
        """G and C of one batch: float32 products, for float64 sums over the batches."""
        rows = _input_rows(pruned, layer, calls, x)
        base_rows = _input_rows(base, layer, calls, x_base)
        return (rows.T @ rows).double(), (base_rows.T @ rows).double()

    gram, cross = products(pruned.inputs[0], base.inputs[0])
    for x, x_base in zip(pruned.inputs[1:], base.inputs[1:], strict=True):
        g, c = products(x, x_base)
        gram, cross = gram + g, cross + c
    weight = theirs.weight
    if kept is not None:
        weight = weight[torch.tensor(kept, device=weight.device)]
    as_cut = ours.weight.flatten(1).double()
    missing = weight.flatten(1).double() @ cross - as_cut @ gram
    change = damped_solve(gram, missing, ridge)
    ours.weight.copy_((as_cut + change).to(ours.weight.dtype).view_as(ours.weight))


def damped_solve(gram: Tensor, missing: Tensor, ridge: float) -> Tensor:
    """missing (G + λI)⁻¹, with λ = ``ridge`` times the mean diagonal of G; both float64."""
    damping = ridge * gram.diagonal().mean()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    # a silent input has nothing to say: its weight would be 0/0 without the damping
    return torch.linalg.solve(gram + damping.clamp(min=1e-12) * eye, missing.T).T


class _Seen(Exception):
    """Ends a pass at the layer whose input was wanted."""


def _input_rows(part: _Part, layer: str, calls: int, x: Tensor) -> Tensor:
    """What ``layer`` multiplies with its weight: ``[calls·T·B·positions, in_channels·kh·kw]``."""
    seen: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # of several calls, what the block writes to before the last one
        seen.append(args[0] if calls == 1 else args[0].clone())
        if len(seen) == calls:
            # what comes behind is of no interest: half of a block, on average
            raise _Seen

    module = part.segment.get_submodule(layer)
    with hooks([module.register_forward_pre_hook(stop)]), suppress(_Seen):
        _step(part.network, part.segment, x)
    rows = [input_rows(module, each) for each in seen]
    return rows[0] if calls == 1 else torch.cat(rows)


def _estimate_batch_norms(pruned: _Part, base: _Part, path: str, cuts: Cuts) -> None:
    """Move the running statistics by what the cut changed on the calibration images.

    The base network's statistics come from far more images. Estimated from the difference on the
    same few, what these images have of their own cancels: μ' = μ + (m_pruned − m_base), and
    σ'² = σ² · v_pruned / v_base, with m and v the statistics of the calibration batches.
    """
    ours, theirs = _batch_statistics(pruned), _batch_statistics(base)
    for name, (mean, var) in ours.items():
        norm, whole = (part.segment.get_submodule(name) for part in (pruned, base))
        kept = cuts.get((f"{path}.{name}", OUTPUT), slice(None))
        base_mean, base_var = (tensor[kept] for tensor in theirs[name])
        # in this order what has not changed stays to the bit: a rounding flips spikes, and those
        # further spikes in every segment behind
        norm.running_mean.copy_(whole.running_mean[kept] + (mean - base_mean))
        ratio = (var + norm.eps) / (base_var + norm.eps)
        norm.running_var.copy_(whole.running_var[kept] * ratio)


def _batch_statistics(part: _Part) -> dict[str, tuple[Tensor, Tensor]]:
    """Path of each batch norm -> mean and variance of what enters it, averaged over the batches,
    each by its images."""
    norms = {
        name: module
        for name, module in part.segment.named_modules()
        # one that takes each batch's statistics has none to mend
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    }
    before = {name: copy.deepcopy(norm.state_dict()) for name, norm in norms.items()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    seen: Counter[nn.Module] = Counter()

    def weigh(norm: nn.Module, args: tuple) -> None:
        if args[0].numel() == norm.num_features:
            reason = "leaves a batch with one image of one pixel, of which a batch norm has no "
            reason += "variance: expected batches of 2 images or more (dataset.eval_batch_size)"
            count = sum(x.shape[1] for x in part.inputs)
            raise UserError("pruning.calibration_images", count, reason)
        # of equal batches torch's own for a cumulative average; one may run twice in a batch
        seen[norm] += images
        norm.momentum = images / seen[norm]

    for norm in norms.values():
        norm.reset_running_stats()
        norm.train()
    with hooks(norm.register_forward_pre_hook(weigh) for norm in norms.values()):
        for x in part.inputs:
            # [T, B, C, H, W]
            images = x.shape[1]
            _step(part.network, part.segment, x)
    found = {}
    for name, norm in norms.items():
        found[name] = norm.running_mean.clone(), norm.running_var.clone()
        norm.load_state_dict(before[name])
        norm.momentum = momenta[name]
        norm.eval()
    return found
