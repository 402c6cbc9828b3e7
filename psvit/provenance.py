"""Where a file comes from: hashes, versions, and the commit of the code that wrote it."""

import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import psvit

PACKAGE = Path(psvit.__file__).parent
# what decides what a run computes; an edited README does not make the code another
CODE = (PACKAGE.name, "conf", "run.py", "pyproject.toml")


def provenance(**facts: Any) -> dict[str, Any]:
    """What wrote a file and when; ``facts`` are added, and hold where they name the same.

    Returns:
        ``psvit``, ``torch`` and ``spikingjelly``: versions; ``commit`` and ``modified`` as
        ``code_state`` gives them; ``date``: UTC, ISO 8601; then ``facts``.
    """
    return {
        "psvit": psvit.__version__,
        # with its build (+cpu, +cu128), which installed packages do not always tell
        "torch": str(torch.__version__),
        "spikingjelly": importlib.metadata.version("spikingjelly"),
        **code_state(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    }


@functools.cache
def code_state() -> dict[str, Any]:
    """``git_state`` of this package, as it was when first asked.

    The checkout may move on while a long run goes on with the code that it has imported: call it
    early.
    """
    return git_state(PACKAGE)


def git_state(package: Path) -> dict[str, Any]:
    """``commit`` (full hash) of the checkout that tracks ``package``, and whether it is changed.

    ``modified`` is true if ``package`` or what lies beside it of ``CODE`` differs from the commit,
    new files included. Empty where there is no git, no checkout, or where the package only lies
    inside the checkout of something else, as an installed one does in a project's ``.venv``.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {}
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    changes = _git(package.parent, "status", "--porcelain", "--", *CODE)
    if commit is None or changes is None:
        return {}
    return {"commit": commit.strip(), "modified": bool(changes.strip())}


def environment(**facts: Any) -> dict[str, Any]:
    """What a run needs of the machine to be repeated: ``environment.json`` of its folder.

    Args:
        facts: of the run; they stand behind the command.

    Returns:
        ``command``: as it was typed; what ``provenance`` gives; ``python`` and ``platform``;
        ``cpu`` and ``cores`` that this process may use; ``memory_gb`` (10⁹ bytes); ``gpus``: name
        and ``memory_gb`` of each; ``cuda`` and ``cudnn``: versions, None without; ``packages``:
        name and version of all that is installed, as ``pip freeze`` tells.
    """
    packages = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "command": shlex.join(sys.argv),
        **facts,
        **provenance(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)} for gpu in gpus],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": dict(sorted(packages.items(), key=lambda entry: entry[0].lower())),
    }


def _cpu_name() -> str:
    """The processor as Linux names it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None if it is not there or refuses."""
    # a hook that runs us sets GIT_DIR and its like to a repository that need not be ours
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        # without optional locks: looking must not disturb a git that works beside us
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None
