"""What is refused of a network before anything long starts."""

import pytest
import torch
from torch import nn

from psvit.data import create_data
from psvit.errors import UserError
from psvit.networks import build_network, load_network
from psvit.pruning import checkpoint
from psvit.setup import check_pruning


class OneDimensional(nn.Conv1d):
    """A pointwise convolution as one over the pixels in a row."""

    def __init__(self, conv):
        super().__init__(conv.in_channels, conv.out_channels, 1, bias=False)

    def forward(self, x):
        return super().forward(x.flatten(2)).unflatten(2, x.shape[2:])


@pytest.mark.parametrize(
    ("options", "asked_by"),
    [
        (["pruning=budgeted"], r"pruning\.recovery=both"),
        (["pruning=fine_grained", "pruning.recovery=least_squares"], r"pruning\.recovery=least_sq"),
        (["pruning=fine_grained", "pruning.importance=reconstruction"], "the importance reconstr"),
        (["pruning=uniform", "pruning.uniform_importance=reconstruction"], "the importance reco"),
        (["pruning=budgeted", "pruning.recovery=bn"], None),
        # an analysis alone recovers nothing
        (["pruning=sensitivity", "pruning.recovery=both"], None),
    ],
)
def test_a_reader_of_unknown_inputs_is_told_before_training(config, tiny_run, options, asked_by):
    cfg = config(*tiny_run, "pruning.calibration_images=64", "pruning.ratios=[0.5]", *options)
    data = create_data(cfg.dataset, cfg.seed)
    torch.manual_seed(0)
    network = build_network(cfg, data, None)[0]
    check_pruning(cfg, data, network)
    mlp = network.stage2.block1.mlp
    mlp.conv2 = OneDimensional(mlp.conv2)
    if asked_by is not None:
        named = r"^stage2\.block1\.mlp\.hidden\.consumers=stage2\.block1\.mlp\.conv2: expected a "
        with pytest.raises(UserError, match=named + f".* with {asked_by}"):
            check_pruning(cfg, data, network)
        # of a layer that never runs nothing is asked
        mlp.forward = lambda x: x
    check_pruning(cfg, data, network)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "model=qkformer",
            "name=meta_spikeformer, this run asks for qkformer: expected model=meta_spikeformer",
        ),
        (
            "dataset.image_size=64",
            "image_size=32, this run asks for 64: expected dataset.image_size=32",
        ),
        (
            "model.in_channels=2",
            "in_channels=3, this run asks for 2: expected model.in_channels=3",
        ),
        ("model.name=mine", "name=meta_spikeformer, this run asks for mine: .*"),
    ],
)
def test_another_network_is_told_before_anything_is_read(
    config, tiny_run, tmp_path, caplog, option, message
):
    caplog.set_level("INFO")
    cfg = config(*tiny_run)
    network, _ = build_network(cfg, create_data(cfg.dataset, cfg.seed), None)
    checkpoint.save(network, tmp_path / "base")
    cfg = config(option, f"ckpt_path={tmp_path}/base")
    with pytest.raises(UserError, match=f"^ckpt_path=.*: its network has {message}$"):
        load_network(cfg)
    # a line that takes the network as it is would say otherwise
    assert "taken as it is" not in caplog.text
