"""Plans: what is refused, and what a plan's file looks like."""

import dataclasses

import pytest
import yaml

from psvit.channels import ChannelGroup, Plan
from psvit.errors import UserError

GROUPS = {
    "stage1.mlp.hidden": ChannelGroup("stage1.mlp.hidden", "hidden", 6, ("conv1",), ("conv2",)),
    "stage1.attn.value": ChannelGroup("stage1.attn.value", "value", 8, ("v",), ("p",), heads=2),
}


@pytest.mark.parametrize("indices", [[], [1, 1], [0, -1], [3, 2, 3]])
def test_indices_that_are_no_choice(indices):
    with pytest.raises(UserError, match=r"^plan\.stage1\.mlp\.hidden=\[.*: expected at least one"):
        Plan({"stage1.mlp.hidden": indices})


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (
            {"stage9.mlp.hidden": [0]},
            "plan=stage9.mlp.hidden: no such channel group.*stage1.mlp.hidden, stage1.attn.value",
        ),
        ({"stage1.mlp.hidden": [0, 6]}, r"plan\.stage1\.mlp\.hidden=6: .*6 channels \(0 to 5\)"),
        # 3 of the first head, 1 of the second
        ({"stage1.attn.value": [0, 1, 2, 4]}, r"plan\.stage1\.attn\.value=\[3, 1\]: every head"),
        ({"stage1.attn.value": [0, 1]}, r"plan\.stage1\.attn\.value=\[2, 0\]: every head"),
    ],
)
def test_plans_that_do_not_fit(kept, message):
    with pytest.raises(UserError, match=f"^{message}"):
        Plan(kept).check(GROUPS)


def test_a_plan_that_fits():
    plan = Plan({"stage1.mlp.hidden": range(6), "stage1.attn.value": [7, 0]})
    assert plan.check(GROUPS) is plan
    assert dict(plan) == {"stage1.mlp.hidden": (0, 1, 2, 3, 4, 5), "stage1.attn.value": (0, 7)}
    assert Plan().check(GROUPS) == Plan() and not Plan()


def test_a_saved_plan_is_the_same_plan(tmp_path):
    plan = Plan({"stage1.attn.value": [7, 0], "stage1.mlp.hidden": [3, 1, 2]})
    for number, each in enumerate((plan, Plan())):
        path = tmp_path / f"{number}.yaml"
        each.save(path, GROUPS, "uniform")
        again = Plan.load(path)
        assert dict(again) == dict(each) and list(again) == list(each)
        assert yaml.safe_load(path.read_text())["policy"] == "uniform"


def test_two_plans_differ_in_the_lines_of_the_groups_that_differ(tmp_path):
    texts = []
    for kept in ([0, 1, 2], [0, 1, 5]):
        path = tmp_path / "plan.yaml"
        Plan({"stage1.mlp.hidden": kept, "stage1.attn.value": [0, 7]}).save(path, GROUPS, "any")
        texts.append(path.read_text().splitlines())
    first, second = texts
    assert len(first) == len(second) == 2 + len(GROUPS)
    assert [a for a, b in zip(first, second, strict=True) if a != b] == [
        "  stage1.mlp.hidden: {size: 6, kept: [0, 1, 2]}"
    ]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "policy: x",
        "groups: 3",
        "groups: {a: 1}",
        "groups: {a: {size: 2}}",
        "groups: {a: {kept: 1}}",
        "groups: {a: {kept: [one]}}",
        "groups: {a: {kept: [1.5]}}",
        "groups: {a: {kept: []}}",
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_plan_file(tmp_path, text):
    path = tmp_path / "plan.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        Plan.load(path)
    assert str(error.value).startswith("plan") and "\n" not in str(error.value)


def test_a_group_seen_from_above():
    group = ChannelGroup(
        "value", "value", 8, ("v.conv", "v.bn"), ("p",), heads=2, silenced=("q",), counted_by=("",)
    )
    above = group.within("stage3.block1.attn")
    assert above == dataclasses.replace(
        group,
        name="stage3.block1.attn.value",
        producers=("stage3.block1.attn.v.conv", "stage3.block1.attn.v.bn"),
        consumers=("stage3.block1.attn.p",),
        silenced=("stage3.block1.attn.q",),
        counted_by=("stage3.block1.attn",),
    )
    # a query is silenced, and what reads the others is zeroed
    assert above.masked_modules == ("stage3.block1.attn.q",)
    assert GROUPS["stage1.mlp.hidden"].masked_modules == ("conv2",)
