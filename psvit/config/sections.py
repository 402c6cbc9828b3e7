"""That a config has its parts: sections of options, and the options beside them."""

from omegaconf import DictConfig, OmegaConf

from psvit.errors import UserError
from psvit.suggest import CONF, check_options

SECTIONS = (
    *("model", "dataset", "dataset.augment", "training", "pruning", "finetune", "trainer"),
    *("measure", "paths"),
)
OPTIONS = (
    *("name", "tags", "seed", "train", "test", "objectives", "report", "print_config", "threads"),
    *("compile", "channels_last", "ckpt_path", "ckpt_time_steps", "logger", "resume", "group"),
)
TRAINER = (
    *("accelerator", "devices", "max_epochs", "accumulate_grad_batches", "deterministic"),
    *("compile", "cuda_graphs", "sync_batchnorm", "check_val_every_n_epoch"),
)


def check_sections(cfg: DictConfig) -> None:
    """Raise a UserError for a section or an option that was taken out, or a section of one value,
    and for an option that was added and that nothing reads.

    Before any other check, as they ask for what is inside.
    """
    named = OmegaConf.select(cfg, "pruning.name", default=None)
    pruned = () if named in (None, "none") else ("pruning.sensitivity",)
    for section in (*SECTIONS, *pruned):
        value = OmegaConf.select(cfg, section, default=None)
        if not OmegaConf.is_dict(value):
            reason = f"expected options, as {section}.NAME=VALUE; left out, they are the defaults"
            raise UserError(section, value, reason)
    for section, options in (("", OPTIONS), ("trainer.", TRAINER)):
        # `in` would follow what the option refers to
        there = list(cfg.trainer if section else cfg)
        for name in options:
            if name not in there:
                raise UserError(f"{section}{name}", None, "is missing, and has to be there")
    if "local" in cfg:
        raise UserError(
            "conf/local/default.yaml",
            OmegaConf.to_container(cfg.local),
            "has no effect: expected `# @package _global_` as its first line",
        )
    check_options(cfg)
    _check_loggers(cfg.logger)


def _check_loggers(loggers: DictConfig | None) -> None:
    """Raise a UserError for options of a logger that ``logger`` does not choose: ``+`` adds them,
    and nothing would tell before the loggers are used."""
    chosen = [
        name
        for name, entry in (loggers or {}).items()
        if OmegaConf.is_dict(entry) and entry.get("_target_") is not None
    ]
    known = sorted(path.stem for path in (CONF / "logger").glob("*.yaml") if path.stem != "none")
    for name, entry in (loggers or {}).items():
        if name in chosen:
            continue
        value = OmegaConf.to_container(entry) if OmegaConf.is_config(entry) else entry
        reason = f"expected a logger that is chosen: logger={', '.join(known)}"
        if name in known:
            choice = f"'logger=[{','.join([*chosen, name])}]'" if chosen else f"logger={name}"
            reason = f"expected it to be chosen: {choice}"
        raise UserError(f"logger.{name}", value, reason)
