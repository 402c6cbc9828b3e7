"""A saved network as ONNX: written, checked against torch, timed beside it.

``python -m psvit.export FOLDER...``; docs/export.md says what is checked and how.
"""

from psvit.export.check import Agreement, check
from psvit.export.graph import logits_only, to_onnx

__all__ = ["Agreement", "check", "logits_only", "to_onnx"]
