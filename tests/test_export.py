"""What is exported answers as torch does, for any batch; what does not is refused."""

import copy
import random
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from psvit.channels import Plan
from psvit.errors import UserError
from psvit.export import __main__ as command
from psvit.export import check, logits_only, to_onnx
from psvit.export.images import choose_images
from psvit.models import SpikingTransformer, create_model, register_model
from psvit.models.blocks import MLP, Downsample, Head, ResidualBlock
from psvit.neurons import LIF, IntegerLIF, reset_state
from psvit.pruning import checkpoint, prune

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

PYRAMID = {
    "embed_dims": [16, 16, 16, 16],
    "depth": [1, 1, 1, 1, 1],
    "strides": [2, 2, 1, 2, 1],
    "mlp_ratio": 2.0,
}
COLUMN = {"embed_dims": 32, "depth": 1, "strides": [2, 2, 1, 1]}
# what a network has more of, alike: tracing it again takes most of a test's time
REPEATED = {
    "meta_spikeformer": ("stage1b.block1", "stage2", "stage4"),
    "e_spikeformer": ("stage1b.block1", "stage2", "stage4"),
    "qkformer": ("stage2.block1", "stage2.block2"),
}
FAMILIES = {
    "meta_spikeformer": PYRAMID,
    "e_spikeformer": PYRAMID,
    "sdt_v1": COLUMN,
    "spikformer": COLUMN,
    "qkformer": {**COLUMN, "depth": 4},
}


class Tiny(SpikingTransformer):
    """A stem, a block and a head: quick to trace."""

    def __init__(
        self, width=8, neuron="lif", image_size=8, num_classes=5, in_channels=3, time_steps=2
    ):
        super().__init__(time_steps)
        make = {"lif": LIF, "integer": IntegerLIF}[neuron]
        self.stem = Downsample(in_channels, width, 3, 2)
        block = ResidualBlock(0.0, mlp=MLP(width, 2 * width, neuron=make))
        self.stage1 = nn.Sequential(OrderedDict(block1=block))
        self.init_weights()
        self.head = Head(width, num_classes, make)


register_model("tiny_export", Tiny)


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def alive(name, **values):
    """A float32 network that fires; its logits tell the images apart."""
    torch.manual_seed(0)
    if name in FAMILIES:
        values = {"num_heads": 4, "image_size": 32, **FAMILIES[name], **values}
    network = create_model(name, num_classes=5, **values)
    for path in REPEATED.get(name, ()):
        parent, _, child = path.rpartition(".")
        delattr(network.get_submodule(parent), child)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.6, 1.8)
        nn.init.uniform_(norm.bias, 0.2, 1.4)
        norm.momentum = None
    nn.init.normal_(network.head.fc.weight)
    spec = network.spec
    with torch.no_grad():
        for seed in range(3):
            network(noise(4, spec["in_channels"], *[spec["image_size"]] * 2, seed=100 + seed))
    return network.eval()


def cut(network, ratio=0.4):
    """A plan that leaves of every group of ``network``, head by head, a random part."""
    chooser, plan = random.Random(0), {}
    for name, group in network.channel_groups().items():
        per_head = group.size // group.heads
        keep = max(1, per_head - round(ratio * per_head))
        plan[name] = [
            head * per_head + unit
            for head in range(group.heads)
            for unit in chooser.sample(range(per_head), keep)
        ]
    return Plan(plan)


def torch_logits(network, images):
    with torch.no_grad():
        return network(images)


