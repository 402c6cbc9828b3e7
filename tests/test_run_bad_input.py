"""What a run refuses: one line that names the option, before any training starts."""

import runpy
from pathlib import Path

import pytest
from hydra.errors import HydraException
from image_files import FOLDER, images_of

from psvit.errors import UserError
from psvit.models import create_model
from psvit.pipeline import run
from psvit.pruning import checkpoint

RUN = Path(__file__).parents[1] / "run.py"


@pytest.fixture
def command(monkeypatch, capsys, tmp_path, tiny_run):
    """``python run.py`` in this process, which has imported all it takes: exit code and stderr."""

    def call(*overrides, full_error="0"):
        monkeypatch.setenv("HYDRA_FULL_ERROR", full_error)
        quiet = ("hydra/job_logging=none", "hydra/hydra_logging=none", "logger=none")
        monkeypatch.setattr(
            "sys.argv", [str(RUN), f"hydra.run.dir={tmp_path}/run", *quiet, *tiny_run, *overrides]
        )
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(RUN), run_name="__main__")
        return ended.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["pruning=nonsense"], "pruning/nonsense"),
        (["nonsense=1"], "nonsense"),
        (["pruning.ratio"], "pruning.ratio"),
        (["pruning=uniform", "pruning.ratio=1.0"], "pruning.ratio=1.0"),
        (["training.lr=0"], "training.lr=0: expected"),
        (["name=${nowhere}"], "nowhere"),
        (["~finetune.warmup_epochs"], "finetune.warmup_epochs=None: ~ takes it out"),
        (["paths.output_dir=elsewhere"], "paths.output_dir=elsewhere: is the folder that Hydra"),
        # what Lightning refuses
        (["+trainer.limit_val_batches=-3"], "limit_val_batches"),
    ],
)
def test_whoever_refuses_it_one_line(command, tmp_path, overrides, named):
    code, error = command(*overrides)
    assert code not in (0, None)
    (line,) = error.splitlines()
    assert named in line
    assert not (tmp_path / "run" / "base").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [("seed=-1", UserError), ("nonsense=1", HydraException), ("+trainer.x=0", UserError)],
)
def test_the_traceback_is_there_for_who_wants_it(command, override, expected):
    # what reaches the top is what Python prints with its traceback
    with pytest.raises(expected):
        command(override, full_error="1")


def unreadable(folder):
    options = images_of(train__cat=12, train__dog=12, test__cat=4, test__dog=4)(folder)
    path = folder / "train" / "dog" / "7.png"
    path.write_bytes(path.read_bytes()[:200])
    return options


def network_of(facts=None, **values):
    """Options that take a saved network of other values than the run's, or with these facts."""

    def options(folder):
        given = {
            "name": "meta_spikeformer",
            "embed_dims": [8, 16, 16, 16],
            "num_heads": 4,
            "strides": [2, 2, 2, 1, 1],
            "image_size": 32,
            "num_classes": 10,
            **values,
        }
        checkpoint.save(create_model(**given), folder, **facts or {})
        return [f"ckpt_path={folder}"]

    return options


def run_in_place_of_a_network(folder):
    network_of()(folder / "pruned")
    return [f"ckpt_path={folder}"]


def text_as_network(folder):
    (folder / "model.safetensors").write_text("no weights")
    (folder / "model.yaml").write_text("model: {name: meta_spikeformer}\nplan: {}\n")
    return [f"ckpt_path={folder}"]


CKPT, ROOT = "ckpt_path={folder}", "dataset.root={folder}"

