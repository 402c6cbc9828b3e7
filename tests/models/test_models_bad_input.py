"""One line for each wrong value, naming the option and what would be right."""

import pytest
from networks import small

from psvit.errors import UserError
from psvit.models import create_model

BAD = [
    ("meta_spikeformer", {"num_heads": 7}, "model.num_heads=7", "divide the width 24"),
    ("e_spikeformer", {"num_heads": 5}, "model.num_heads=5", "divide"),
    ("sdt_v1", {"num_heads": 3}, "model.num_heads=3", "divide the width 32"),
    ("spikformer", {"num_heads": 0}, "model.num_heads=0", "at least 1"),
    # stage 1 is a quarter as wide
    ("qkformer", {"num_heads": 16}, "model.num_heads=16", "divide the width 8"),
    ("meta_spikeformer", {"image_size": 36}, "model.image_size=36", "multiple of 8"),
    ("e_spikeformer", {"image_size": 8}, "model.image_size=8", "at least 16"),
    ("sdt_v1", {"image_size": 30}, "model.image_size=30", "multiple of 4"),
    ("qkformer", {"strides": [2, 2, 2, 8]}, "model.image_size=32", "model.strides"),
    ("meta_spikeformer", {"time_steps": 0}, "model.time_steps=0", "at least 1"),
    ("spikformer", {"time_steps": -1}, "model.time_steps=-1", "at least 1"),
    ("qkformer", {"time_steps": 1.5}, "model.time_steps=1.5", "whole number"),
    ("meta_spikeformer", {"embed_dims": [8, 16, 32]}, "model.embed_dims=[8, 16, 32]", "4 whole"),
    ("meta_spikeformer", {"embed_dims": 64}, "model.embed_dims=64", "4 whole"),
    ("meta_spikeformer", {"embed_dims": [9, 16, 24, 32]}, "model.embed_dims=[9,", "even"),
    ("e_spikeformer", {"depth": [1, 1, 2, 6]}, "model.depth=[1, 1, 2, 6]", "5 whole"),
    ("e_spikeformer", {"depth": [1, 1, 0, 1, 1]}, "model.depth=", "at least 1"),
    ("e_spikeformer", {"strides": [2, 2]}, "model.strides=[2, 2]", "5 whole"),
    ("sdt_v1", {"embed_dims": [32, 64]}, "model.embed_dims=[32, 64]", "whole number"),
    ("spikformer", {"embed_dims": 36}, "model.embed_dims=36", "multiple of 8"),
    ("qkformer", {"depth": 3}, "model.depth=3", "at least 4"),
    ("sdt_v1", {"strides": [2, 2, 2]}, "model.strides=[2, 2, 2]", "4 whole"),
    ("sdt_v1", {"num_classes": None}, "model.num_classes=None", "whole number"),
    ("spikformer", {"in_channels": 0}, "model.in_channels=0", "at least 1"),
    ("meta_spikeformer", {"drop_path_rate": 1.0}, "model.drop_path_rate=1.0", "below 1"),
    ("qkformer", {"mlp_ratio": 0}, "model.mlp_ratio=0", "hidden"),
    ("meta_spikeformer", {"mlp_ratio": 0.1}, "model.mlp_ratio=0.1", "width of 4"),
    ("spikformer", {"attention_scale": 0}, "model.attention_scale=0", "above 0"),
    ("sdt_v1", {"patch_size": 4}, "model.patch_size=4", "it takes embed_dims, depth, num_heads"),
]


@pytest.mark.parametrize(("name", "values", "option", "expected"), BAD)
def test_bad_values(name, values, option, expected):
    with pytest.raises(UserError) as error:
        small(name, **values)
    message = str(error.value)
    assert message.startswith(option)
    assert expected in message and "\n" not in message


def test_an_unknown_name_lists_the_near_ones():
    with pytest.raises(UserError, match="model.name=spikeformer_8_384: .*spikformer_8_384"):
        create_model("spikeformer_8_384")
    with pytest.raises(UserError) as error:
        create_model("qkformer_10")
    for width in (384, 512, 768):
        assert f"qkformer_10_{width}" in str(error.value)
    # nothing near: all of them
    with pytest.raises(UserError, match="meta_spikeformer_15m.*sdt_v1_cifar"):
        create_model("zzz")


def test_a_module_that_cannot_be_imported():
    with pytest.raises(UserError, match="model.module=no_such_module: .*No module named"):
        create_model("sdt_v1", module="no_such_module")
