"""The whole method, stage by stage, as the paper tells it; each stage leaves its files behind."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

from psvit.channels import Plan
from psvit.compiled import compile_neurons
from psvit.config import check_config, make_absolute
from psvit.config.targets import targets
from psvit.config.unused import tell_unused
from psvit.console import print_config, quiet_libraries
from psvit.data import create_data
from psvit.decide import decide, make_budget, one_ratio_plan, round_budget
from psvit.errors import UserError
from psvit.files import write_json, write_text
from psvit.memory import keep_freed_memory
from psvit.networks import build_network, load_network, load_teacher
from psvit.processes import from_first, rank
from psvit.provenance import environment
from psvit.pruning import prune
from psvit.pruning.allocation import Budget, make_meter
from psvit.pruning.surgery import compose
from psvit.report import write_report, write_tables
from psvit.report.dashboard import log_run
from psvit.report.files import read_run
from psvit.report.loggers import close_loggers, logger_ids, open_loggers, wandb_run
from psvit.report.table import print_table
from psvit.resume import CONFIG, claimed, is_run_of, read_results, read_state, write_state
from psvit.reuse import arithmetic
from psvit.setup import check_pruning, rank_one_ratio, set_deterministic
from psvit.stages import Stages
from psvit.training.trainer import check_shares

_log = logging.getLogger(__name__)

# before any job of this process asks for fewer
ALL_THREADS = torch.get_num_threads()


def run(
    cfg: DictConfig, folder: Path, resumed: bool = False, overrides: Sequence[str] | None = None
) -> dict[str, Any]:
    """Train, analyse, prune, fine-tune and report, as ``cfg`` says.

    Args:
        cfg: the composed config.
        folder: the run's folder.
        resumed: whether the folder is that of a run that was stopped, and goes on. So does one
            that holds the same config.
        overrides: what Hydra was told for this run; None where no command line composed ``cfg``.

    Returns:
        What ``results.json`` holds.

    Raises:
        UserError: something in the config or the data is wrong; before any training where it can
            be known.
    """
    with claimed(folder):
        if resumed and read_state(folder)["finished"]:
            return _finished(folder)
        return _claimed_run(cfg, folder, resumed, overrides)


def _finished(folder: Path) -> dict[str, Any]:
    _log.info("%s is finished: there is nothing left to do", folder)
    return read_results(folder)


def _claimed_run(
    cfg: DictConfig, folder: Path, resumed: bool, overrides: Sequence[str] | None
) -> dict[str, Any]:
    quiet_libraries()
    check_config(cfg)
    if not resumed:
        make_absolute(cfg)
    if not cfg.train or "lr" not in cfg.finetune:
        cfg.finetune.epochs = 0
    if cfg.print_config:
        print_config(cfg)
    tell_unused(cfg, overrides or [])
    seed_everything(cfg.seed, verbose=False)
    set_deterministic(cfg.trainer.deterministic)
    keep_freed_memory()
    torch.set_num_threads(cfg.threads or ALL_THREADS)
    compile_neurons(cfg.compile)
    loaded = load_network(cfg)
    data = create_data(cfg.dataset, cfg.seed)
    network, trained = build_network(cfg, data, loaded)
    check_pruning(cfg, data, network)
    if cfg.train and (cfg.finetune.epochs or not trained):
        loaders = {"train": data.train_dataloader(), "val": data.val_dataloader()}
        check_shares(cfg.trainer, {name: len(loader) for name, loader in loaders.items()})
    teachers = {group: load_teacher(cfg, data, group) for group in ("training", "finetune")}
    config = OmegaConf.to_yaml(cfg, resolve=True)
    # of several processes the first one's word: the others' configs are without its loggers
    resumed = resumed or from_first(rank() == 0 and is_run_of(folder, config))
    if resumed and read_state(folder)["finished"]:
        return _finished(folder)
    if not resumed:
        write_state(folder, finished=False, loggers={}, arithmetic=arithmetic(cfg))
        write_text(folder / CONFIG, config)
        # Hydra notes its overrides in the folder before it is known whose the folder is
        said = None if overrides is None else list(overrides)
        write_json(folder / "environment.json", environment(overrides=said))

    loggers = open_loggers(cfg.logger, read_state(folder)["loggers"])
    write_state(folder, loggers=logger_ids(loggers))
    failed = True
    try:
        stages = Stages(cfg, data, folder, loggers)
        stages.teachers = teachers
        try:
            _run(stages, network, trained)
        except UserError:
            # what was measured until then; of several processes the first one writes
            if rank() == 0 and stages.record.results["rows"]:
                write_tables(folder)
            raise
        stages.record.time_networks()
        _report(folder, write_report if cfg.report == "full" else write_tables)
        print_table(read_run(folder))
        live = wandb_run(loggers)
        if live is not None:
            log_run(live, folder)
        failed = False
    finally:
        close_loggers(loggers, failed)
    write_state(folder, finished=True)
    stages.reuse.clear()
    return stages.record.results


def _report(folder: Path, write: Callable[[Path], object]) -> None:
    """What was measured is on disk: what cannot be drawn of it ends no run."""
    try:
        write(folder)
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        again = f"python -m psvit.report {folder}"
        _log.warning("the report is not whole (%s); to write it again: %s", reason, again)


def _run(stages: Stages, network: nn.Module, trained: bool) -> None:
    cfg = stages.cfg
    if not trained:
        network = stages.train_base(network)
    stages.base = network
    stages.record.add_row("base", network, "none", "base")
    if not trained:
        stages.record.save_network("base", network, None)
    if cfg.pruning.name == "none":
        if trained and cfg.finetune.epochs:
            finetuned = stages.finetune(network, Plan(), network)
            stages.record.add_row("base + fine-tuning", finetuned, "none", "finetuned")
            stages.record.save_network("finetuned", finetuned, Plan())
        return

    # the importance of a channel is that of the trained network
    ranking = stages.rank(network)
    one_ratio = rank_one_ratio(cfg, stages.data, network, ranking)
    stages.uniform_curve(network, one_ratio)
    if cfg.pruning.name == "sensitivity":
        stages.sensitivity(network, ranking)
        return
    budget = make_budget(stages, network, ranking)
    if cfg.pruning.name != "uniform" and cfg.pruning.max_accuracy_drop is None:
        if one_ratio is not ranking and not budget.reachable(one_ratio):
            _log.info("no network of one ratio: pruning.uniform_kinds cannot save as much")
        else:
            rival = one_ratio_plan(stages, one_ratio, budget)
            stages.record.add_row("uniform", prune(network, rival), "uniform", "pruned")
    _prune(stages, network, budget)


def _prune(stages: Stages, network: nn.Module, budget: Budget) -> None:
    """Prune, recover and fine-tune, in ``pruning.rounds`` rounds.

    A round whose saving is there already is left out, and the accuracy's limit may end them.
    """
    cfg = stages.cfg
    policy, rounds = cfg.pruning.name, cfg.pruning.rounds
    plan, current, pruned = Plan(), network, network
    last, step, stage = 0, "", "pruned"
    for number in range(1, rounds + 1):
        name = policy if number == rounds else f"{policy}, round {number} of {rounds}"
        left = round_budget(stages, budget, plan, current, number / rounds)
        if left is None:
            _log.info("round %d of %d: as much is saved already", number, rounds)
            continue
        try:
            decision = decide(stages, current, left, number)
        except UserError as error:
            if number == 1:
                raise
            if error.option != "pruning.max_accuracy_drop":
                reason = f"round {number} cannot do its part of what is left: {error}"
                raise UserError("pruning.rounds", rounds, reason) from error
            _log.info("round %d of %d cuts nothing more: %s", number, rounds, error)
            break
        last = number
        plan = compose(network, plan, decision.plan)
        stages.record.save_plan(network, plan, decision, number)
        pruned = prune(current, decision.plan)
        stages.record.add_row(name, pruned, policy, "pruned")
        stages.record.save_network("pruned", pruned, plan)
        mended = stages.recovered(pruned, decision.plan, current)
        if cfg.pruning.recovery != "none":
            step, stage = " + recovery", "recovered"
            stages.record.add_row(name + step, mended, policy, stage)
            stages.record.save_network("recovered", mended, plan)
        stages.compare_prediction(decision, current, pruned, mended)
        stages.diagnose(mended)
        if cfg.finetune.epochs:
            step, stage = " + fine-tuning", "finetuned"
            current = stages.finetune(current, decision.plan, mended)
            stages.record.add_row(name + step, current, policy, stage)
            stages.record.save_network("finetuned", current, plan)
        else:
            current = mended
    if last != rounds:
        stages.record.add_row(policy + step, current, policy, stage)
    _tell_missed(stages, budget, plan, pruned, current)


def _tell_missed(
    stages: Stages, budget: Budget, plan: Plan, pruned: nn.Module, final: nn.Module
) -> None:
    """Warn of targets that the rounds did not reach, by the plan of them all, the network that the
    last one cut, and what recovery and fine-tuning made of it."""
    for resource, target in targets(stages.cfg.pruning).items():
        # times vary; whatever else a policy cannot reach it refuses, but for an accuracy's limit
        if not target or resource == "latency":
            continue
        if resource == "synops":
            # what was mended on the way fires otherwise than the base network cut by the plan
            spent, now = (
                make_meter(network, resource, stages.few_images)(Plan())
                for network in (pruned, final)
            )
            left = 1.0 - now / budget.base[resource]
            if spent <= budget.base[resource] * (1.0 - target) and left < target:
                _log.warning(
                    "the network saves %.2f %% of synops, less than the %g %% that its plan saves: "
                    "mended, it fires more than as it was cut",
                    100 * left,
                    100 * target,
                )
        else:
            spent = budget.spent(resource, plan)
        saved = 1.0 - spent / budget.base[resource]
        if saved < target:
            _log.warning(
                "the plan saves %.2f %% of %s, less than the %g %% asked for: "
                "pruning.max_accuracy_drop allowed no more",
                100 * saved,
                resource,
                100 * target,
            )
