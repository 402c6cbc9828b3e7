"""timm's policies: what is accepted is what timm builds; all else is refused before training."""

import random

import numpy as np
import pytest
from data_files import load_cfg
from PIL import Image

from psvit.data import create_data
from psvit.data.policies import auto_augment
from psvit.errors import UserError

OPTION = "dataset.augment.auto_augment"


def built(policy):
    return auto_augment(load_cfg("digits", augment__auto_augment=policy))


@pytest.mark.parametrize(
    ("policy", "section", "right"),
    [
        ("rand-nonsense", "nonsense", "m, n, p, mstd, mmax, inc, tweights, t3a, t3aw"),
        ("rand-m7-nfoo", "nfoo", "m, n, p"),
        ("rand-m7-n", "n", "a whole number from 1 to 100"),
        ("rand-m9-n3-mstdx", "mstdx", "mstd"),
        ("rand-m9-mstd", "mstd", "a number, at least 0"),
        ("rand-m7.5", "m7.5", "a whole number"),
        ("rand-m7-tnonsense", "tnonsense", "tweights, t3a, t3aw"),
        ("rand-p7", "p7", "from 0 to 1"),
        ("rand-p0.5x", "p0.5x", "from 0 to 1"),
        ("rand-m99", "m99", "10"),
        ("rand-m21-mmax20", "m21", "20"),
        ("rand-mmax999999999", "mmax999999999", "from 1 to 100"),
        ("rand-m7-inc2", "inc2", "from 0 to 1"),
        ("rand-m7-m9", "m9", "second m"),
        ("rand-m7-", "", "m, n, p"),
        ("rand-m7-n99-tweights", "n99", "the 15 operations of tweights"),
        ("rand-n15-t3aw", "n15", "the 14 operations of t3aw"),
        ("rand-n1000000000", "n1000000000", "from 1 to 100"),
        ("augmix-m3-foo", "foo", "m, w, d, b, mstd, a"),
        ("augmix-a0", "a0", "from 0.1 to 1000"),
        ("augmix-w0", "w0", "from 1 to 100"),
        ("augmix-m11", "m11", "from 0 to 10"),
        ("original-foo", "foo", "mstd"),
        ("original-m3", "m3", "mstd"),
        ("v0-zzz", "zzz", "mstd"),
    ],
)
def test_a_section_that_timm_would_skip_is_named(policy, section, right):
    with pytest.raises(UserError) as caught:
        create_data(load_cfg("digits", augment__auto_augment=policy), 0)
    message = str(caught.value)
    assert message.startswith(f"{OPTION}={policy}: '{section}' is ") and "\n" not in message
    assert right in message.removeprefix(f"{OPTION}={policy}: '{section}'")


@pytest.mark.parametrize("policy", ["", "random-m7", "augmixed", "v1", "Original"])
def test_another_policy_is_refused(policy):
    with pytest.raises(UserError, match=f"{OPTION}={policy}: a policy as timm writes it, such as"):
        built(policy)


def test_every_section_reaches_timm():
    policy = built("rand-m12-n4-p0.25-mstd0.5-mmax20-inc1")
    (operation,) = [op for op in policy.ops if op.name == "ColorIncreasing"]
    assert policy.num_layers == 4
    assert (operation.magnitude, operation.prob) == (12, 0.25)
    assert (operation.magnitude_std, operation.magnitude_max) == (0.5, 20)
    assert "Color" in {op.name for op in built("rand-inc0").ops}
    mixed = built("augmix-m5-w4-d2-a0.5-b1-mstd1.5")
    assert (mixed.width, mixed.depth, mixed.alpha, mixed.blended) == (4, 2, 0.5, True)
    assert (mixed.ops[0].magnitude, mixed.ops[0].magnitude_std) == (5, 1.5)
    assert built("v0r-mstd2").policy[0][0].magnitude_std == 2
    assert {op.name for op in built("rand-t3a").ops} == {
        "SolarizeIncreasing",
        "Desaturate",
        "GaussianBlur",
    }


@pytest.mark.parametrize(
    "policy",
    # the largest of everything
    [
        "rand-m100-n100-p1-mmax100-mstd1000",
        "rand-m100-n100-p1-mmax100-inc1",
        "rand-n15-tweights",
        "rand-n14-t3aw",
        "rand-n100-t3a",
        "augmix-m10-w100-d100",
        "augmix-a0.1",
        "augmix-a1000",
        "originalr-mstd5",
        "v0",
        "3a",
    ],
)
def test_what_is_accepted_augments(policy):
    random.seed(0)
    np.random.seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    transform = built(policy)
    for _ in range(20):
        image = transform(Image.fromarray(pixels))
        assert (image.mode, image.size) == ("RGB", (8, 8))
