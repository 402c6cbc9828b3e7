"""How this process asks the system for memory."""

import ctypes
import os

# malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEPT = 2**31 - 1
STEP = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc keep what a tensor frees for the next one; elsewhere nothing happens.

    It gives blocks of more than 32 MB back at once, and smaller ones where they lie on top. Each
    layer's output is then made of new pages, which the kernel clears one by one: a tenth to a third
    of the time of a forward pass over many images. The peak does not grow by it.

    Returns:
        Whether it was told so: it was not where there is no glibc, nor where the environment holds
        a word of its own (``MALLOC_…_``, ``GLIBC_TUNABLES``).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    values = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: KEPT, M_TOP_PAD: STEP}
    return all([mallopt(name, value) for name, value in values.items()])
