"""How a network is trained: the values of the config groups ``training`` and ``finetune``."""

from dataclasses import dataclass

KEEP = ("last", "best")


@dataclass(frozen=True)
class Recipe:
    """A training schedule.

    Attributes:
        epochs: how long.
        lr: AdamW's highest learning rate.
        weight_decay: not applied to biases and batch norms.
        warmup_epochs: linear, before the cosine decay.
        min_lr: where the decay ends.
        label_smoothing: share of the label given to all classes.
        mixup, cutmix: alpha of the beta distribution that images are mixed by; 0 for none.
        ema_decay: of the exponential moving average of the weights, which is then what is
            validated and kept; None for no average.
        keep: the ``last`` epoch's weights, or those ``best`` on the validation split, among which,
            in fine-tuning, the weights before the first epoch count.
        teacher: folder of the network to follow; None for the base network, or, where that is what
            is trained, for nobody.
        distill_weight: share of the loss that follows the teacher's outputs (0 to 1).
        distill_temperature: softens both outputs in it.
        distill_rates: weight of the squared difference of each neuron layer's firing rate.
    """

    epochs: int
    lr: float
    weight_decay: float = 0.05
    warmup_epochs: int = 0
    min_lr: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float | None = None
    keep: str = "last"
    teacher: str | None = None
    distill_weight: float = 0.0
    distill_temperature: float = 1.0
    distill_rates: float = 0.0

    @property
    def distills(self) -> bool:
        """Whether a teacher is followed."""
        return self.distill_weight > 0.0 or self.distill_rates > 0.0
