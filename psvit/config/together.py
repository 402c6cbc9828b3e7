"""What options may be beside one another."""

import torch
from omegaconf import DictConfig, OmegaConf

from psvit.config.targets import check_targets
from psvit.errors import UserError
from psvit.processes import devices_of
from psvit.pruning.recovery import SOLVING
from psvit.training.trainer import check_trainer


def check_together(cfg: DictConfig) -> None:
    """Raise a UserError for the first value that is wrong beside the others."""
    if not cfg.train and cfg.ckpt_path is None:
        raise UserError("train", False, "expected a ckpt_path, the network that needs no training")
    groups = OmegaConf.select(cfg, "pruning.sensitivity.groups")
    if groups is not None and cfg.pruning.name != "sensitivity":
        raise UserError(
            "pruning.sensitivity.groups",
            list(groups),
            "expected null: a plan needs all groups; name some with pruning=sensitivity",
        )
    _check_sensitivity(cfg)
    _check_schedules(cfg)
    check_targets(cfg.pruning)
    _check_trainer(cfg)


def _check_trainer(cfg: DictConfig) -> None:
    """Devices that are not there, or that nothing would start."""
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator", cfg.trainer.accelerator, "no GPU here; use trainer=cpu"
        )
    devices = cfg.trainer.devices
    _check_gpus(cfg.trainer)
    if cfg.trainer.accelerator == "cpu" and (devices == -1 or OmegaConf.is_list(devices)):
        raise UserError(
            "trainer.devices",
            devices,
            "expected a number of processes with trainer.accelerator=cpu",
        )
    if devices_of(cfg) > 1 and not str(cfg.trainer.get("strategy")).startswith("ddp"):
        raise UserError(
            "trainer.devices", devices, "expected 1; trainer=ddp or ddp_cpu has a process for each"
        )
    _check_strategy(cfg.trainer)
    if cfg.compile and cfg.trainer.accelerator != "cpu":
        reason = "expected false, or trainer=cpu: GPUs have kernels of neurons"
        raise UserError("compile", True, reason)
    if cfg.trainer.cuda_graphs:
        _check_graphs(cfg)
    # how many batches an epoch has is known when the data is read: Lightning would tell later
    interval = cfg.trainer.get("val_check_interval")
    if interval is not None and not (isinstance(interval, float) and 0.0 < interval <= 1.0):
        raise UserError(
            "trainer.val_check_interval",
            interval,
            "expected a share of an epoch in (0, 1], as 0.5, or none of it and "
            "trainer.check_val_every_n_epoch",
        )
    # Lightning would train none of the network, and end as if it had
    for name in ("limit_train_batches", "max_steps"):
        if cfg.trainer.get(name) == 0:
            reason = "expected more than 0: else nothing is trained"
            raise UserError(f"trainer.{name}", cfg.trainer[name], reason)
    # which Lightning would take for bf16-mixed, with a warning of its own
    if cfg.trainer.accelerator == "cpu" and cfg.trainer.get("precision") == "16-mixed":
        raise UserError("trainer.precision", "16-mixed", "expected bf16-mixed with trainer=cpu")
    check_trainer(cfg.trainer)


def _check_strategy(trainer: DictConfig) -> None:
    """A strategy without what belongs to it: Lightning would tell when the training begins."""
    strategy, own = trainer.get("strategy"), trainer.get("use_distributed_sampler")
    if not str(strategy).startswith("ddp") or own is False:
        return
    if own is None:
        raise UserError("trainer.strategy", strategy, "expected trainer=ddp or ddp_cpu")
    reason = f"expected false with trainer.strategy={strategy}: loaders share batches themselves"
    raise UserError("trainer.use_distributed_sampler", own, reason)


def _check_gpus(trainer: DictConfig) -> None:
    """GPUs that this machine lacks: Lightning would tell when the training begins."""
    if trainer.accelerator not in ("gpu", "cuda") or trainer.devices in ("auto", -1):
        return
    there = max(1, torch.cuda.device_count())
    one_by_one = OmegaConf.is_list(trainer.devices)
    if max(trainer.devices) >= there if one_by_one else int(trainer.devices) > there:
        reason = f"this machine has {there}" + (", counted from 0" if one_by_one else "")
        raise UserError("trainer.devices", trainer.devices, reason)


