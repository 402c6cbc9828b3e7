"""What a cut has to save: of memory, and of operations or time where asked."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.measure.footprint import memory_saving, parameters
from psvit.measure.operations import count_operations
from psvit.measure.segments import SegmentSum, macs, seconds
from psvit.pruning.ranking import Ranking
from psvit.pruning.surgery import ParameterCounter, prune, pruned_parameters

Meter = Callable[[Plan], float]

# memory is what the reports mean by memory saving: the share of the parameters
RESOURCES = ("memory", "parameters", "macs", "synops", "latency")
# of them, what shapes alone say: an untrained network needs as much as a trained one
COUNTED = ("memory", "parameters", "macs")


def make_meter(network: nn.Module, resource: str, images: Tensor | None = None) -> Meter:
    """What a pruned network needs of a resource, as a function of the plan.

    Args:
        network: what is cut.
        resource: one of ``RESOURCES``: parameters; dense MACs, or seconds, for ``images``; spike
            operations of an image, at the firing rates of the pruned network on ``images``.
        images: a batch, ``[B, C, H, W]`` or ``[B, T, C, H, W]``; parameters need none.
    """
    if resource in ("memory", "parameters"):
        return ParameterCounter(network)
    if resource == "synops":
        return lambda plan: count_operations(prune(network, plan), images)["sops"].sum()
    measure = {"macs": macs, "latency": seconds}[resource]
    total = SegmentSum(measure, images)
    return lambda plan: total(prune(network, plan))


class Budget:
    """Shares of resources that a cut has to save, all of them.

    Args:
        network: what is cut; savings count against it.
        targets: resource -> share that goes, in (0, 1).
        meters: resource -> its meter; parameters need none to be given.
        spent: what they have measured of the same network; it is shared.

    Raises:
        UserError: the network spends nothing of a resource, as one without spikes of ``synops``.
    """

    def __init__(
        self,
        network: nn.Module,
        targets: Mapping[str, float],
        meters: Mapping[str, Meter] | None = None,
        spent: dict[tuple, float] | None = None,
    ):
        self.network = network
        self.targets = dict(targets)
        self._meters = dict(meters or {})
        self._spent = {} if spent is None else spent
        for resource in self.targets:
            if resource not in self._meters:
                self._meters[resource] = make_meter(network, resource)
        self.base = {resource: self.spent(resource, Plan()) for resource in self.targets}
        for resource, needed in self.base.items():
            if not needed:
                raise UserError(
                    "pruning.budget",
                    list(self.targets),
                    f"expected what the network spends: of {resource} it spends nothing to save",
                )

    def spent(self, resource: str, plan: Plan) -> float:
        """What the network cut by ``plan`` needs."""
        key = resource, tuple(sorted(plan.items()))
        if key not in self._spent:
            self._spent[key] = float(self._meters[resource](plan))
        return self._spent[key]

    def savings(self, plan: Plan) -> dict[str, float]:
        """Resource -> share that ``plan`` saves."""
        return {
            resource: 1.0 - self.spent(resource, plan) / base
            for resource, base in self.base.items()
        }

    def progress(self, plan: Plan) -> float:
        """How much of the way to the targets ``plan`` goes, by the slowest resource; 1 is there."""
        saved = self.savings(plan)
        return min(saved[resource] / target for resource, target in self.targets.items())

    def met(self, plan: Plan) -> bool:
        """Whether ``plan`` saves every target."""
        saved = self.savings(plan)
        return all(saved[resource] >= target for resource, target in self.targets.items())

    def scarcest(self, most: Plan) -> tuple[str, float]:
        """The resource, and its target, of which the largest cut ``most`` saves least of what it
        should."""
        saved = self.savings(most)
        return max(self.targets.items(), key=lambda item: item[1] - saved[item[0]])

    def scaled(self, share: float) -> "Budget":
        """The same resources, with each target times ``share``."""
        return self.towards({name: share * target for name, target in self.targets.items()})

    def towards(self, targets: Mapping[str, float]) -> "Budget":
        """Other targets for the same resources; what was measured is not measured again."""
        return Budget(self.network, targets, self._meters, self._spent)

    def reachable(self, ranking: Ranking) -> bool:
        """Whether cutting every group of the ranking as far as it goes saves as much."""
        return self.met(largest_cut(ranking, 1.0))

    def check_reachable(
        self, ranking: Ranking, max_ratio: float, names: Sequence[str] | None = None
    ) -> None:
        """Raise a UserError if cutting the groups ``names`` (all where None) by ``max_ratio`` saves
        too little."""
        most = largest_cut(ranking, max_ratio, names)
        if self.met(most):
            return
        resource, target = self.scarcest(most)
        few = names is not None and len(names) < len(ranking.groups)
        groups = f"the {len(names or ())} large groups" if few else "every group"
        more = "a larger pruning.large_share" if few else "fewer groups protected"
        # a cut by 1 takes all that may go
        lever = f"larger pruning.ratios, or {more}" if max_ratio < 1 else f"or {more}"
        cut = f"by the largest ratio, {max_ratio:g}," if max_ratio < 1 else "as far as it goes"
        raise UserError(
            option(resource),
            target,
            f"cannot be reached: cutting {groups} {cut} saves {self.savings(most)[resource]:.4f} "
            f"of {resource}; expected a lower target, {lever}",
        )


def largest_cut(ranking: Ranking, max_ratio: float, names: Sequence[str] | None = None) -> Plan:
    """Each of the groups ``names`` (all where None) cut by ``max_ratio``."""
    chosen = ranking.groups if names is None else names
    return ranking.plan({name: ranking.units(name, max_ratio) for name in chosen})


def option(resource: str) -> str:
    """The config value that holds a resource's target."""
    return "pruning.target_memory_saving" if resource == "memory" else "pruning.target_saving"


def parameters_saving(network: nn.Module, plan: Plan) -> float:
    """The share of the parameters of ``network`` that ``plan`` saves."""
    return memory_saving(pruned_parameters(network, plan), parameters(network))
