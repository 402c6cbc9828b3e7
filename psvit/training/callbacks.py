"""Lightning callbacks."""

from lightning import Callback, LightningModule, Trainer

from psvit.channels import Plan
from psvit.pruning.surgery import prune_


class PruneBeforeFit(Callback):
    """Cuts a plan out of the module's network before Lightning asks for its optimizer.

    The optimizer therefore holds the smaller network's parameters and no dead ones.
    """

    def __init__(self, plan: Plan):
        self.plan = plan

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            prune_(pl_module.network, self.plan)
