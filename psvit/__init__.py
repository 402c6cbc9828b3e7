"""PSViT: structured pruning of spiking vision transformers (arXiv 2606.03257)."""

__version__ = "0.1.0"
