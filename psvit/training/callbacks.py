"""Lightning callbacks."""

from collections.abc import Mapping

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from psvit.channels import Plan
from psvit.pruning.surgery import prune_


class PruneBeforeFit(Callback):
    """Cuts a plan out of the module's network before Lightning asks for its optimizer.

    The optimizer therefore holds the smaller network's parameters and no dead ones.

    Args:
        plan: what to cut.
        weights: state dict of the smaller network to begin from, where recovery has changed it.
    """

    def __init__(self, plan: Plan, weights: Mapping[str, Tensor] | None = None):
        self.plan = plan
        self.weights = weights

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            prune_(pl_module.network, self.plan)
            if self.weights is not None:
                pl_module.network.load_state_dict(self.weights)