def assert_same(network, model, images):
    """onnxruntime gives torch's logits, which differ from image to image."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected = torch_logits(network, images)
    assert len(images) == 1 or expected.std(0).max() > 0.01
    (found,) = session.run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_answers_as_in_torch_base_and_pruned(name):
    base = alive(name, time_steps=2)
    pruned = prune(base, cut(base))
    if name == "e_spikeformer":
        # as it is released
        pruned.time_steps = 1
    for network in (base, pruned):
        model = logits_only(to_onnx(network, noise(2, 3, 32, 32)))
        onnx.checker.check_model(model)
        for batch in (5, 1):
            assert_same(network, model, noise(batch, 3, 32, 32))


@pytest.mark.parametrize("neuron", ["lif", "integer"])
def test_event_frames_bring_their_own_steps(neuron):
    network = alive("tiny_export", in_channels=2, neuron=neuron)
    model = logits_only(to_onnx(network, noise(2, 5, 2, 8, 8)))
    assert_same(network, model, noise(4, 5, 2, 8, 8))


@pytest.fixture(scope="module")
def exported():
    """A tiny network, what it answered before its export, and its graph at opset 18."""
    network = alive("tiny_export")
    before = torch_logits(network, noise(3, 3, 8, 8))
    return network, before, to_onnx(network, noise(2, 3, 8, 8), opset=18)


def test_the_opset_is_the_one_asked_for(exported):
    network, _, model = exported
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]
    assert_same(network, model, noise(3, 3, 8, 8))


def test_exporting_leaves_the_network_as_it_is(exported):
    network, before, _ = exported
    assert isinstance(network.head.neuron, LIF)
    assert torch.equal(torch_logits(network, noise(3, 3, 8, 8)), before)


class Readout(nn.Module):
    """Four pixels, each with a neuron of its own over two steps, and a linear layer."""

    def __init__(self, neuron, gain=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.neuron, self.fc = neuron, nn.Linear(4, 3)
        # not a number, which the exporter drops where it is almost 1
        self.gain = nn.Parameter(torch.full((4,), gain))

    def forward(self, images):
        reset_state(self)
        currents = (images.flatten(1) * self.gain).expand(2, -1, -1)
        first, second = self.neuron(currents)
        # so that it matters when a neuron fires
        return self.fc(first - 0.5 * second)


def pixels(*values):
    """Images ``[B, 1, 2, 2]`` of which the first has these pixels; the others drive no spike."""
    images = torch.full((3, 1, 2, 2), 0.125)
    images[0] = torch.tensor(values).view(1, 2, 2)
    return images


@pytest.fixture(scope="module")
def readouts():
    """What was exported: each kind of neuron behind a gain of 1."""
    return {make: to_onnx(Readout(make()), pixels(*[1.0] * 4)) for make in (LIF, IntegerLIF)}


# the first pixel brings its potential to a threshold at the first step, no other comes near one;
# a LIF that fires and is reset to 0 stands there again at the second
@pytest.mark.parametrize(("make", "at", "flipped"), [(LIF, 2.0, 2), (IntegerLIF, 1.5, 1)])
def test_a_flipped_spike_is_told_and_accepted(readouts, make, at, flipped):
    images = pixels(at, 0.25, 0.25, 0.25)
    rounded = Readout(make(), gain=1 - 1e-6).eval()
    found = check(rounded, readouts[make], images, batch_size=2)
    assert (found.images, found.agree, found.flipped) == (3, 2, flipped)
    assert found.distance < 2e-6 and found.forced_difference < 1e-6
    assert "2 of 3" in str(found) and f"{flipped} in their batches" in str(found)


@pytest.mark.parametrize(("make", "near"), [(LIF, 2.01), (IntegerLIF, 1.505)])
def test_a_spike_that_rounding_cannot_flip_is_refused(readouts, make, near):
    images = pixels(near, 0.25, 0.25, 0.25)
    with pytest.raises(UserError, match="not by spikes within"):
        check(Readout(make(), gain=0.99).eval(), readouts[make], images)


@pytest.mark.parametrize("fault", [2e-4, torch.nan])
def test_logits_that_differ_with_the_same_spikes_are_refused(readouts, fault):
    images, wrong = pixels(2.0, 1.0, 3.0, 0.5), Readout(LIF()).eval()
    check(wrong, readouts[LIF], images)
    with torch.no_grad():
        wrong.fc.bias[1] += fault
    with pytest.raises(UserError, match="given the same spikes: (2e-04|0.0002|inf)"):
        check(wrong, readouts[LIF], images)


def test_a_neuron_with_foreign_settings_is_refused():
    neuron = LIF()
    neuron.v_reset = None
    with pytest.raises(UserError, match="neuron"):
        to_onnx(Readout(neuron), pixels(1.0, 1.0, 1.0, 1.0))


PREPROCESSING = {
    "image_size": 8,
    "mean": [0.3] * 3,
    "std": [0.3] * 3,
    "crop_pct": 1.0,
    "interpolation": "bilinear",
}


@pytest.fixture(scope="module")
def _saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    base = alive("tiny_export")
    plan = cut(base)
    checkpoint.save(base, folder / "base", preprocessing=PREPROCESSING)
    checkpoint.save(prune(base, plan), folder / "pruned", plan, preprocessing=PREPROCESSING)
    return folder


@pytest.fixture
def saved(_saved, tmp_path):
    """A folder with the saved networks ``base`` and ``pruned``."""
    return shutil.copytree(_saved, tmp_path / "run")


def test_the_command_writes_and_tabulates_every_network(saved, capsys):
    folders = [saved / "base", saved / "pruned"]
    assert command.main([*map(str, folders), "--batch-size", "2"]) == 0
    out, error = capsys.readouterr()
    assert not error
    heading, *rows = out.split("\n\n")[1].splitlines()
    assert heading.split()[:4] == ["network", "parameters", "MB", "agree"]
    assert len(rows) == 2
    for folder, row in zip(folders, rows, strict=True):
        network, _ = checkpoint.load(folder)
        name, count, size, agree, *_ = row.split()
        assert name == str(folder) and agree == "32/32"
        assert int(count.replace(",", "")) == sum(p.numel() for p in network.parameters())
        assert float(size) == pytest.approx((folder / "model.onnx").stat().st_size / 1e6, abs=1e-3)
        model = onnx.load(folder / "model.onnx")
        assert [output.name for output in model.graph.output] == ["logits"]
        assert_same(network.eval(), model, noise(7, 3, 8, 8))
        # no trace of where it was made
        assert b".py" not in (folder / "model.onnx").read_bytes()
    assert "digits" in out and f"{torch.get_num_threads()} thread" in out


def test_a_network_that_does_not_answer_alike_is_not_left_behind(
    exported, tmp_path, capsys, monkeypatch
):
    network, _, model = exported
    other, folder = copy.deepcopy(network), tmp_path / "base"
    with torch.no_grad():
        other.head.fc.bias[0] += 1e-3
    checkpoint.save(other, folder, preprocessing=PREPROCESSING)
    monkeypatch.setattr(command, "to_onnx", lambda *_: copy.deepcopy(model))
    before = sorted(folder.iterdir())
    assert command.main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder) in line and "differ" in line
    assert sorted(folder.iterdir()) == before
    # what is nearer than the tolerance is written; what is not compared is, and the table says so
    assert command.main([str(folder), "--tolerance", "0.01"]) == 0
    assert command.main([str(folder), "--no-check"]) == 0
    assert (folder / "model.onnx").is_file() and "not checked" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", [60.0, 0.0])
def test_repeats_take_turns(monkeypatch, seconds):
    monkeypatch.setattr(command, "SECONDS", seconds)
    turns = []
    took = command.in_alternation([lambda: turns.append("a"), lambda: turns.append("b")])
    # slow networks are timed less often; the first round is not counted
    repeats = command.REPEATS if seconds else command.FEWEST
    assert turns == ["a", "b"] * (repeats + 1)
    assert [len(each) for each in took] == [repeats] * 2


def test_images_of_a_folder_are_prepared_as_the_network_reads_them(tmp_path):
    for name, level in (("train/a.png", 0), ("test/a/a.png", 51), ("test/b/b.png", 255)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (level,) * 3).save(tmp_path / name)
    description = {"model": {"in_channels": 3}, "preprocessing": PREPROCESSING}
    images, source = choose_images(description, 32, tmp_path)
    # the test images alone: 51 and 255 of 255, less the mean, over the standard deviation
    expected = torch.tensor([(0.2 - 0.3) / 0.3, (1.0 - 0.3) / 0.3]).view(2, 1, 1, 1)
    torch.testing.assert_close(images, expected.expand(2, 3, 8, 8))
    assert str(tmp_path) in source


def test_without_images_that_fit_it_is_digits_or_noise():
    plain = {"model": {"in_channels": 3, "image_size": 16}}
    digits, source = choose_images(plain, 4)
    assert digits.shape == (4, 3, 16, 16) and "digits" in source and "no preprocessing" in source
    # the first digit's first row is blank paper
    assert digits[0, :, 0, 0].eq(-1).all()
    events = {"model": {"in_channels": 2}, "preprocessing": {"frames": 3, "image_size": 8}}
    frames, source = choose_images(events, 4)
    assert frames.shape == (4, 3, 2, 8, 8) and source == "noise"
    with pytest.raises(UserError, match="--images=here"):
        choose_images(events, 4, "here")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "folder=nowhere"),
        (["base", "--opset", "7"], "--opset=7"),
        (["base", "--batch-size", "0"], "--batch-size=0"),
        (["base", "--tolerance", "nan"], "--tolerance=nan"),
        (["base", "--images", "nowhere"], "--images=nowhere"),
        (["base", "--images", "broken"], "broken/a.png"),
        (["base", "--module", "nowhere_to_be_found"], "nowhere_to_be_found"),
    ],
)
def test_bad_input_is_one_line(saved, capsys, monkeypatch, arguments, named):
    (saved / "broken").mkdir()
    (saved / "broken" / "a.png").write_bytes(b"no image")
    monkeypatch.chdir(saved)
    assert command.main(arguments) == 2
    out, error = capsys.readouterr()
    (line,) = error.splitlines()
    assert named in line and not out
    assert not list(saved.rglob("model.onnx"))


def test_a_missing_package_is_named_with_its_remedy(saved, capsys, monkeypatch):
    monkeypatch.setattr(command, "PACKAGES", ("onnx", "nowhere_to_be_found"))
    assert command.main([str(saved / "base")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nowhere_to_be_found" in line and "pip install psvit[export]" in line
