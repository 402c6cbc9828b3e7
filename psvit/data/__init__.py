"""Images and event frames for training, choosing what to prune, and testing."""

from psvit.data.module import ImageData, create_data

__all__ = ["ImageData", "create_data"]
