"""One run over several processes, a device each: who they are, what they share, how they start.

All processes run the same program on the same config and meet in each stage. The first one writes;
the others work in folders of their own that are thrown away.
"""

import logging
import logging.config
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.multiprocessing
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.fabric.utilities.distributed import _destroy_dist_connection
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, distributed

from psvit.errors import UserError
from psvit.files import read_json

# seconds that a process has to end after it was told to
PATIENCE = 30

Batch = TypeVar("Batch", Tensor, list)
Work = Callable[[DictConfig, Path], Any]


def rank() -> int:
    """This process's number; 0 for the first and for the only one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes the run has."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(batch: Batch) -> Batch:
    """This process's part of a batch: every ``world_size``-th entry, from its ``rank`` on.

    Some processes have none of a batch that is smaller than their number.
    """
    return batch[rank() :: world_size()]


def by_shares(compute: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """``compute(batch)``, of which each process computes its share and has the whole, in order.

    Args:
        compute: gives a result for each entry of its batch, that does not depend on the others.
        batch: the same in all processes.
    """
    if world_size() == 1:
        return compute(batch)
    own = share(batch)
    # all have to take part, also in a batch that is smaller than their number
    results = compute(own if len(own) else batch[:1])
    size = math.ceil(len(batch) / world_size())
    padded = results.new_zeros(size, *results.shape[1:])
    padded[: len(results)] = results
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    distributed.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[: len(batch)]


def from_first(value: Any) -> Any:
    """The first process's ``value``; the others' is ignored."""
    if world_size() == 1:
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def from_all(value: Any) -> list[Any]:
    """Each process's ``value``, in the order of their numbers."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def made_by_all(
    get: Callable[[Callable[[Path], None]], Path], make: Callable[[Path], None]
) -> Path:
    """What ``get(make)`` gives the first process, which may call ``make`` or have the result.

    The others follow: where the first one makes the result, they work along, in a scratch folder.
    """
    if world_size() == 1:
        return get(make)
    if rank() == 0:

        def announced(folder: Path) -> None:
            from_first("make")
            make(folder)

        return from_first(get(announced))
    while (found := from_first(None)) == "make":
        with tempfile.TemporaryDirectory() as scratch:
            make(Path(scratch))
    return found


def run_over_processes(work: Work, cfg: DictConfig, folder: Path, job_logging: Any) -> Any:
    """``work(cfg, folder)`` in as many processes as ``trainer`` asks for.

    torchrun and Slurm have started them: each calls this. Else they are started here, so that a
    job of a multirun has its own and leaves none behind.

    Args:
        work: the program; importable by its name.
        cfg: the composed config.
        folder: the run's folder.
        job_logging: ``hydra.job_logging``, for the process that writes ``run.log``.

    Returns:
        What ``work`` returned; where processes were started here, what the first one's
        ``results.json`` holds.

    Raises:
        UserError: what the first process to fail raised, or a trainer that cannot be.
    """
    here, started = _place()
    wanted = devices_of(cfg) * cfg.trainer.get("num_nodes", 1)
    if started == wanted == 1 or not str(cfg.trainer.get("strategy")).startswith("ddp"):
        return work(cfg, folder)
    if cfg.dataset.batch_size % wanted:
        raise UserError(
            "dataset.batch_size",
            cfg.dataset.batch_size,
            f"expected a multiple of the {wanted} processes that share each batch",
        )
    if "latency" in str(cfg.pruning.get("budget")):
        raise UserError(
            "pruning.budget",
            cfg.pruning.budget,
            "processes would measure different times and plan differently: use trainer=gpu or cpu",
        )
    if started > 1:
        if started != wanted:
            raise UserError(
                "trainer.devices",
                cfg.trainer.devices,
                f"{started} processes were started: expected devices × num_nodes = {started}",
            )
        os.environ.update(here)
        return _work_along(work, cfg, folder)
    if cfg.trainer.get("num_nodes", 1) > 1:
        raise UserError(
            "trainer.num_nodes",
            cfg.trainer.num_nodes,
            "start the processes with torchrun or Slurm's srun: see docs/cluster.md",
        )
    return _start(work, cfg, folder, job_logging, wanted)


