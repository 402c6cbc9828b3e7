"""What each option may be, by itself."""

from omegaconf import DictConfig, OmegaConf

from psvit.channels import KINDS
from psvit.options import (
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    RATIO,
    SHARE,
    Allowed,
    list_of,
    number,
    one_of,
    one_or_more_of,
    text,
    whole,
)
from psvit.pruning.allocation import NORMALIZERS, RESOURCES
from psvit.pruning.calibration import SCOPES
from psvit.pruning.importance import IMPORTANCES
from psvit.pruning.options import METHODS
from psvit.pruning.recovery import RECOVERIES
from psvit.training.recipe import KEEP

_RECIPE = {
    "lr": number(1e-12, 1e3, "a number above 0"),
    "weight_decay": NOT_NEGATIVE,
    "warmup_epochs": whole(0),
    "min_lr": NOT_NEGATIVE,
    "label_smoothing": RATIO,
    "mixup": number(0.0, 100.0, "an alpha of at least 0"),
    "cutmix": number(0.0, 100.0, "an alpha of at least 0"),
    "ema_decay": RATIO.or_null(),
    "keep": one_of(KEEP),
    "teacher": text("a folder with a network").or_null(),
    "distill_weight": number(0.0, 1.0, "a share in [0, 1]"),
    "distill_temperature": number(1e-3, 1e3, "a number above 0"),
}

POLICIES = ("none", "uniform", "sensitivity", "fine_grained", "prioritized", "budgeted", "global")

# of Lightning's, those that networks are trained in, under their new and old names
PRECISIONS = ("32-true", "32", "64-true", "64", "16-mixed", "bf16-mixed", "16-true", "bf16-true")

# of a network's row in the results
OBJECTIVES = ("top1", "loss", "parameters", "memory_mb", "memory_saving")

_PATTERNS = list_of(text("a pattern"), words="a list of channel group patterns")
_KINDS = list_of(one_of(KINDS), words=f"a list of {', '.join(KINDS)}").once()
_POINTS = number(0.0, 100.0, "points in [0, 100]")

# an option that is not composed is not checked
CHECKS: dict[str, Allowed] = {
    # far more than there are cores end the process
    "threads": whole(1, 1024).or_null(),
    "channels_last": FLAG,
    "compile": FLAG,
    "objectives": one_or_more_of(OBJECTIVES),
    "train": FLAG,
    "test": FLAG,
    "report": one_of(("full", "tables")),
    "print_config": FLAG,
    "name": text("a name"),
    "tags": list_of(Allowed(lambda x: isinstance(x, str), ""), words="a list of names", empty=True),
    "paths.cache_dir": text("a folder").or_null("for no cache"),
    "seed": whole(0, 2**32 - 1, f"a whole number from 0 to {2**32 - 1}"),
    "pruning.name": one_of(POLICIES),
    "pruning.ratio": RATIO,
    "pruning.ratios": list_of(SHARE, words="a list of ratios in (0, 1)"),
    "pruning.target_memory_saving": SHARE.or_null(),
    "pruning.target_saving": Allowed(
        lambda x: (
            SHARE.holds(x)
            or (
                isinstance(x, dict)
                and set(x) <= set(RESOURCES)
                and all(map(SHARE.holds, x.values()))
            )
        ),
        f"a share in (0, 1), or one for each of {', '.join(RESOURCES)}",
    ).or_null(),
    "pruning.budget": one_or_more_of(RESOURCES),
    "pruning.normalize": one_of(NORMALIZERS),
    "pruning.isomorphic": FLAG,
    "pruning.max_steps": whole(),
    "pruning.sensitivity.images": whole().or_null(),
    "pruning.sensitivity.groups": _PATTERNS.or_null(),
    "pruning.sensitivity.method": one_of(METHODS),
    "pruning.sensitivity.measured_rows": whole(2),
    "pruning.sensitivity.adaptive": FLAG,
    "pruning.sensitivity.tolerance": _POINTS,
    "pruning.sensitivity.confidence": SHARE,
    "pruning.sensitivity.autocast": FLAG,
    "pruning.sensitivity.mended": Allowed(FLAG.holds, "true, false").or_null(),
    "pruning.large_share": number(0.0, 1.0, "a share in (0, 1]", excluded=(0.0,)),
    "pruning.importance": one_of(IMPORTANCES),
    "pruning.uniform_importance": one_of(IMPORTANCES).or_null(),
    "pruning.kinds": _KINDS,
    "pruning.uniform_kinds": _KINDS.or_null(),
    "pruning.max_accuracy_drop": _POINTS.or_null(),
    "pruning.rounds": whole(1, 100),
    "pruning.recovery": one_of(RECOVERIES),
    "pruning.ridge": NOT_NEGATIVE,
    "pruning.calibration_images": whole(),
    "pruning.scope": one_of(SCOPES),
    "pruning.round_to": whole(),
    "pruning.min_keep": number(0, 1e9, "channels, or a share below 1"),
    "pruning.protect": list_of(text(""), words=_PATTERNS.words, empty=True),
    "measure.images": whole(),
    # measured at the very end: the memory for more may not be there
    "measure.batch_sizes": list_of(
        whole(1, 4096), words="a list of whole numbers of at least 1, at most 4096"
    ),
    "measure.repeats": whole(0),
    "measure.warmup": whole(0),
    "measure.mac_pj": number(0.0, 1e6, "picojoules of at least 0"),
    "measure.ac_pj": number(0.0, 1e6, "picojoules of at least 0"),
    "ckpt_time_steps": whole().or_null(),
    "ckpt_path": text("a folder, a file").or_null(),
    "trainer.accelerator": one_of(("cpu", "gpu", "cuda")),
    "trainer.devices": Allowed(
        lambda x: whole().holds(x) or list_of(whole(0)).holds(x),
        "a whole number of at least 1, a list of devices, or auto",
    ).also("auto", -1),
    "trainer.num_nodes": whole(),
    "trainer.strategy": text("").where(
        lambda x: x == "auto" or x.startswith("ddp"), "ddp, or auto for one process"
    ),
    "trainer.sync_batchnorm": FLAG,
    "trainer.deterministic": Allowed(FLAG.holds, "true, false, or warn").also("warn"),
    "trainer.compile": FLAG,
    "trainer.cuda_graphs": FLAG,
    "trainer.accumulate_grad_batches": whole(),
    # a number where it is written without quotes
    "trainer.precision": Allowed(lambda x: str(x) in PRECISIONS, one_of(PRECISIONS).words),
    "trainer.gradient_clip_val": POSITIVE.or_null(),
    "trainer.log_every_n_steps": whole(),
    "trainer.enable_model_summary": FLAG,
    "trainer.check_val_every_n_epoch": whole(),
    "trainer.max_epochs": whole(),
    "finetune.epochs": whole(0),
    **{f"training.{name}": allowed for name, allowed in _RECIPE.items()},
    **{f"finetune.{name}": allowed for name, allowed in _RECIPE.items()},
    "finetune.distill_rates": number(0.0, 1e6, "a number of at least 0"),
}


def check_values(cfg: DictConfig) -> None:
    """Raise a UserError for the first value that cannot be right."""
    for option, allowed in CHECKS.items():
        value = OmegaConf.select(cfg, option, default=_ABSENT)
        if value is not _ABSENT:
            plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            allowed.check(option, plain)


_ABSENT = object()
