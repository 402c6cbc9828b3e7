"""Where a file comes from: hashes, versions, and the commit of the code that wrote it."""

import functools
import importlib.metadata
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import psvit

PACKAGE = Path(psvit.__file__).parent
# what decides what a run computes; an edited README does not make the code another
CODE = (PACKAGE.name, "conf", "run.py", "pyproject.toml")
# through which a git hook hands its own repository on to what it runs
REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")


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
