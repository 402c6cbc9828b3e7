"""One clear line for values that make no network."""

from collections.abc import Sequence
from typing import Any

from psvit.errors import UserError
from psvit.options import POSITIVE, number, whole

_COUNT = whole()
_RATE = number(0.0, 1.0, "at least 0, below 1", excluded=(1.0,))


def check_counts(**values: Any) -> None:
    """Raise a UserError unless every value is a whole number of at least 1."""
    for name, value in values.items():
        _COUNT.check(f"model.{name}", value)


def check_list(name: str, values: Any, length: int) -> None:
    """Raise a UserError unless ``values`` are ``length`` whole numbers of at least 1."""
    fits = isinstance(values, Sequence) and not isinstance(values, str)
    if not fits or len(values) != length or not all(map(_COUNT.holds, values)):
        shown = list(values) if fits else values
        raise UserError(f"model.{name}", shown, f"expected {length} whole numbers of at least 1")


def check_heads(channels: int, num_heads: int) -> None:
    """Raise a UserError unless the heads divide the width."""
    check_counts(num_heads=num_heads)
    if channels % num_heads:
        raise UserError("model.num_heads", num_heads, f"the heads must divide the width {channels}")


def check_rate(drop_path_rate: Any) -> None:
    """Raise a UserError unless the rate lies in [0, 1)."""
    _RATE.check("model.drop_path_rate", drop_path_rate)


def check_hidden(width: int, mlp_ratio: Any) -> None:
    """Raise a UserError unless an MLP of this width has at least one hidden channel."""
    if not POSITIVE.holds(mlp_ratio) or mlp_ratio * width < 1:
        raise UserError(
            "model.mlp_ratio", mlp_ratio, f"leaves no hidden channel of a width of {width}"
        )


def check_scales(**scales: Any) -> None:
    """Raise a UserError for the first value that is no number above 0."""
    for name, value in scales.items():
        POSITIVE.check(f"model.{name}", value)


def check_image(image_size: Any, strides: Sequence[int]) -> None:
    """Raise a UserError unless every stage can divide the image and leaves 2 pixels a side."""
    check_counts(image_size=image_size)
    reduction = 1
    for stride in strides:
        reduction *= stride
    if image_size < 2 * reduction or image_size % reduction:
        raise UserError(
            "model.image_size",
            image_size,
            f"the stages shrink the image {reduction} times: give a multiple of {reduction}, at "
            f"least {2 * reduction} (dataset.image_size), or smaller model.strides",
        )


def check_columnar(
    embed_dims: int,
    depth: int,
    num_heads: int,
    image_size: int,
    num_classes: int,
    in_channels: int,
    strides: Sequence[int],
    mlp_ratio: float,
) -> None:
    """Check the networks whose stem doubles the width three times, to ``embed_dims``."""
    check_counts(
        embed_dims=embed_dims, depth=depth, num_classes=num_classes, in_channels=in_channels
    )
    if embed_dims % 8:
        raise UserError("model.embed_dims", embed_dims, "the stem needs a multiple of 8")
    check_heads(embed_dims, num_heads)
    check_hidden(embed_dims, mlp_ratio)
    check_list("strides", strides, 4)
    check_image(image_size, strides)
