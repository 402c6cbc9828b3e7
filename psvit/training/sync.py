"""Batch norms that normalise over the batches of all processes (``trainer.sync_batchnorm``)."""

from typing import Any

import torch
from lightning.pytorch.plugins import LayerSync
from torch import Tensor, distributed, nn


class SyncBatchNorms(LayerSync):
    """torch's ``SyncBatchNorm`` on GPUs, and the same arithmetic on CPUs, where torch has none.

    Lightning's own gives batch norms back as a class of its own; this leaves every module the
    object that it was.
    """

    def __init__(self, on_gpu: bool):
        self.synced = nn.SyncBatchNorm if on_gpu else _SyncedOnCPU

    def apply(self, model: nn.Module) -> nn.Module:
        """Let every batch norm of ``model`` take its statistics over all processes."""
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = self.synced
                # what SyncBatchNorm has beside: the group of processes, None for all
                module.process_group = None
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Undo ``apply``."""
        for module in model.modules():
            if type(module) is self.synced:
                module.__class__ = nn.BatchNorm2d
                del module.process_group
        return model


class _SumOverProcesses(torch.autograd.Function):
    """The loss is the processes' together: a gradient is their sum as well."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        summed = x.clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        distributed.all_reduce(summed)
        return summed


class _SyncedOnCPU(nn.BatchNorm2d):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_BCHW)
        # as torch's: under autocast the input has fewer bits than the statistics
        x = x_BCHW.to(torch.promote_types(x_BCHW.dtype, torch.float32))
        # processes may have batches of different sizes: sums are added up, not means
        dims = (0, 2, 3)
        count = _SumOverProcesses.apply(x.new_tensor(x.numel() / x.shape[1]))
        mean = _SumOverProcesses.apply(x.sum(dims)) / count
        centred = x - mean[:, None, None]
        variance = _SumOverProcesses.apply(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
            momentum = self.momentum
            if momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
            unbiased = variance.detach() * count / (count - 1)
            self.running_mean.lerp_(mean.detach().to(self.running_mean), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var), momentum)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        normalised = centred * scale[:, None, None]
        if self.affine:
            normalised = normalised + self.bias[:, None, None]
        return normalised.to(x_BCHW.dtype)
