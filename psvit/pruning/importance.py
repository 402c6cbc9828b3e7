"""How much each unit of a channel group matters: one small function for each importance.

Each gives ``[group.size]`` float64, higher is kept. ``scope`` is "all" (every module that the group
names) or "first" (the first one only, as the papers that look at a single layer). W[c] are the
filters of unit c in the producers, x_c what the consumers read of it; a head is a unit of several
channels.

The importances in ``STATISTICS`` need calibration images as well: what the function that stands
there in psvit.pruning.calibration gives is their last argument.
"""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from psvit.channels import ChannelGroup
from psvit.errors import UserError
from psvit.pruning import calibration
from psvit.pruning.calibration import Gates, in_scope
from psvit.pruning.gram import Gram, grams


def l1(model: nn.Module, group: ChannelGroup, scope: str = "all") -> Tensor:
    """L1 norm: s_c = Σ |W[c]| (arXiv 1608.08710)."""
    return sum(filters.abs().sum(1) for filters in _filters(model, group, scope))


def l2(model: nn.Module, group: ChannelGroup, scope: str = "all") -> Tensor:
    """L2 norm: s_c = sqrt(Σ W[c]²).

    The norm of PrimeSVT (arXiv 2606.03428) and, most likely, of PSViT.
    """
    return _squared_norms(model, group, scope).sqrt()


def bn_scale(model: nn.Module, group: ChannelGroup, scope: str = "all") -> Tensor:
    """Batch-norm scale: s_c = Σ over batch norms |γ_c| (network slimming, arXiv 1708.06519).

    Raises:
        UserError: the group has no batch norm.
    """
    modules = [model.get_submodule(path) for path in group.producers]
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]
    if not norms:
        raise UserError(
            "pruning.importance", "bn_scale", f"the channel group {group.name} has no batch norm"
        )
    scales = [norm.weight.detach().double().cpu().abs() for norm in in_scope(norms, scope)]
    return sum(scale.reshape(group.size, -1).sum(1) for scale in scales)


def fpgm(model: nn.Module, group: ChannelGroup, scope: str = "all") -> Tensor:
    """Distance to the geometric median: s_c = Σ_j ‖W[c] − W[j]‖ (FPGM, arXiv 1811.00250).

    A filter near the geometric median of its layer can be replaced by the others.
    """
    products = sum(filters @ filters.T for filters in _filters(model, group, scope))
    squares = products.diagonal()
    squared_distances = squares.unsqueeze(0) + squares.unsqueeze(1) - 2.0 * products
    # what rounding leaves of a filter's distance to itself is no distance
    return squared_distances.clamp(min=0.0).fill_diagonal_(0.0).sqrt().sum(1)


def lamp(model: nn.Module, group: ChannelGroup, scope: str = "all") -> Tensor:
    """Layer-adaptive magnitude: s_c = ‖W[c]‖² / Σ_{j: ‖W[j]‖ ≥ ‖W[c]‖} ‖W[j]‖².

    arXiv 2010.07611, with units in place of weights. Inside a group it orders as ``l2``; its use
    is to compare units of different groups.
    """
    # the order of keep_best: of equal norms the lower index counts as the larger
    ordered, order = _squared_norms(model, group, scope).sort(descending=True, stable=True)
    survivors = ordered.cumsum(0)
    shares = torch.where(survivors > 0.0, ordered / survivors, 0.0)
    return torch.empty_like(shares).index_put_((order,), shares)


