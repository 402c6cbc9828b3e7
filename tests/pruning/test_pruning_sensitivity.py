"""Every row of the sensitivity table against a pruned copy on all images; a kill and going on."""

import copy
import json

import pandas as pd
import pytest
import torch
from own import QueryBlock, alive
from plans import same_bits

from psvit.channels import KINDS, ChannelGroup, Plan
from psvit.errors import UserError
from psvit.measure.accuracy import evaluate
from psvit.pruning import prune
from psvit.pruning.importance import l2
from psvit.pruning.ranking import Ranking, removable, units_removed
from psvit.pruning.sensitivity import COLUMNS, grid_points, measure_sensitivity
from psvit.pruning.sensitivity.tallies import Paired

CPU = torch.device("cpu")
RATIOS = [0.3, 0.0, 0.7]


class Killed(Exception):
    pass


@pytest.fixture
def images(images):
    return images[:5]


@pytest.fixture
def labels(labels):
    return labels[:5]


@pytest.fixture
def batches(images, labels):
    """Three batches, the last one short."""
    return list(zip(images.split(2), labels.split(2), strict=True))


def lowest_norms_gone(network, group, ratio):
    """The plan by hand: a share of each head's channels, those of the smallest norm, goes."""
    norms, per_head = l2(network, group), group.size // group.heads
    count = units_removed(group, ratio) // group.heads
    gone = set()
    for head in range(group.heads):
        units = range(head * per_head, (head + 1) * per_head)
        gone.update(sorted(units, key=lambda unit: norms[unit].item())[:count])
    return Plan({group.name: set(range(group.size)) - gone})


def answers(network, images, labels):
    """1 where the network is right."""
    with torch.no_grad():
        return (network.eval()(images).argmax(1) == labels).double()


def test_every_row_is_what_a_pruned_copy_gives(network, images, labels, batches, tmp_path):
    ranking = Ranking(network)
    before = copy.deepcopy(network.state_dict())
    table = measure_sensitivity(
        network, batches, RATIOS, ranking, tmp_path / "sensitivity.csv", CPU
    )
    assert list(table.columns) == COLUMNS
    assert same_bits(network.state_dict(), before)
    groups = network.channel_groups()
    assert len(table) == 2 * len(groups) and set(table.group) == set(groups)
    assert set(table.kind) == set(KINDS)
    base = sum(p.numel() for p in network.parameters())
    right = answers(network, images, labels)
    for row in table.itertuples():
        group = groups[row.group]
        pruned = prune(network, lowest_norms_gone(network, group, row.ratio))
        # all images in one batch: the batches must not matter
        brute = evaluate(pruned, [(images, labels)], CPU)
        left = sum(p.numel() for p in pruned.parameters())
        assert (row.kind, row.size, row.removed, row.parameters, row.images) == (
            group.kind,
            group.size,
            units_removed(group, row.ratio),
            left,
            5,
        ), row.group
        # what the file's digits can hold
        assert abs(row.top1 - brute.top1) <= 0.5e-4 + 1e-9, row.group
        assert abs(row.top1_stderr - brute.top1_stderr) <= 0.5e-4 + 1e-9, row.group
        lost = right - answers(pruned, images, labels)
        assert abs(row.drop - 100 * lost.mean()) <= 0.5e-4 + 1e-9, row.group
        stderr = 100 * lost.std(correction=0) / 5**0.5
        assert abs(row.drop_stderr - stderr) <= 0.5e-4 + 1e-9, row.group
        assert abs(row.loss - brute.loss) <= 0.5e-6 + 1e-9, row.group
        assert abs(row.memory_saving - (1 - left / base)) <= 0.5e-6 + 1e-9, row.group
    # the comparison says something: candidates differ, in their predictions too
    assert table.loss.nunique() > len(groups) and table["drop"].nunique() > 2


def kill_at(evaluation):
    def on_row(done, total):
        if done == evaluation:
            raise Killed

    return on_row


@pytest.fixture
def narrow(network):
    """A few groups of several segments and kinds."""
    wanted = (
        "stage1b.block1.mlp.hidden",
        "stage3.block1.attn.query_key",
        "stage3.block1.attn.value",
        "stage4.stream",
    )
    others = [name for name in network.channel_groups() if name not in wanted]
    return Ranking(network, protect=others)


# 4 groups at 2 ratios: 8 evaluations a batch
@pytest.mark.parametrize("killed_at", [3, 16])
def test_a_killed_analysis_goes_on(network, narrow, batches, tmp_path, killed_at):
    path, whole = tmp_path / "killed.csv", tmp_path / "whole.csv"
    expected = measure_sensitivity(network, batches, RATIOS, narrow, whole, CPU)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(Killed):
        measure_sensitivity(network, batches, RATIOS, narrow, path, CPU, kill_at(killed_at))
    assert same_bits(network.state_dict(), before)

    seen = []
    table = measure_sensitivity(
        network, batches, RATIOS, narrow, path, CPU, lambda *progress: seen.append(progress)
    )
    assert path.read_bytes() == whole.read_bytes()
    pd.testing.assert_frame_equal(table, expected)
    # batches that were done are not done again, and the bar goes on where it was
    first = (killed_at - 1) // 8 * 8 + 1
    assert seen == [(done, 24) for done in range(first, 25)]
    # no partial sums are left behind
    left = {f"{name}.{kind}" for name in ("killed", "whole") for kind in ("csv", "json")}
    assert {entry.name for entry in tmp_path.iterdir()} == left


