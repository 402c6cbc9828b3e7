"""The one exception that a user is meant to read."""

import os

# Hydra's own switch
TRACEBACK = "HYDRA_FULL_ERROR"


def traceback_wanted() -> bool:
    """Whether who runs a command wants an error's traceback in place of its line."""
    return os.environ.get(TRACEBACK, "0") != "0"


class UserError(ValueError):
    """Something the user gave is wrong.

    ``run.py`` prints it as a single line without a traceback (``HYDRA_FULL_ERROR=1`` shows the
    traceback) and exits with status 2. The message names the option, its value, and what would
    be right.
    """

    def __init__(self, option: str, value: object, expected: str):
        self.option, self.value, self.expected = option, value, expected
        super().__init__(option, value, expected)

    def __str__(self) -> str:
        return " ".join(f"{self.option}={self.value}: {self.expected}".split())
