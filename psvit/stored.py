"""A run that was stopped goes on with its stored config: ``python run.py resume=RUN_FOLDER``."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from psvit.errors import UserError
from psvit.resume import CONFIG

# what may be said again: no value of the run, or the leave to import a module
ALLOWED = ("model.module", "print_config", "hydra/job_logging", "hydra/hydra_logging")
# the classes that a run's config may name: Lightning's own, and nothing that they import
CLASSES = re.compile(
    r"lightning\.pytorch\.(Trainer|(callbacks|loggers|plugins|profilers|strategies)\.[A-Z]\w*)"
)


def resumed_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line with the run's folder as Hydra's, where it names one to resume.

    Raises:
        UserError: the folder is no run's, or an option would change the run.
    """
    given = [argument for argument in arguments if argument.startswith("resume=")]
    if not given:
        return list(arguments)
    value = OverridesParser.create().parse_overrides(given[-1:])[0].value()
    if value is None:
        return list(arguments)
    folder = Path(os.path.expanduser(str(value))).absolute()
    if not (folder / CONFIG).is_file():
        raise UserError("resume", value, f"expected the folder of a run, with its {CONFIG}")
    for argument in arguments:
        name = argument.split("=")[0].lstrip("+~")
        if argument not in given and name not in ALLOWED:
            raise UserError(
                "resume",
                value,
                f"{argument} beside it: a run goes on with the config of its folder; expected no "
                f"further option but {', '.join(ALLOWED[:2])}",
            )
    place = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    # Hydra's notes on how the run was composed stay as they were
    return [*arguments, f"hydra.run.dir='{place}'", "hydra.output_subdir=null"]


def stored_config(given: DictConfig, folder: Path) -> DictConfig:
    """The config of a run's folder, which may have been moved.

    Args:
        given: the config that the command line composes: the few values that may be said again.
        folder: the run's.

    Raises:
        UserError: the file cannot be read, lacks options, or names code that it must not.
    """
    try:
        plain = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError("resume", folder, f"its {CONFIG} cannot be read: {error}") from error
    if not isinstance(plain, dict):
        raise UserError("resume", folder, f"its {CONFIG} is damaged: expected sections of options")
    _check_classes(plain, folder)
    _check_options(plain, given, folder)
    module = plain["model"].get("module")
    if module is not None and given.model.get("module") != module:
        raise UserError(
            "resume", folder, f"its network is code of yours: add model.module={module}"
        )
    written = plain["paths"]["output_dir"]
    # a relative one is where the user wants it, and could be taken for other values
    if isinstance(written, str) and Path(written).is_absolute():
        plain = _moved(plain, written, str(folder))
    cfg = OmegaConf.create({**plain, "resume": str(folder), "print_config": given.print_config})
    OmegaConf.set_struct(cfg, True)
    return cfg


def _check_classes(value: Any, folder: Path) -> None:
    if isinstance(value, dict):
        target = value.get("_target_")
        if target is not None and not CLASSES.fullmatch(str(target)):
            raise UserError(
                "resume", folder, f"its {CONFIG} names {target}, which is not run from a folder"
            )
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, (dict, list)):
            _check_classes(each, folder)


def _check_options(plain: dict[str, Any], given: DictConfig, folder: Path) -> None:
    """Whether all options that this version reads are there, as far as ``given`` tells which."""
    missing = []
    for name, default in given.items():
        if name not in plain:
            missing.append(str(name))
        elif not isinstance(default, DictConfig):
            continue
        elif not isinstance(plain[name], dict):
            raise UserError(
                "resume", folder, f"its {CONFIG} is damaged: expected a section of options: {name}"
            )
        elif _alike(str(name), plain[name], default):
            missing += [f"{name}.{option}" for option in default if option not in plain[name]]
    if missing:
        raise UserError(
            "resume",
            folder,
            f"its {CONFIG} lacks {', '.join(missing)}, as one of an older version does: expected "
            "them with the values that the run shall have (python run.py --cfg job tells today's)",
        )


def _alike(name: str, section: dict[str, Any], default: DictConfig) -> bool:
    """Whether two sections are one choice of their group, or of a group whose options are alike."""
    if name == "logger" or (name == "finetune" and "lr" not in section):
        return False
    return section.get("name") == default.get("name")


def _moved(value: Any, written: str, folder: str) -> Any:
    if isinstance(value, dict):
        return {name: _moved(each, written, folder) for name, each in value.items()}
    if isinstance(value, list):
        return [_moved(each, written, folder) for each in value]
    inside = isinstance(value, str) and (value == written or value.startswith(f"{written}/"))
    return folder + value[len(written) :] if inside else value
