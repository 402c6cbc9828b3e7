"""From stored images to what the network reads. B images, S = ``dataset.image_size``."""

import math
from collections.abc import Callable

import torch
from omegaconf import DictConfig
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from psvit.data.policies import auto_augment


class Fit:
    """Resizes the short side to S / ``crop_pct`` and crops the centre, as timm does.

    An image that is S×S already is left alone: enlarging and cropping it would only blur it.
    """

    def __init__(self, cfg: DictConfig):
        self.size = cfg.image_size
        self.short_side = math.floor(cfg.image_size / cfg.crop_pct)
        self.interpolation = v2.InterpolationMode(cfg.interpolation)

    def __call__(self, images: Tensor) -> Tensor:
        """Takes and returns uint8 ``[..., 3, height, width]``."""
        if images.shape[-2:] == (self.size, self.size):
            return images
        images = F.resize(images, [self.short_side], self.interpolation, antialias=True)
        return F.center_crop(images, [self.size, self.size])


class EvalTransform:
    """Fits and normalises; event frames have a ``fit`` of their own."""

    def __init__(self, cfg: DictConfig, fit: Callable[[Tensor], Tensor] | None = None):
        self.size = cfg.image_size
        self.fit = Fit(cfg) if fit is None else fit
        self.mean, self.std = list(cfg.mean), list(cfg.std)

    def __call__(self, images: Tensor | list[Tensor]) -> Tensor:
        """uint8 images, stacked or of different sizes, to float32 ``[B, 3, S, S]``."""
        return self.normalise(each(self.fit, images))

    def store(self, image: Tensor) -> Tensor:
        """What to keep of an image in memory: as the network reads it, or as is if that is less."""
        return image if min(image.shape[1:]) < self.size else self.fit(image)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 ``[B, 3, S, S]`` to float32, by the mean and deviation of each color channel."""
        return F.normalize(F.to_dtype(images, torch.float32, scale=True), self.mean, self.std)


class TrainTransform(EvalTransform):
    """Augments: each image by its own draw; crops and flips are done on the batch at once."""

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        options = cfg.augment
        self.resized_crop = None
        if options.random_resized_crop is not None:
            self.resized_crop = v2.RandomResizedCrop(
                cfg.image_size,
                scale=tuple(options.random_resized_crop),
                interpolation=v2.InterpolationMode(cfg.interpolation),
                antialias=True,
            )
        self.crop_padding, self.hflip = options.crop_padding, options.hflip
        self.auto_augment = auto_augment(cfg)
        self.erase = RandomErasing(options.random_erasing, mode="pixel", device="cpu")

    def __call__(self, images: Tensor | list[Tensor]) -> Tensor:
        """uint8 images, stacked or of different sizes, to float32 ``[B, 3, S, S]``."""
        if self.resized_crop is not None:
            images = torch.stack([self.resized_crop(image) for image in images])
        else:
            images = each(self.fit, images)
        images = shift_and_flip(images, self.crop_padding, self.hflip)
        if self.auto_augment is not None:
            augmented = [self.auto_augment(F.to_pil_image(image)) for image in images]
            images = torch.stack([F.pil_to_tensor(image) for image in augmented])
        images = self.normalise(images)
        return self.erase(images) if self.erase.probability else images

    def store(self, image: Tensor) -> Tensor:
        """As is, where a crop is to be drawn from all of it."""
        return image if self.resized_crop is not None else super().store(image)


def shift_and_flip(images: Tensor, padding: int, flip_probability: float) -> Tensor:
    """Moves each image ``[B, C, H, W]`` by up to ``padding`` pixels, and mirrors some."""
    if padding:
        images = padded_crop(images, padding)
    if flip_probability:
        flipped = torch.rand(len(images)) < flip_probability
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    return images


def padded_crop(images: Tensor, padding: int) -> Tensor:
    """Pads ``[B, C, H, W]`` with zeros and crops a random H×W window from each image."""
    count, _, height, width = images.shape
    windows = F.pad(images, [padding]).unfold(2, height, 1).unfold(3, width, 1)
    top, left = torch.randint(2 * padding + 1, (2, count))
    return windows[torch.arange(count), :, top, left]


def each(fit: Callable[[Tensor], Tensor], images: Tensor | list[Tensor]) -> Tensor:
    """``fit`` of a stack of images ``[B, C, H, W]`` at once; of a list, of each, stacked."""
    return fit(images) if isinstance(images, Tensor) else torch.stack([fit(i) for i in images])
