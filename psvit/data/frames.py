"""From the event frames of recordings to what the network reads.

B recordings, T frames, S = ``dataset.image_size``.
"""

from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import interpolate

from psvit.data.transforms import EvalTransform, each, shift_and_flip


class FitFrames:
    """Resizes to S×S, without cropping; ``area`` and ``bilinear`` give mean counts."""

    def __init__(self, cfg: DictConfig):
        self.size, self.interpolation = cfg.image_size, cfg.interpolation

    def __call__(self, frames: Tensor) -> Tensor:
        """Takes and returns float32 ``[..., 2, height, width]``."""
        if frames.shape[-2:] == (self.size, self.size):
            return frames
        # torch's own `nearest` shifts by up to half a pixel
        mode = "nearest-exact" if self.interpolation == "nearest" else self.interpolation
        resized = interpolate(
            frames.flatten(0, -4), (self.size, self.size), mode=mode, antialias=mode == "bilinear"
        )
        return resized.unflatten(0, frames.shape[:-3])


class FrameTransform(EvalTransform):
    """Fits and normalises: float32 ``[B, T, 2, height, width]`` to ``[B, T, 2, S, S]``."""

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg, FitFrames(cfg))

    def store(self, image: Tensor) -> Tensor:
        """Frames are kept as the network reads them."""
        return self.fit(image)


class FrameTrainTransform(FrameTransform):
    """Shifts and flips each recording by its own draw, all of its frames alike."""

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.crop_padding, self.hflip = cfg.augment.crop_padding, cfg.augment.hflip

    def __call__(self, images: Tensor | list[Tensor]) -> Tensor:
        frames = each(self.fit, images)
        # as the channels of one image, the frames of a recording move together
        moved = shift_and_flip(frames.flatten(1, 2), self.crop_padding, self.hflip)
        return self.normalise(moved.unflatten(1, frames.shape[1:3]))
