"""Costly stages are done once: jobs that ask for the same base network share it."""

from psvit.cache.keys import code_version, data_fingerprint, key_hash, tensors_fingerprint
from psvit.cache.store import StageCache

__all__ = ["StageCache", "code_version", "data_fingerprint", "key_hash", "tensors_fingerprint"]
