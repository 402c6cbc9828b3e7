"""Recovery without training: what a few calibration images can mend after a cut."""

import copy
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from psvit.channels import Plan
from psvit.neurons import reset_state
from psvit.pruning.gram import input_rows
from psvit.pruning.surgery import INPUT, OUTPUT, Cuts, plan_cuts

RECOVERIES = ("none", "bn", "least_squares", "both")


@torch.inference_mode()
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
    """
    if method == "none" or not plan:
        return pruned
    cuts = plan_cuts(base, plan)
    base.eval().to(device)
    pruned.eval().to(device)
    base_inputs = [base.encode(batch.to(device)) for batch in images]
    inputs = list(base_inputs)
    segments = base.segments()
    for path, small in pruned.segments().items():
        full = segments[path]
        if method in ("least_squares", "both"):
            for layer in _layers_with_lost_inputs(small, path, cuts, pruned, inputs[0]):
                _solve(layer, path, small, full, inputs, base_inputs, cuts, pruned, base, ridge)
        if method in ("bn", "both"):
            _estimate_batch_norms(small, path, full, inputs, base_inputs, cuts, pruned, base)
        base_inputs = [_step(base, full, x) for x in base_inputs]
        inputs = [_step(pruned, small, x) for x in inputs]
    return pruned


def _step(network: nn.Module, segment: nn.Module, x: Tensor) -> Tensor:
    reset_state(segment)
    return network.step(segment, x)


def _layers_with_lost_inputs(
    segment: nn.Module, path: str, cuts: Cuts, network: nn.Module, x: Tensor
) -> list[str]:
    """Paths, within the segment and in the order they run, of the layers to solve again."""
    order: list[str] = []
    lost = {
        name[len(path) + 1 :]
        for name, axis in cuts
        if axis == INPUT and name.startswith(f"{path}.")
    }
    handles = [
        segment.get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name))
        for name in lost
    ]
    try:
        _step(network, segment, x[:, :1])
    finally:
        for handle in handles:
            handle.remove()
    return order


def _solve(
    layer: str,
    path: str,
    small: nn.Module,
    full: nn.Module,
    inputs: list[Tensor],
    base_inputs: list[Tensor],
    cuts: Cuts,
    pruned: nn.Module,
    base: nn.Module,
    ridge: float,
) -> None:
    """W' = W_k + (W C − W_k G)(G + λI)⁻¹: the least squares solution nearest to W_k.

    W are the base network's weights, W_k those of the kept inputs, G = XᵀX of the mended network's
    inputs and C = X_baseᵀ X. Damped towards W_k and not towards 0: what the images do not
    determine stays as it was, and where nothing has changed so far nothing does.
    """
    ours, theirs = small.get_submodule(layer), full.get_submodule(layer)

    def products(x: Tensor, x_base: Tensor) -> tuple[Tensor, Tensor]:
        """G and C of one batch: float32 products, for float64 sums over the batches."""
        rows = _input_rows(pruned, small, layer, x)
        base_rows = _input_rows(base, full, layer, x_base)
        return (rows.T @ rows).double(), (base_rows.T @ rows).double()

    gram, cross = products(inputs[0], base_inputs[0])
    for x, x_base in zip(inputs[1:], base_inputs[1:], strict=True):
        g, c = products(x, x_base)
        gram, cross = gram + g, cross + c
    weight = theirs.weight
    kept = cuts.get((f"{path}.{layer}", OUTPUT))
    if kept is not None:
        weight = weight[torch.tensor(kept, device=weight.device)]
    as_cut = ours.weight.flatten(1).double()
    missing = weight.flatten(1).double() @ cross - as_cut @ gram
    damping = ridge * gram.diagonal().mean()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    # a silent input has nothing to say: its weight would be 0/0 without the damping
    change = torch.linalg.solve(gram + damping.clamp(min=1e-12) * eye, missing.T).T
    ours.weight.copy_((as_cut + change).to(ours.weight.dtype).view_as(ours.weight))


class _Seen(Exception):
    """Ends a pass at the layer whose input was wanted."""


def _input_rows(network: nn.Module, segment: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What ``layer`` multiplies with its weight: ``[T·B·positions, in_channels·kh·kw]``."""
    seen: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        # what comes behind is of no interest: half of a block, on average
        raise _Seen

    module = segment.get_submodule(layer)
    handle = module.register_forward_pre_hook(stop)
    try:
        with suppress(_Seen):
            _step(network, segment, x)
    finally:
        handle.remove()
    return input_rows(module, seen[0])


def _estimate_batch_norms(
    small: nn.Module,
    path: str,
    full: nn.Module,
    inputs: list[Tensor],
    base_inputs: list[Tensor],
    cuts: Cuts,
    pruned: nn.Module,
    base: nn.Module,
) -> None:
    """Move the running statistics by what the cut changed on the calibration images.

    The base network's statistics come from far more images. Estimated from the difference on the
    same few, what these images have of their own cancels: μ' = μ + (m_pruned − m_base), and
    σ'² = σ² · v_pruned / v_base, with m and v the statistics of the calibration batches.
    """
    ours = _batch_statistics(small, inputs, pruned)
    theirs = _batch_statistics(full, base_inputs, base)
    for name, (mean, var) in ours.items():
        norm, whole = small.get_submodule(name), full.get_submodule(name)
        kept = cuts.get((f"{path}.{name}", OUTPUT), slice(None))
        base_mean, base_var = (tensor[kept] for tensor in theirs[name])
        norm.running_mean.copy_(whole.running_mean[kept] + mean - base_mean)
        norm.running_var.copy_(whole.running_var[kept] * (var + norm.eps) / (base_var + norm.eps))


def _batch_statistics(
    segment: nn.Module, inputs: list[Tensor], network: nn.Module
) -> dict[str, tuple[Tensor, Tensor]]:
    """Path of each batch norm -> mean and variance of what enters it, averaged over the batches."""
    norms = {
        name: module
        for name, module in segment.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    before = {name: copy.deepcopy(norm.state_dict()) for name, norm in norms.items()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for x in inputs:
        _step(network, segment, x)
    found = {}
    for name, norm in norms.items():
        found[name] = norm.running_mean.clone(), norm.running_var.clone()
        norm.load_state_dict(before[name])
        norm.momentum = momenta[name]
        norm.eval()
    return found
