"""Importance, sensitivity, allocation, surgery: from a trained network to a smaller one."""

from psvit.pruning.surgery import masked, prune, pruned_parameters

__all__ = ["masked", "prune", "pruned_parameters"]
