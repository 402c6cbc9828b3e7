"""What a user's terminal shows: the config as a tree, and no library's chatter."""

import logging
import warnings
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.syntax import Syntax
from rich.text import Text
from rich.tree import Tree

# sections that tell most come first; the others follow as they were composed
FIRST = ("model", "dataset", "training", "pruning", "finetune", "trainer")


def quiet_libraries() -> None:
    """Hide notices that a user can do nothing about; warnings of this project still show."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        # Lightning's own handler and Hydra's would each print the same line
        logger.propagate = False
    for message in (
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*lr_scheduler.step\\(\\).*before.*optimizer.step\\(\\).*",
    ):
        warnings.filterwarnings("ignore", message=message)


def config_tree(cfg: DictConfig) -> Tree:
    """The resolved config, a branch for each section; the run's own values come last.

    ``config.yaml`` in the run's folder says the same.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    order = sorted(plain, key=lambda key: FIRST.index(key) if key in FIRST else len(FIRST))
    sections = {key: plain[key] for key in order if isinstance(plain[key], dict)}
    tree = Tree(str(plain.get("name", "config")), guide_style="dim")
    for key, section in {**sections, "run": _values(plain)}.items():
        text = OmegaConf.to_yaml(OmegaConf.create(section)).rstrip()
        tree.add(key).add(Syntax(text, "yaml", background_color="default", word_wrap=True))
    return tree


def _values(plain: dict) -> dict:
    return {key: value for key, value in plain.items() if not isinstance(value, dict)}


def print_config(cfg: DictConfig) -> None:
    """Draw ``config_tree`` in the terminal."""
    Console().print(config_tree(cfg))


class ImagesPerSecond(ProgressColumn):
    """How fast a task goes whose steps each take ``images``, a field of the task."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        rate = "–" if speed is None else f"{speed * task.fields['images']:,.0f}"
        return Text(f"{rate} images/s")


def progress(console: Console | None = None) -> Progress:
    """A bar with steps done, images a second and time left; nothing where there is no terminal."""
    console = console or Console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        ImagesPerSecond(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
