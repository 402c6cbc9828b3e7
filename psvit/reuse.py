"""Costly stages: what they depend on, and where their results are kept for those who need them."""

import copy
import functools
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import load_file, save
from torch import nn

from psvit.cache import StageCache, code_version, data_fingerprint, tensors_fingerprint
from psvit.data import ImageData
from psvit.files import read_json, write_json, write_whole
from psvit.processes import made_by_all
from psvit.pruning.ranking import Ranking
from psvit.resume import DONE, read_state
from psvit.training.recipe import Recipe

_log = logging.getLogger(__name__)

# what a stage leaves of a network
WEIGHTS = "weights.safetensors"
# the code that a stage's result depends on
TRAINED_BY = (
    *("psvit.models", "psvit.neurons", "psvit.compiled", "psvit.channels"),
    *("psvit.data", "psvit.training", "psvit.networks", "psvit.setup"),
)
MEASURED_BY = (*TRAINED_BY, "psvit.pruning", "psvit.measure", "psvit.inference")
DECIDED_BY = (*MEASURED_BY, "psvit.measured", "psvit.stages", "psvit.decide")
# of the trainer: what changes how much is told, or how long
NOT_IN_KEY = ("max_epochs", "log_every_n_steps", "enable_model_summary", "enable_progress_bar")
# what holds the libraries to other instructions than the best of the processor
INSTRUCTIONS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


class Reuse:
    """The results of costly stages, by all that they depend on.

    Args:
        cfg: the composed config.
        data: the images.
        folder: the run's.
    """

    def __init__(self, cfg: DictConfig, data: ImageData, folder: Path):
        self.cfg, self.data = cfg, data
        self.folder = folder / DONE
        here = arithmetic(cfg)
        # a run that goes on elsewhere goes on with what it has
        self._arithmetic = read_state(folder).get("arithmetic", here)
        if self._arithmetic != here:
            said = "made on %s so far: here, on %s, it goes on with other roundings"
            _log.warning(said, _spoken(self._arithmetic), _spoken(here))
        # the run tells of its stages itself
        self._own = StageCache(self.folder, option="hydra.run.dir", level=logging.DEBUG)
        root = cfg.paths.cache_dir
        self._cache = self._own if root is None else StageCache(Path(root))

    @functools.cached_property
    def _data(self) -> str:
        return data_fingerprint(self.data)

    def clear(self) -> None:
        """Remove what only a run that goes on needs."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def shared(
        self, stage: str, code: Sequence[str], make: Callable[[Path], None], **key: Any
    ) -> Path:
        """The folder with what ``make`` writes: this run's, or that of one that needed the same.

        Args:
            stage: the kind of result.
            code: modules and packages that make it.
            make: writes the result into a folder.
            key: what the result depends on beside them, the data, the seed and the trainer.
        """
        return self._kept(self._cache, stage, code, make, key)

    def own(self, stage: str, make: Callable[[Path], None], **key: Any) -> Path:
        """The folder with what ``make`` writes, which this run alone needs: if it goes on again.

        Args:
            stage: the kind of result.
            make: writes the result into a folder.
            key: what the result depends on, as for ``shared``.
        """
        return self._kept(self._own, stage, DECIDED_BY, make, key)

    def own_value(self, stage: str, make: Callable[[], Any], **key: Any) -> Any:
        """As ``own``, for what JSON holds."""

        def write(folder: Path) -> None:
            write_json(folder / "value.json", make())

        return read_json(self.own(stage, write, **key) / "value.json")

    def _kept(
        self,
        cache: StageCache,
        stage: str,
        code: Sequence[str],
        make: Callable[[Path], None],
        key: dict[str, Any],
    ) -> Path:
        return made_by_all(
            lambda make: cache.get(stage, self._key(code, key), make),
            make,
        )

    def _key(self, code: Sequence[str], key: dict[str, Any]) -> dict[str, Any]:
        cfg = self.cfg
        return {
            **{name: asdict(x) if isinstance(x, Recipe) else x for name, x in key.items()},
            "seed": cfg.seed,
            "arithmetic": self._arithmetic,
            "compile": cfg.compile,
            "channels_last": cfg.channels_last,
            "trainer": {
                name: value for name, value in cfg.trainer.items() if name not in NOT_IN_KEY
            },
            "data": self._data,
            "code": code_version(*code, *filter(None, [cfg.model.get("module")])),
        }

    def measured(
        self,
        stage: str,
        network: nn.Module,
        base: nn.Module,
        ranking: Ranking,
        make: Callable[[Path], None],
        mended: bool = False,
    ) -> Path:
        """The folder with what ``make`` measures of a network's channel groups.

        Args:
            stage: the kind of result.
            network: whose groups are pruned.
            base: the network that it is compared with.
            ranking: the groups.
            make: writes the result into a folder.
            mended: with the weights that read a group solved again.
        """
        pruning = self.cfg.pruning
        calibrates = mended or pruning.sensitivity.method == "estimated"
        return self.shared(
            stage,
            MEASURED_BY,
            make,
            network=tensors_fingerprint(network.state_dict()),
            model=network.spec,
            base=tensors_fingerprint(base.state_dict()),
            scores=tensors_fingerprint(ranking.scores),
            removable={group: ranking.removable(group) for group in ranking.groups},
            ratios=list(self.cfg.pruning.ratios),
            sensitivity={**pruning.sensitivity, "groups": None, "mended": mended},
            calibration_images=pruning.calibration_images if calibrates else None,
            ridge=pruning.ridge if mended else None,
        )


def arithmetic(cfg: DictConfig) -> dict[str, Any]:
    """What the roundings of a run depend on beside its config: the processor, and its threads."""
    on_gpu = cfg.trainer.accelerator in ("gpu", "cuda") and torch.cuda.is_available()
    kind = torch.backends.cpu.get_cpu_capability()
    return {
        "processor": torch.cuda.get_device_name() if on_gpu else kind,
        "threads": torch.get_num_threads(),
        **{name: os.environ[name] for name in INSTRUCTIONS if name in os.environ},
    }


def _spoken(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items())


def keep_weights(folder: Path, network: nn.Module) -> None:
    """Leave a network's weights in a stage's folder."""
    dense = torch.contiguous_format
    # copies, as layers that share weights may not be stored by them
    data = save({k: v.clone(memory_format=dense) for k, v in network.state_dict().items()})
    write_whole(folder / WEIGHTS, lambda temporary: temporary.write_bytes(data))


def with_kept_weights(network: nn.Module, folder: Path) -> nn.Module:
    """A copy of ``network`` with the weights that a stage left in its folder."""
    network = copy.deepcopy(network)
    network.load_state_dict(load_file(folder / WEIGHTS))
    return network