# what is wrong -> (options, or what makes them; how the message begins; a word of what is right)
WRONG = {
    "no dataset folder": (FOLDER + ["dataset.root=/no/where"], "dataset.root=/no/where", "train/"),
    "dataset folder not given": (FOLDER, "dataset.root=???", "train/"),
    "empty dataset folder": (images_of(), ROOT, "train/"),
    "no test images": (images_of(train__cat=3, train__dog=3), ROOT, "test/"),
    "a class without images": (images_of(train__cat=3, train__dog=0, test__cat=3), ROOT, "dog"),
    "a class that is not trained": (
        images_of(train__cat=3, train__dog=3, test__cat=3, test__bird=3),
        ROOT,
        "'bird'",
    ),
    "an image that cannot be read": (unreadable, ROOT, "train/dog/7.png"),
    "a network that is not there": (
        ["ckpt_path=/no/where"],
        "ckpt_path=/no/where",
        "model.safetensors",
    ),
    "time steps of no loaded network": (
        ["ckpt_time_steps=2"],
        "ckpt_time_steps=2",
        "model.time_steps",
    ),
    "an empty folder for a network": (
        lambda folder: [CKPT.format(folder=folder)],
        CKPT,
        "model.safetensors",
    ),
    "no weights in the weights": (text_as_network, CKPT, "damaged"),
    "a network of another family": (
        network_of(name="sdt_v1", embed_dims=32, depth=1, strides=[2, 2, 1, 1]),
        CKPT,
        "sdt_v1",
    ),
    "a network of other classes": (network_of(num_classes=7), CKPT, "num_classes=7"),
    "a network of as many other classes": (
        network_of(facts={"classes": [*"012345678", "ten"]}),
        CKPT,
        "knows a class ten where dataset=digits has 9",
    ),
    "a run in place of its network": (run_in_place_of_a_network, CKPT, "but in its pruned"),
    "a network of another resolution": (network_of(image_size=64), CKPT, "image_size=64"),
    "image too small": (["dataset.image_size=8"], "model.image_size=8", "at least 16"),
    "heads that do not divide": (["model.num_heads=3"], "model.num_heads=3", "divide"),
    "heads of one channel": (
        ["model.num_heads=16"],
        "pruning.protect=stage3.block1.attn.query_key",
        "can lose none",
    ),
    "other classes than the data's": (["model.num_classes=7"], "model.num_classes=7", "has 10"),
    "another size than the images'": (
        ["model.image_size=64"],
        "model.image_size=64",
        "images of 32 pixels",
    ),
    "no time": (["model.time_steps=0"], "model.time_steps=0", "at least 1"),
    "a target out of reach": (
        ["pruning.target_memory_saving=0.95"],
        "pruning.target_memory_saving=0.95",
        "cannot be reached",
    ),
    "a multiple that no group has": (
        ["pruning.round_to=1000"],
        "pruning.round_to=1000",
        "the widest has",
    ),
    "operations out of reach": (
        ["pruning.budget=[memory,macs]", "pruning.target_saving=0.9"],
        "pruning.target_saving=0.9",
        "of macs; expected a lower target, larger pruning.ratios, or fewer",
    ),
    "operations that no cut saves": (
        ["pruning=global", "pruning.budget=macs", "pruning.target_saving=0.99"],
        "pruning.target_saving=0.99",
        "as far as it goes saves 0.",
    ),
    "a target that the kinds cannot reach": (
        ["pruning.kinds=[value]"],
        "pruning.target_memory_saving=0.224",
        "cannot be reached",
    ),
    "a pattern that matches nothing": (
        ["pruning.protect=['stage7.*']"],
        "pruning.protect=stage7.*",
        "matches no channel group",
    ),
    "everything protected": (
        ["pruning.protect=['*']"],
        "pruning.protect=['*']",
        "leaves no channel group of the kinds hidden, query_key, value to prune",
    ),
    "a ratio of 1": (["pruning.ratios=[0.5,1.0]"], "pruning.ratios=[0.5, 1.0]", "(0, 1)"),
    "too few images": (["dataset.train_images=3"], "dataset.train_images=3", "between"),
    "a bad seed": (["seed=-1"], "seed=-1", "whole number"),
    "a bad learning rate": (["training.lr=0"], "training.lr=0", "above 0"),
    "no epochs": (["trainer.max_epochs=0"], "trainer.max_epochs=0", "at least 1"),
    "no GPU": (["trainer=gpu"], "trainer.accelerator=gpu", "trainer=cpu"),
    "no GPUs": (["trainer=ddp"], "trainer.accelerator=gpu", "trainer=cpu"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told_before_training(config, tiny_run, tmp_path, monkeypatch, what):
    options, beginning, right = WRONG[what]
    folder, output = tmp_path / "given", tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("lightning.Trainer.fit", lambda *_: pytest.fail("training began"))
    cfg = config(*tiny_run, "logger=none", *(options(folder) if callable(options) else options))
    with pytest.raises(UserError) as error:
        run(cfg, output)
    message = str(error.value)
    assert message.startswith(beginning.format(folder=folder)) and right in message
    assert "\n" not in message
    assert not (output / "base").exists() and not (output / "results.json").exists()