def random(model: nn.Module, group: ChannelGroup, scope: str = "all", seed: int = 0) -> Tensor:
    """s_c ~ U(0, 1), from ``seed`` and the group's name alone: the baseline of every comparison."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {group.name}".encode()))
    return torch.rand(group.size, generator=generator, dtype=torch.float64)


def taylor(model: nn.Module, group: ChannelGroup, scope: str, gates: dict[str, Gates]) -> Tensor:
    """First-order Taylor: s_c = |mean over images of Σ g·w| (group form of arXiv 1906.10771).

    w are all parameters of unit c in the producers (filters, biases, batch norms), g the gradient
    of an image's cross-entropy, through the surrogate of the spikes: how the loss changes, to
    first order, when all of them go to 0.
    """
    sums = gates[group.name]
    return sums.total.abs() / sums.images


def fisher(model: nn.Module, group: ChannelGroup, scope: str, gates: dict[str, Gates]) -> Tensor:
    """Diagonal Fisher information of the unit's gate: s_c = mean over images of (Σ g·w)².

    arXiv 1801.05787, for coupled channels 2108.00708 (without their constant 1/2); g and w as in
    ``taylor``. Images that pull in opposite directions do not cancel here.
    """
    sums = gates[group.name]
    return sums.squares / sums.images


def firing_rate(
    model: nn.Module, group: ChannelGroup, scope: str, activity: dict[str, Tensor]
) -> Tensor:
    """Channel spike activity: s_c = mean over time, images and pixels of |x_c| (arXiv 2406.01072).

    Averaged over the consumers. Spikes are not negative, so for them this is the firing rate; a
    consumer may also read real values (behind a depthwise convolution), and then it is their mean
    magnitude. Of channels read by a product alone (``query_key``) the geometric mean of the
    factors' rates is taken: where one factor is silent, so is the product.
    """
    return _over_readers(activity[group.name], group)


def spike_rank(
    model: nn.Module, group: ChannelGroup, scope: str, singular_values: dict[str, Tensor]
) -> Tensor:
    """Singular values of spike maps: s_c = mean over time and images of Σ_i σ_i(x_c), x_c [H, W].

    After QP-SNN (arXiv 2502.05905), which prunes by the singular values of spatiotemporal spike
    activity; the sum of the singular values of each step's map is this project's reading of it.
    Readers are joined as in ``firing_rate``.
    """
    return _over_readers(singular_values[group.name], group)


def reconstruction(
    model: nn.Module,
    group: ChannelGroup,
    scope: str,
    matrices: dict[str, list[Gram]],
    ridge: float = 1e-3,
) -> Tensor:
    """How badly the consumers' currents can be rebuilt without the unit.

    s_c = Σ over consumers min_D ‖W_c x_c − D x_r‖² + λ‖D‖², over the current's energy ‖W x‖²; W
    is the consumer's weight, c the columns of the unit (all its patch positions), r the others.
    With G = Σ x xᵀ the minimum is tr(W_c S_c W_cᵀ), S_c = ((G + λI)⁻¹)_cc⁻¹ − λI: the Schur
    complement of optimal brain surgery for a block of weights (Hassibi & Stork 1993; for
    least-squares recovery after the cut 2204.09656).

    Channels read by a product alone (``query_key``) have no consumer weight. Their current is a
    sum over channels of products, in each head, so the counterpart is how badly Σ_c q_c ⊗ k_c (the
    attention map; Σ_c q_c where only the query is summed) can be rebuilt by rescaling the head's
    other products: W_c = 1, and G_cd = Σ (q_c·q_d)(k_c·k_d). The neuron's threshold behind it is
    not seen.

    Args:
        ridge: λ as a share of G's mean diagonal.
    """
    if not group.consumers:
        (gram,) = matrices[group.name]
        # one matrix a head: units of different heads do not add up
        schur = _schur_complements(gram.matrix, gram.matrix.shape[-1], ridge).flatten()
        return (schur / gram.matrix.sum().clamp(min=_TINY)).cpu()
    score = torch.zeros(group.size, dtype=torch.float64)
    for path, gram in zip(in_scope(group.consumers, scope), matrices[group.name], strict=True):
        if not gram.rows:
            # kept for its checkpoint: it never runs
            continue
        weight = model.get_submodule(path).weight.detach().flatten(1).to(gram.matrix)
        schur = _schur_complements(gram.matrix, group.size, ridge)
        of_unit = weight.unflatten(1, (group.size, -1)).transpose(0, 1)
        lost = ((of_unit @ schur) * of_unit).sum((1, 2))
        score += (lost / ((weight @ gram.matrix) * weight).sum().clamp(min=_TINY)).cpu()
    return score


# in place of a division by 0, where a layer reads nothing at all
_TINY = 1e-12


def _schur_complements(gram: Tensor, size: int, ridge: float) -> Tensor:
    """S_c of ``reconstruction``: ``[..., K, K]`` -> ``[..., size, K / size, K / size]``."""
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    damping = (ridge * gram.diagonal(dim1=-2, dim2=-1).mean()).clamp(min=_TINY)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + damping * identity))
    blocks = inverse.unflatten(-1, (size, -1)).unflatten(-3, (size, -1))
    blocks = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
    run = blocks.shape[-1]
    return torch.linalg.inv(blocks) - damping * identity[:run, :run]


def _over_readers(values: Tensor, group: ChannelGroup) -> Tensor:
    """``[readers, group.size]`` -> ``[group.size]``."""
    return values.mean(0) if group.consumers else values.prod(0) ** (1.0 / len(values))


def _filters(model: nn.Module, group: ChannelGroup, scope: str) -> Sequence[Tensor]:
    """The filters ``[group.size, weights]`` of each convolution and linear layer in scope."""
    weights = [model.get_submodule(path).weight for path in group.producers]
    # norms scale a channel, or not even that; they are no filters
    filters = in_scope([w.detach() for w in weights if w is not None and w.dim() > 1], scope)
    return [weight.double().cpu().reshape(group.size, -1) for weight in filters]


def _squared_norms(model: nn.Module, group: ChannelGroup, scope: str) -> Tensor:
    return sum(filters.square().sum(1) for filters in _filters(model, group, scope))


# those that need calibration images, and the statistic that they need
STATISTICS = {
    "taylor": calibration.gradients,
    "fisher": calibration.gradients,
    "firing_rate": calibration.activity,
    "spike_rank": calibration.singular_values,
    "reconstruction": grams,
}

IMPORTANCES = {
    function.__name__: function
    for function in (
        l1,
        l2,
        bn_scale,
        fpgm,
        lamp,
        taylor,
        fisher,
        firing_rate,
        spike_rank,
        reconstruction,
        random,
    )
}
