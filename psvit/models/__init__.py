"""Spiking vision transformers, exact to their authors' networks, that know their channel groups."""

from psvit.models.base import SpikingTransformer
from psvit.models.factory import create_model, model_names, register_model

__all__ = ["SpikingTransformer", "create_model", "model_names", "register_model"]