def test_the_sums_so_far_are_exact(network, narrow, batches, tmp_path):
    path = tmp_path / "sensitivity.csv"
    with pytest.raises(Killed):
        measure_sensitivity(network, batches, [0.5], narrow, path, CPU, kill_at(9))
    sums = json.loads((tmp_path / "sensitivity.partial.json").read_text())["sums"]
    # the table of the batches so far can be read as it is
    table = pd.read_csv(path).set_index("group")
    assert len(sums) == len(table) == 4
    for name, removed, *rest in sums:
        assert removed == narrow.units(name, 0.5)
        pruned = prune(network, lowest_norms_gone(network, narrow.groups[name], 0.5))
        brute, saved = evaluate(pruned, batches[:2], CPU), Paired(*rest)
        assert (saved.images, saved.correct) == (4, brute.correct)
        assert abs(saved.loss_sum - brute.loss_sum) <= 1e-9
        assert abs(table.loc[name, "top1_stderr"] - brute.top1_stderr) <= 1e-4


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_table_cut_in_mid_line_is_written_anew(network, narrow, batches, tmp_path, cut):
    path, whole = tmp_path / "killed.csv", tmp_path / "whole.csv"
    measure_sensitivity(network, batches[:2], [0.5], narrow, whole, CPU)
    with pytest.raises(Killed):
        measure_sensitivity(network, batches[:2], [0.5], narrow, path, CPU, kill_at(6))
    path.write_bytes(path.read_bytes()[:cut])
    measure_sensitivity(network, batches[:2], [0.5], narrow, path, CPU)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("text", ["", '{"batch_size": 2, "base": [1', "[]", '{"sums": 3}'])
def test_damaged_sums_are_made_again(network, narrow, batches, tmp_path, caplog, text):
    path, whole = tmp_path / "killed.csv", tmp_path / "whole.csv"
    measure_sensitivity(network, batches[:2], [0.5], narrow, whole, CPU)
    with pytest.raises(Killed):
        measure_sensitivity(network, batches[:2], [0.5], narrow, path, CPU, kill_at(6))
    (tmp_path / "killed.partial.json").write_text(text)
    measure_sensitivity(network, batches[:2], [0.5], narrow, path, CPU)
    assert path.read_bytes() == whole.read_bytes()
    assert "killed.partial.json is damaged" in caplog.text


def test_sums_of_another_grid_are_not_gone_on_with(network, narrow, batches, tmp_path):
    path = tmp_path / "sensitivity.csv"
    with pytest.raises(Killed):
        measure_sensitivity(network, batches, [0.3], narrow, path, CPU, kill_at(9))
    table = measure_sensitivity(network, batches, [0.7], narrow, path, CPU)
    expected = measure_sensitivity(network, batches, [0.7], narrow, tmp_path / "other.csv", CPU)
    pd.testing.assert_frame_equal(table, expected)


def test_sums_of_other_cuts_or_weights_are_not_gone_on_with(network, narrow, batches, tmp_path):
    path, other = tmp_path / "sensitivity.csv", copy.deepcopy(network)
    with torch.no_grad():
        other.head.fc.weight.mul_(1.5)
    random = Ranking(network, "random", kinds=["hidden"], seed=1)
    by_norm = Ranking(network, "l2", kinds=["hidden"])
    kill_in_second = kill_at(len(by_norm.groups) + 1)
    # the same groups, and as many channels of each
    assert random.groups.keys() == by_norm.groups.keys()
    for number, (again, ranking) in enumerate([(network, random), (other, by_norm)]):
        with pytest.raises(Killed):
            measure_sensitivity(network, batches, [0.5], by_norm, path, CPU, kill_in_second)
        table = measure_sensitivity(again, batches, [0.5], ranking, path, CPU)
        fresh = tmp_path / f"fresh_{number}.csv"
        expected = measure_sensitivity(again, batches, [0.5], ranking, fresh, CPU)
        pd.testing.assert_frame_equal(table, expected)


class Narrow(Ranking):
    """A ranking of groups that no network has."""

    def __init__(self, *groups):
        self.groups = {group.name: group for group in groups}
        self._removable = {group.name: removable(group) for group in groups}
        self.already_cut = False


def test_grid_points():
    a, b = ChannelGroup("a", "hidden", 8, ()), ChannelGroup("b", "value", 8, (), heads=4)
    found = grid_points(Narrow(a, b), [0.5, 0.0, 0.1])
    assert found == [("a", 0.5), ("a", 0.1), ("b", 0.5), ("b", 0.1)]
    assert grid_points(Narrow(a, b), [0.0]) == []
    # a ratio given twice is measured once
    assert grid_points(Narrow(a), [0.5, 0.5]) == [("a", 0.5)]


@pytest.mark.parametrize(("size", "heads"), [(1, 1), (4, 4)])
def test_a_group_that_can_lose_nothing_is_refused(size, heads):
    wide = ChannelGroup("wide", "hidden", 8, ())
    narrow = ChannelGroup("narrow", "value", size, (), heads=heads)
    with pytest.raises(UserError, match="pruning.protect=narrow: .*can lose none"):
        grid_points(Narrow(wide, narrow), [0.1])


@pytest.mark.parametrize("affine", [True, False])
def test_a_query_whose_batch_norm_is_folded_is_cut_too(affine, images, labels, tmp_path):
    network, batches = alive(QueryBlock(8, affine)), [(images, labels)]
    ranking = Ranking(network, kinds=["query_key"])
    table = measure_sensitivity(network, batches, [0.5, 0.8], ranking, tmp_path / "s.csv", CPU)
    (name,) = ranking.groups
    for row in table.itertuples():
        pruned = prune(network, ranking.plan({name: row.removed}))
        expected = evaluate(pruned, batches, CPU, network)
        assert expected.kl > 1e-4
        # what the file's digits can hold
        assert abs(row.kl - expected.kl) <= 0.5e-6 + 1e-9
