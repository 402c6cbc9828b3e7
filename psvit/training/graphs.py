"""CUDA graphs: the kernels of a training step launched as one."""

import torch
from torch import Tensor, nn

from psvit.neurons import reset_state


class GraphedNetwork:
    """A network whose forward and backward passes are two CUDA graphs.

    A small network launches a thousand short kernels a step, and the processor launches them more
    slowly than the GPU runs them. Recorded once, they are replayed without it: the same kernels on
    the same memory, drawing new random numbers where a layer draws any.

    No other thread may work on the GPU while they are recorded, such as one that fills pinned
    memory. The network stays as it is: passes that warm up move no batch norm and draw nothing.

    Args:
        network: in the mode in which it will run. Optimizers, averages and checkpoints change its
            parameters in place, which the graphs follow; parameters that are replaced they do not.
        images: a batch such as will come, on the GPU: ``[B, C, H, W]``, or frames
            ``[B, T, C, H, W]``. Recorded is what the passes do with it under the autocast and
            the gradient mode that are set when it is made.
    """

    def __init__(self, network: nn.Module, images: Tensor):
        self.network, self.shape = network, images.shape
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        drawn = torch.cuda.get_rng_state(images.device)
        # or autocast would keep a weight that was cast once for all replays
        precision = torch.get_autocast_dtype("cuda")
        casts = torch.is_autocast_enabled("cuda")
        with torch.autocast("cuda", precision, casts, cache_enabled=False):
            # of a wrapper: it puts another `forward` on what it is given
            self._replay = torch.cuda.make_graphed_callables(_Whole(network), (images,))
        reset_state(network)
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])
        torch.cuda.set_rng_state(drawn, images.device)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``[B, classes]``; a batch of another size than recorded runs kernel by kernel."""
        return (self._replay if images.shape == self.shape else self.network)(images)


class _Whole(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)
