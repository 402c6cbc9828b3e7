"""What glibc is told: counted as the kernel counts the pages that it hands out."""

import os
import platform
import subprocess
import sys

import pytest

# 40 MB, which glibc would take from the system and give back each time; 4 kB a page
COUNT = """
import resource
import torch
from psvit.memory import keep_freed_memory
print(keep_freed_memory())
def use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# until there are as many as are needed
for _ in range(20):
    use()
print(sum(use() for _ in range(5)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own habit")
@pytest.mark.parametrize("own", [{}, {"MALLOC_TOP_PAD_": "1000"}])
def test_pages_are_used_again(own):
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        env={**plain, **own},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    told, pages = done.stdout.split()
    assert told == str(not own)
    if own:
        # huge pages make fewer of them
        assert int(pages) > 50
    else:
        assert int(pages) < 50
