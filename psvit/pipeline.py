"""The whole method, stage by stage, as the paper tells it; each stage leaves its files behind."""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

from psvit.channels import Plan
from psvit.config import check_config
from psvit.console import quiet_libraries
from psvit.data import create_data
from psvit.files import write_text
from psvit.pruning import allocation, prune
from psvit.report import write_report
from psvit.report.dashboard import log_run
from psvit.report.files import read_run
from psvit.report.loggers import close_loggers, open_loggers, wandb_run
from psvit.report.table import print_table
from psvit.setup import build_network, check_pruning, rank_channels
from psvit.stages import Stages

_log = logging.getLogger(__name__)


def run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Train, analyse, prune, fine-tune and report, as ``cfg`` says.

    Args:
        cfg: the composed config.
        folder: the run's folder.

    Returns:
        What ``results.json`` holds.

    Raises:
        UserError: something in the config or the data is wrong; before any training where it can
            be known.
    """
    quiet_libraries()
    check_config(cfg)
    seed_everything(cfg.seed, verbose=False)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    data = create_data(cfg.dataset, cfg.seed)
    network, trained = build_network(cfg, data)
    check_pruning(cfg, data, network)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))

    loggers = open_loggers(cfg.logger)
    failed = True
    try:
        stages = Stages(cfg, data, folder, loggers)
        _run(stages, network, trained)
        write_report(folder)
        print_table(read_run(folder))
        live = wandb_run(loggers)
        if live is not None:
            log_run(live, folder)
        failed = False
    finally:
        close_loggers(loggers, failed)
    return stages.results


def _run(stages: Stages, network: nn.Module, trained: bool) -> None:
    cfg = stages.cfg
    if not trained:
        network = stages.train_base(network)
    stages.add_row("base", network)
    if cfg.pruning.name == "none":
        return

    # the importance of a channel is that of the trained network
    ranking = rank_channels(cfg, stages.data, network)
    stages.uniform_curve(network, ranking)
    if cfg.pruning.name == "uniform":
        plan = allocation.uniform(ranking, cfg.pruning.ratio)
    else:
        # PrimeSVT's rule measures for itself, on the network as it is being pruned
        measured = cfg.pruning.name != "prioritized"
        sensitivity = stages.sensitivity(network, ranking) if measured else None
        if cfg.pruning.name == "sensitivity":
            return
        target = cfg.pruning.target_memory_saving
        _, rival = allocation.uniform_at(network, ranking, target)
        stages.add_row("uniform", prune(network, rival))
        plan = stages.plan(network, ranking, sensitivity)
    _prune_and_finetune(stages, network, plan)


def _prune_and_finetune(stages: Stages, network: nn.Module, plan: Plan) -> None:
    name = stages.cfg.pruning.name
    stages.save_plan(network, plan)
    pruned = prune(network, plan)
    stages.add_row(name, pruned)
    stages.save_network("pruned", pruned, plan)
    if stages.cfg.pruning.recovery != "none":
        pruned = stages.recover(pruned, network, plan)
        stages.add_row(f"{name} + recovery", pruned)
        stages.save_network("recovered", pruned, plan)
    if stages.cfg.finetune.epochs:
        finetuned = stages.finetune(network, plan, pruned)
        stages.add_row(f"{name} + fine-tuning", finetuned)
        stages.save_network("finetuned", finetuned, plan)
