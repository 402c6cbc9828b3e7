"""What every spiking transformer here is: a chain of segments that knows its channel groups."""

from torch import Tensor, nn

from psvit.channels import ChannelGroup
from psvit.errors import UserError
from psvit.neurons import reset_state


class SpikingTransformer(nn.Module):
    """A chain of segments (stem, blocks, head).

    A family fills the chain in its constructor: child modules that are ``nn.Sequential`` stages
    (each of their children is one segment) or single segments, in the order they run. The first
    segment has no neuron before its first layer and sees an image once; time begins behind it.

    Args:
        time_steps: steps for which a static image is shown; event frames bring their own.
    """

    def __init__(self, time_steps: int):
        super().__init__()
        if time_steps < 1:
            raise UserError("model.time_steps", time_steps, "expected at least 1")
        self.time_steps = time_steps

    def segments(self) -> dict[str, nn.Module]:
        """The chain, in order: path -> module."""
        chain: dict[str, nn.Module] = {}
        for name, child in self.named_children():
            if isinstance(child, nn.Sequential):
                chain.update({f"{name}.{part}": module for part, module in child.named_children()})
            else:
                chain[name] = child
        return chain

    def encode(self, x: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` -> what enters the first segment.

        An image becomes ``[1, B, C, H, W]``: what comes before the first neuron is the same at
        every step and is computed once.
        """
        return x.unsqueeze(0) if x.dim() == 4 else x.transpose(0, 1)

    def run(self, x: Tensor, start: int = 0) -> Tensor:
        """Run the chain from segment ``start`` on the tensor that enters it; ``[B, classes]``."""
        reset_state(self)
        for segment in list(self.segments().values())[start:]:
            x = self.step(segment, x)
        return x

    def step(self, segment: nn.Module, x: Tensor) -> Tensor:
        """Run one segment of the chain; behind the first one, an image is shown at every step."""
        first = segment is next(iter(self.segments().values()))
        x = segment(x)
        return x.expand(self.time_steps, *x.shape[1:]) if first and x.shape[0] == 1 else x

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, classes]`` of images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]``."""
        return self.run(self.encode(x))

    def channel_groups(self) -> dict[str, ChannelGroup]:
        """All channel groups that the blocks declare, by readable name."""
        groups: dict[str, ChannelGroup] = {}
        for path, module in self.named_modules():
            if path and hasattr(module, "channel_groups"):
                for group in module.channel_groups():
                    group = group.within(path)
                    groups[group.name] = group
        return groups

    def init_weights(self) -> None:
        """Kaiming-normal convolutions (fan out), as residual spiking networks are usually trained."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def check_heads(channels: int, num_heads: int, option: str = "model.num_heads") -> None:
    """Raise a UserError unless the heads divide the width."""
    if num_heads < 1 or channels % num_heads:
        raise UserError(option, num_heads, f"the heads must divide the width {channels}")


def spread_drop_path(rate: float, blocks: int) -> list[float]:
    """Stochastic-depth rates growing linearly from 0 to ``rate`` over the blocks."""
    return [rate * index / max(blocks - 1, 1) for index in range(blocks)]
