"""What each option may be, by itself."""

from collections.abc import Callable, Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from psvit.channels import KINDS
from psvit.errors import UserError
from psvit.pruning.allocation import NORMALIZERS, RESOURCES
from psvit.pruning.analysis import METHODS
from psvit.pruning.calibration import SCOPES
from psvit.pruning.importance import IMPORTANCES
from psvit.pruning.recovery import RECOVERIES
from psvit.training.recipe import KEEP


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, (int, float)) and not isinstance(x, bool) and low <= x <= high


def _ratio(x: Any) -> bool:
    return _number(0.0, 1.0)(x) and x < 1.0


def _share(x: Any) -> bool:
    return _ratio(x) and x > 0.0


def _whole(low: int, high: int = 2**63) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and low <= x <= high


def _one_of(names: Iterable[str]) -> tuple[Callable[[Any], bool], str]:
    known = list(names)
    return lambda x: x in known, f"one of {', '.join(known)}"


def _names(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(name, str) for name in x)


def _kinds(x: Any) -> bool:
    return _names(x) and len(x) > 0 and set(x) <= set(KINDS)


_RECIPE = {
    "lr": (_number(1e-12, 1e3), "a number above 0"),
    "weight_decay": (_number(0.0, 1e3), "a number of at least 0"),
    "warmup_epochs": (_whole(0), "a whole number of at least 0"),
    "min_lr": (_number(0.0, 1e3), "a number of at least 0"),
    "label_smoothing": (_ratio, "a number in [0, 1)"),
    "mixup": (_number(0.0, 100.0), "an alpha of at least 0"),
    "cutmix": (_number(0.0, 100.0), "an alpha of at least 0"),
    "ema_decay": (lambda x: x is None or _ratio(x), "a decay in [0, 1), or null"),
    "keep": _one_of(KEEP),
    "teacher": (
        lambda x: x is None or (isinstance(x, str) and x != ""),
        "a folder with a network, or null",
    ),
    "distill_weight": (_number(0.0, 1.0), "a share in [0, 1]"),
    "distill_temperature": (_number(1e-3, 1e3), "a number above 0"),
}

POLICIES = ("none", "uniform", "sensitivity", "fine_grained", "prioritized", "budgeted", "global")

# of Lightning's, those that networks are trained in, under their new and old names
PRECISIONS = ("32-true", "32", "64-true", "64", "16-mixed", "bf16-mixed", "16-true", "bf16-true")

# of a network's row in the results
OBJECTIVES = ("top1", "loss", "parameters", "memory_mb", "memory_saving")

