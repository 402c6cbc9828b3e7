"""``python -m psvit.export``: files, table, images, and one line for what is wrong."""

import copy
import shutil

import onnx
import pytest
import torch
from export_networks import alive, assert_same, cut, noise
from PIL import Image

from psvit.errors import UserError
from psvit.export import __main__ as command
from psvit.export import to_onnx
from psvit.export.images import choose_images
from psvit.pruning import checkpoint, prune

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


def test_a_network_in_double_precision_is_exported_in_single(saved, capsys):
    network, about = checkpoint.load(saved / "base")
    double = saved / "double"
    checkpoint.save(network.double(), double, preprocessing=about["preprocessing"])
    assert command.main([str(double), "--batch-size", "2"]) == 0
    assert "32/32" in capsys.readouterr().out
    model = onnx.load(double / "model.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.FLOAT in kinds and onnx.TensorProto.DOUBLE not in kinds


def test_why_there_is_no_onnx_of_a_network(saved, monkeypatch, capsys):
    """The exporter's own message tells how to report a fault of it, and not what is wrong."""

    def refuse(*_args, **_options):
        try:
            raise ValueError("an operator that ONNX lacks\nand more")
        except ValueError as error:
            raise torch.onnx.errors.OnnxExporterError("Failed; next steps: …") from error

    monkeypatch.setattr(torch.onnx, "export", refuse)
    assert command.main([str(saved / "base")]) == 2
    assert capsys.readouterr().err.endswith("no ONNX of it: an operator that ONNX lacks\n")


def test_a_network_that_does_not_answer_alike_is_not_left_behind(tmp_path, capsys, monkeypatch):
    network, folder = alive("tiny_export"), tmp_path / "base"
    model, other = to_onnx(network, noise(2, 3, 8, 8)), copy.deepcopy(network)
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


def test_hidden_images_are_left_out_and_linked_ones_read(tmp_path):
    names = ("more/c.png", "images/a/.b/hidden.png", "images/a/._a.png", "images/a/a.PNG")
    for level, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / name)
    (tmp_path / "images" / "b").symlink_to(tmp_path / "more")
    (tmp_path / "images" / "a" / "back").symlink_to(tmp_path / "images")
    description = {"model": {"in_channels": 3, "image_size": 8}}
    images, _ = choose_images(description, 32, tmp_path / "images")
    # levels 3 and 0 of 255, put to -1 … 1
    expected = torch.tensor([6 / 255 - 1, -1.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(images, expected.expand(2, 3, 8, 8))


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
    assert "nowhere_to_be_found" in line and 'pip install -e ".[export]"' in line
