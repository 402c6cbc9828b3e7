"""The files and folders that a config names, as they are found from any working directory."""

import errno
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from psvit.errors import UserError

PATHS = ("ckpt_path", "training.teacher", "finetune.teacher", "dataset.root", "paths.cache_dir")


def make_absolute(cfg: DictConfig) -> None:
    """Make ``cfg``'s paths absolute, ``~`` the home folder: a run may go on from anywhere.

    Raises:
        UserError: there is no such home folder, or the file system takes no name so long.
    """
    for option in PATHS:
        value = OmegaConf.select(cfg, option, default=None)
        # what is no text is refused where the option is read
        if not isinstance(value, str) or not value:
            continue
        try:
            path = Path(value).expanduser().absolute()
            path.exists()
        except RuntimeError as error:
            raise UserError(option, value, f"expected another path: {error}") from error
        except OSError as error:
            # what else the system says is told where the path is read
            if error.errno == errno.ENAMETOOLONG:
                raise UserError(option, value, f"{error.strerror}: expected a path") from error
        OmegaConf.update(cfg, option, str(path))