# option -> (is it right?, what would be right); an option that is not composed is not checked
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    # far more than there are cores end the process
    "threads": (
        lambda x: x is None or _whole(1, 1024)(x),
        "a whole number of at least 1, at most 1024, or null",
    ),
    "channels_last": (lambda x: isinstance(x, bool), "true or false"),
    "objectives": (
        lambda x: x in OBJECTIVES or (_names(x) and len(x) > 0 and set(x) <= set(OBJECTIVES)),
        f"one or a list of {', '.join(OBJECTIVES)}",
    ),
    "train": (lambda x: isinstance(x, bool), "true or false"),
    "test": (lambda x: isinstance(x, bool), "true or false"),
    "report": _one_of(("full", "tables")),
    "print_config": (lambda x: isinstance(x, bool), "true or false"),
    "trainer.deterministic": (
        lambda x: isinstance(x, bool) or x == "warn",
        "true, false, or warn",
    ),
    "name": (lambda x: isinstance(x, str) and x != "", "a name"),
    "tags": (_names, "a list of names"),
    "paths.cache_dir": (
        lambda x: x is None or (isinstance(x, str) and x != ""),
        "a folder, or null for no cache",
    ),
    "seed": (_whole(0, 2**32 - 1), "a whole number from 0 to 4294967295"),
    "pruning.ratio": (_ratio, "a ratio in [0, 1)"),
    "pruning.ratios": (
        lambda x: isinstance(x, list) and len(x) > 0 and all(_ratio(r) and r > 0.0 for r in x),
        "a list of ratios in (0, 1)",
    ),
    "pruning.target_memory_saving": (
        lambda x: x is None or _share(x),
        "a share in (0, 1), or null",
    ),
    "pruning.target_saving": (
        lambda x: (
            x is None
            or _share(x)
            or (isinstance(x, dict) and set(x) <= set(RESOURCES) and all(map(_share, x.values())))
        ),
        f"a share in (0, 1), or one for each of {', '.join(RESOURCES)}, or null",
    ),
    "pruning.budget": (
        lambda x: x in RESOURCES or (_names(x) and len(x) > 0 and set(x) <= set(RESOURCES)),
        f"one or a list of {', '.join(RESOURCES)}",
    ),
    "pruning.normalize": _one_of(NORMALIZERS),
    "pruning.isomorphic": (lambda x: isinstance(x, bool), "true or false"),
    "pruning.max_steps": (_whole(1), "a whole number of at least 1"),
    "pruning.sensitivity.images": (
        lambda x: x is None or _whole(1)(x),
        "a whole number of at least 1, or null",
    ),
    "pruning.sensitivity.groups": (
        lambda x: x is None or (_names(x) and len(x) > 0),
        "a list of channel group patterns, or null",
    ),
    "pruning.sensitivity.method": _one_of(METHODS),
    "pruning.sensitivity.measured_rows": (_whole(2), "a whole number of at least 2"),
    "pruning.sensitivity.adaptive": (lambda x: isinstance(x, bool), "true or false"),
    "pruning.sensitivity.tolerance": (_number(0.0, 100.0), "points in [0, 100]"),
    "pruning.sensitivity.confidence": (_share, "a share in (0, 1)"),
    "pruning.sensitivity.autocast": (lambda x: isinstance(x, bool), "true or false"),
    "pruning.sensitivity.mended": (
        lambda x: x is None or isinstance(x, bool),
        "true, false, or null",
    ),
    "pruning.large_share": (lambda x: _number(0.0, 1.0)(x) and x > 0.0, "a share in (0, 1]"),
    "pruning.importance": _one_of(IMPORTANCES),
    "pruning.uniform_importance": (
        lambda x: x is None or x in IMPORTANCES,
        f"one of {', '.join(IMPORTANCES)}, or null",
    ),
    "pruning.kinds": (_kinds, f"a list of {', '.join(KINDS)}"),
    "pruning.uniform_kinds": (
        lambda x: x is None or _kinds(x),
        f"a list of {', '.join(KINDS)}, or null",
    ),
    "pruning.max_accuracy_drop": (
        lambda x: x is None or _number(0.0, 100.0)(x),
        "points in [0, 100], or null",
    ),
    "pruning.rounds": (_whole(1, 100), "a whole number of at least 1, at most 100"),
    "pruning.recovery": _one_of(RECOVERIES),
    "pruning.ridge": (_number(0.0, 1e3), "a number of at least 0"),
    "pruning.calibration_images": (_whole(1), "a whole number of at least 1"),
    "pruning.scope": _one_of(SCOPES),
    "pruning.round_to": (_whole(1), "a whole number of at least 1"),
    "pruning.min_keep": (_number(0, 1e9), "channels, or a share below 1"),
    "pruning.protect": (_names, "a list of channel group patterns"),
    "pruning.name": _one_of(POLICIES),
    "measure.images": (_whole(1), "a whole number of at least 1"),
    # measured at the very end: the memory for more may not be there
    "measure.batch_sizes": (
        lambda x: isinstance(x, list) and len(x) > 0 and all(map(_whole(1, 4096), x)),
        "a list of whole numbers of at least 1, at most 4096",
    ),
    "measure.repeats": (_whole(0), "a whole number of at least 0"),
    "measure.warmup": (_whole(0), "a whole number of at least 0"),
    "measure.mac_pj": (_number(0.0, 1e6), "picojoules of at least 0"),
    "measure.ac_pj": (_number(0.0, 1e6), "picojoules of at least 0"),
    "ckpt_time_steps": (
        lambda x: x is None or _whole(1)(x),
        "a whole number of at least 1, or null",
    ),
    "ckpt_path": (
        lambda x: x is None or (isinstance(x, str) and x != ""),
        "a folder, a file, or null",
    ),
    "trainer.accelerator": _one_of(("cpu", "gpu", "cuda")),
    "trainer.devices": (
        lambda x: (
            x in ("auto", -1)
            or _whole(1)(x)
            or (isinstance(x, list) and len(x) > 0 and all(map(_whole(0), x)))
        ),
        "a whole number of at least 1, a list of devices, or auto",
    ),
    "trainer.num_nodes": (_whole(1), "a whole number of at least 1"),
    "trainer.strategy": (
        lambda x: isinstance(x, str) and (x == "auto" or x.startswith("ddp")),
        "ddp, or auto for one process",
    ),
    "trainer.sync_batchnorm": (lambda x: isinstance(x, bool), "true or false"),
    "compile": (lambda x: isinstance(x, bool), "true or false"),
    "trainer.compile": (lambda x: isinstance(x, bool), "true or false"),
    "trainer.cuda_graphs": (lambda x: isinstance(x, bool), "true or false"),
    "trainer.accumulate_grad_batches": (_whole(1), "a whole number of at least 1"),
    "trainer.precision": (lambda x: str(x) in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "trainer.gradient_clip_val": (
        lambda x: x is None or (_number(0.0, 1e6)(x) and x > 0),
        "a number above 0, or null",
    ),
    "trainer.log_every_n_steps": (_whole(1), "a whole number of at least 1"),
    "trainer.enable_model_summary": (lambda x: isinstance(x, bool), "true or false"),
    "trainer.check_val_every_n_epoch": (_whole(1), "a whole number of at least 1"),
    "finetune.epochs": (_whole(0), "a whole number of at least 0"),
    "trainer.max_epochs": (_whole(1), "a whole number of at least 1"),
    **{f"training.{name}": check for name, check in _RECIPE.items()},
    **{f"finetune.{name}": check for name, check in _RECIPE.items()},
    "finetune.distill_rates": (_number(0.0, 1e6), "a number of at least 0"),
}


def check_values(cfg: DictConfig) -> None:
    """Raise a UserError for the first value that cannot be right."""
    for option, (right, expected) in CHECKS.items():
        value = OmegaConf.select(cfg, option, default=_ABSENT)
        if value is _ABSENT:
            continue
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if not right(plain):
            raise UserError(option, plain, f"expected {expected}")


_ABSENT = object()