def _check_graphs(cfg: DictConfig) -> None:
    """What a recorded training step cannot do."""
    reasons = {
        "trainer=gpu": cfg.trainer.accelerator == "cpu",
        "one device": devices_of(cfg) > 1,
        "trainer.compile=false": cfg.trainer.compile,
        # a replay writes its gradients where the last one's are
        "trainer.accumulate_grad_batches=1": cfg.trainer.accumulate_grad_batches > 1,
        "finetune.distill_rates=0": cfg.finetune.get("distill_rates", 0.0) > 0,
    }
    for needed, missing in reasons.items():
        if missing:
            raise UserError("trainer.cuda_graphs", True, f"expected false, or {needed}")


def _check_sensitivity(cfg: DictConfig) -> None:
    """Options of the analysis that would have no effect."""
    options = cfg.pruning.get("sensitivity")
    if options is None or cfg.pruning.name == "none":
        return
    if options.adaptive and options.method == "estimated":
        raise UserError("pruning.sensitivity.adaptive", True, "expected false with estimated rows")
    if options.autocast and cfg.trainer.accelerator not in ("gpu", "cuda"):
        raise UserError("pruning.sensitivity.autocast", True, "expected false without trainer=gpu")
    if options.mended and options.method == "estimated":
        raise UserError("pruning.sensitivity.mended", True, "expected false with estimated rows")
    if options.mended and cfg.pruning.get("recovery") not in SOLVING:
        reason = f"expected false, or pruning.recovery={' or '.join(SOLVING)}"
        raise UserError("pruning.sensitivity.mended", True, reason)


def _check_teachers(cfg: DictConfig) -> None:
    for group in ("training", "finetune"):
        teacher, weight = (cfg[group].get(name) for name in ("teacher", "distill_weight"))
        if teacher is not None and not weight:
            reason = f"expected null, or a {group}.distill_weight"
            raise UserError(f"{group}.teacher", teacher, reason)
        if group == "training" and weight and teacher is None:
            reason = "expected 0, or a training.teacher to follow: there is no base network yet"
            raise UserError("training.distill_weight", weight, reason)
    if cfg.finetune.get("teacher") is not None and cfg.finetune.distill_rates:
        reason = "expected null with finetune.distill_rates: another network has other neurons"
        raise UserError("finetune.teacher", cfg.finetune.teacher, reason)


def _check_schedules(cfg: DictConfig) -> None:
    """Values of a recipe that are right alone, and wrong together."""
    schedules = []
    if cfg.ckpt_path is None:
        schedules.append(("training", cfg.training, "trainer.max_epochs", cfg.trainer.max_epochs))
    has_recipe = "lr" in cfg.finetune
    if cfg.finetune.epochs and not has_recipe:
        reason = "expected 0 with finetune=none; finetune=default has a recipe"
        raise UserError("finetune.epochs", cfg.finetune.epochs, reason)
    # a base network that is trained here and not pruned is not fine-tuned
    used = cfg.train and not (cfg.pruning.name == "none" and cfg.ckpt_path is None)
    if cfg.finetune.epochs and has_recipe and used:
        schedules.append(("finetune", cfg.finetune, "finetune.epochs", cfg.finetune.epochs))
    _check_teachers(cfg)
    for group, recipe, option, epochs in schedules:
        if recipe.warmup_epochs >= epochs:
            raise UserError(
                f"{group}.warmup_epochs",
                recipe.warmup_epochs,
                f"expected less than {option}={epochs}",
            )
        if recipe.min_lr > recipe.lr:
            raise UserError(
                f"{group}.min_lr", recipe.min_lr, f"expected at most {group}.lr={recipe.lr}"
            )
        every = cfg.trainer.check_val_every_n_epoch
        if recipe.keep == "best" and every > epochs:
            raise UserError(
                "trainer.check_val_every_n_epoch",
                every,
                f"expected at most {option}={epochs}, as {group}.keep=best validates epochs",
            )
        if recipe.keep == "best" and cfg.trainer.get("limit_val_batches") == 0:
            raise UserError(
                "trainer.limit_val_batches",
                cfg.trainer.limit_val_batches,
                f"expected more than 0, as {group}.keep=best validates epochs",
            )
