"""A candidate with the weights that read it solved again, as recovery will solve them."""

import torch
from torch import Tensor, nn

from psvit.channels import ChannelGroup, Plan
from psvit.pruning.calibration import Batches
from psvit.pruning.gram import input_grams
from psvit.pruning.ranking import Ranking
from psvit.pruning.recovery import damped_solve
from psvit.pruning.sensitivity.tallies import Candidate
from psvit.pruning.surgery import expand_units


class Mending:
    """What least squares changes in a group's consumers when the group alone is cut.

    A group that carries much is not worth keeping where the others can stand in for it; only a
    table of what recovery leaves says so. Cut alone, a group's kept channels are the base
    network's, so one Gram matrix G of a consumer's inputs serves every ratio: with the columns
    k kept and r removed, W_k moves by W_r G_rk (G_kk + λI)⁻¹. That is what
    ``recover(…, "least_squares")`` finds for this plan; of a ``stream`` group, whose writers read
    it too, it is an approximation. A silenced query has no consumer, and is measured as cut.

    Args:
        model: the base network.
        ranking: its groups.
        batches: calibration images and labels, of the training split.
        ridge: λ as a share of the mean diagonal of G_kk.
        device: where to run.
    """

    def __init__(
        self,
        model: nn.Module,
        ranking: Ranking,
        batches: Batches,
        ridge: float,
        device: torch.device | str | None = None,
    ):
        self._groups, self.ridge = ranking.groups, ridge
        consumers = {path for group in self._groups.values() for path in _consumers(group)}
        self._grams = input_grams(model, sorted(consumers), batches, device)
        self._found: dict[Candidate, dict[str, Tensor]] = {}

    def changes(self, network: nn.Module, candidate: Candidate, plan: Plan) -> dict[str, Tensor]:
        """Path -> what to add to its weight, whose removed inputs are zeroed.

        Args:
            network: the base network, also with folded batch norms, as it is without the cut.
            candidate: the name by which what was found is kept for the next batch.
            plan: of the candidate.
        """
        if candidate not in self._found:
            group = self._groups[candidate[0]]
            self._found[candidate] = {
                path: self._change(network.get_submodule(path).weight, path, group.size, plan)
                for path in _consumers(group)
                # a module may be kept for its checkpoint and never run
                if self._grams[path].rows
            }
        return self._found[candidate]

    def _change(self, weight: Tensor, path: str, size: int, plan: Plan) -> Tensor:
        gram = self._grams[path].matrix
        ((_, units),) = plan.items()
        kept = torch.zeros(len(gram), dtype=torch.bool, device=gram.device)
        kept[expand_units(units, size, len(gram))] = True
        rows = weight.flatten(1).double()
        missing = rows[:, ~kept] @ gram[~kept][:, kept]
        change = torch.zeros_like(rows)
        change[:, kept] = damped_solve(gram[kept][:, kept], missing, self.ridge)
        return change.to(weight.dtype).view(weight.shape)


def _consumers(group: ChannelGroup) -> tuple[str, ...]:
    return () if group.silenced else group.consumers