def _place() -> tuple[dict[str, str], int]:
    """The environment of a process that torchrun or Slurm started, and how many there are."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:
        return {}, int(os.environ["WORLD_SIZE"])
    if SLURMEnvironment.detect() and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        slurm = SLURMEnvironment()
        return {
            "RANK": str(slurm.global_rank()),
            "LOCAL_RANK": str(slurm.local_rank()),
            "WORLD_SIZE": str(slurm.world_size()),
            "MASTER_ADDR": slurm.main_address,
            "MASTER_PORT": str(slurm.main_port),
        }, slurm.world_size()
    return {}, 1


def devices_of(cfg: DictConfig) -> int:
    """Processes on this machine: one for each device."""
    devices = cfg.trainer.get("devices", 1)
    if devices in ("auto", -1):
        return max(1, torch.cuda.device_count()) if cfg.trainer.accelerator != "cpu" else 1
    return len(devices) if OmegaConf.is_list(devices) else int(devices)


def _start(work: Work, cfg: DictConfig, folder: Path, job_logging: Any, count: int) -> Any:
    """Start ``count`` processes and wait for them; when one fails, or this one is told to end, the
    others end too."""
    # what ended the first process is told by us, and that the others end with it is no news
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    told = torch.multiprocessing.get_context("spawn").SimpleQueue()
    meeting = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_network_port()),
        "WORLD_SIZE": str(count),
    }
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    plain_logging = OmegaConf.to_container(job_logging, resolve=True)
    processes = torch.multiprocessing.spawn(
        _worker, (work, cfg, folder, plain_logging, meeting, told), nprocs=count, join=False
    )
    try:
        while not processes.join():
            pass
    except (
        torch.multiprocessing.ProcessRaisedException,
        torch.multiprocessing.ProcessExitedException,
    ):
        if not told.empty():
            raise UserError(*told.get()) from None
        raise
    finally:
        for process in processes.processes:
            process.terminate()
        for process in processes.processes:
            process.join(PATIENCE)
    return read_json(folder / "results.json")


def _worker(
    number: int,
    work: Work,
    cfg: DictConfig,
    folder: Path,
    job_logging: dict[str, Any],
    meeting: dict[str, str],
    told: Any,
) -> None:
    os.environ.update(meeting, RANK=str(number), LOCAL_RANK=str(number), NODE_RANK="0")
    if number == 0:
        logging.config.dictConfig(job_logging)
    try:
        _work_along(work, cfg, folder)
    except UserError as error:
        told.put((error.option, str(error.value), error.expected))
        # without a traceback
        sys.exit(2)


def _work_along(work: Work, cfg: DictConfig, folder: Path) -> Any:
    on_gpu = cfg.trainer.accelerator != "cpu"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    rank_zero_only.rank = rank()
    try:
        folder = Path(from_first(str(folder)))
        if rank() == 0:
            # a decision that depends on what the folder holds is the same in all processes
            distributed.barrier()
            return work(cfg, folder)
        with _silent_copy(folder) as own:
            quiet = {"logger": {}, "print_config": False}
            return work(OmegaConf.create({**cfg, **quiet}), own)
    finally:
        _destroy_dist_connection()


@contextmanager
def _silent_copy(folder: Path):
    """A copy of the run's folder as it is now, that goes; nothing is printed meanwhile."""
    with tempfile.TemporaryDirectory() as own, open(os.devnull, "w") as nowhere:
        copied = Path(own) / folder.name
        if folder.is_dir():
            shutil.copytree(folder, copied)
        copied.mkdir(exist_ok=True)
        logging.getLogger().setLevel(logging.ERROR)
        distributed.barrier()
        printed, sys.stdout = sys.stdout, nowhere
        try:
            yield copied
        finally:
            sys.stdout = printed
