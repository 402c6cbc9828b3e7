"""A saved network that is damaged, edited or hostile is refused in one line, and runs nothing."""

import shutil
import struct
import sys

import pytest
import torch
import yaml
from plans import random_plan
from safetensors.torch import load_file, save_file

from psvit.errors import UserError
from psvit.models import factory
from psvit.pruning import checkpoint, prune
from psvit.pruning.description import checksum

WEIGHTS, DESCRIPTION = "model.safetensors", "model.yaml"
HIDDEN, VALUE = "stage1b.block1.mlp.hidden", "stage3.block1.attn.value"


@pytest.fixture(scope="module")
def saved(_alive, tmp_path_factory):
    """The folder of a pruned network, which no test may change."""
    folder = tmp_path_factory.mktemp("saved")
    groups = _alive.channel_groups().values()
    # a few groups, as YAML is read slowly
    plan = random_plan([g for g in groups if g.name in (HIDDEN, VALUE, "stage1a.stream")], 0.4)
    facts = {"preprocessing": {"mean": [0.5]}, "classes": ["a", "é"], "metrics": {"top1": 97.75}}
    checkpoint.save(prune(_alive, plan), folder, plan, dtype=torch.float32, **facts)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "copy")


def refusal(folder, **options):
    """The one line with which loading is refused."""
    with pytest.raises(UserError) as error:
        checkpoint.load(folder, option="pruning.from", **options)
    message = str(error.value)
    assert message.startswith(f"pruning.from={folder}: ")
    assert message.isprintable() and len(message) < len(str(folder)) + 600
    return message


def described(folder):
    return yaml.safe_load((folder / DESCRIPTION).read_text())


def describe(folder, description, sign=False):
    if sign:
        description["sha256"]["description"] = checksum(description)
    (folder / DESCRIPTION).write_text(yaml.safe_dump(description))


def weigh(folder, change):
    """Change the weights and sign them, so that nothing but their content is wrong."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    description = described(folder)
    description["sha256"]["weights"] = checkpoint.digest(folder / WEIGHTS)
    describe(folder, description)


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"no {name} there" in refusal(folder)
    shutil.rmtree(folder)
    assert "expected a folder with" in refusal(folder)
    folder.write_text("a file")
    assert "expected a folder with" in refusal(folder)


def flip(position):
    def damage(data):
        damaged = bytearray(data)
        damaged[position] ^= 1
        return bytes(damaged)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:50],
        lambda data: data + b"\0",
        lambda data: struct.pack("<Q", 2**60) + b"{}",
        flip(4),
        flip(100),
        flip(-1),
        # what git leaves of a file that it keeps elsewhere
        lambda data: b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_weights_that_are_not_those_described(folder, damage):
    path = folder / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    message = refusal(folder)
    assert f"{WEIGHTS} does not match {DESCRIPTION}" in message and "copy the whole" in message


@pytest.mark.parametrize("data", [b"", b"\0" * 20, struct.pack("<Q", 2**60) + b"{}", b"no weights"])
def test_a_signed_file_that_holds_no_weights(folder, data):
    (folder / WEIGHTS).write_bytes(data)
    description = described(folder)
    description["sha256"]["weights"] = checkpoint.digest(folder / WEIGHTS)
    describe(folder, description)
    assert f"{WEIGHTS} holds no weights" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("head.fc.bias"), "head.fc.bias is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra is not in that network"),
        (lambda t: t.update({"head.fc.bias": torch.zeros(4)}), "head.fc.bias is [4], not [5]"),
        (lambda t: t.update({"head.fc.bias": torch.zeros(5, 1)}), "is [5, 1], not [5]"),
    ],
)
def test_signed_weights_that_do_not_fit(folder, change, named):
    weigh(folder, change)
    message = refusal(folder)
    assert f"{WEIGHTS} does not fit the network of {DESCRIPTION}" in message and named in message


def model(**values):
    return lambda d: d["model"].update(values)


def plan(**kept):
    return lambda d: d["plan"].update({key.replace("_", "."): value for key, value in kept.items()})


def kept(indices):
    return lambda d: d["plan"].update({HIDDEN: indices})


def uncut(description):
    description["plan"] = {}


def edits(*changes):
    return lambda d: [change(d) for change in changes]


MLPS = [f"{stage}.block1.mlp.hidden" for stage in ("stage1a", "stage1b", "stage2", "stage3")]
NO_NETWORK = "describes no network"
# what is wrong -> (edit of the description, a word of the line if the edit is signed)
EDITS = {
    "another format": (lambda d: d.update(format=2), "update it"),
    "a strange format": (lambda d: d.update(format=True), "format"),
    "no format": (lambda d: d.pop("format"), "lacks format"),
    "no model": (lambda d: d.pop("model"), "lacks model"),
    "model a word": (lambda d: d.update(model="meta_spikeformer"), "model"),
    "model without a name": (lambda d: d["model"].pop("name"), "model"),
    "model of a strange name": (model(name=["meta_spikeformer"]), "model"),
    "module of a strange name": (model(module=["os"]), "model"),
    "an unknown model": (model(name="vgg16"), "unknown network"),
    "an unknown value": (model(patch_size=4), "patch_size"),
    "a value that makes no network": (model(num_heads=3), "divide"),
    "a value that is no number": (model(time_steps="4"), "model.time_steps"),
    "a value that is nothing": (model(embed_dims=None), "model.embed_dims"),
    "values that a word names": (model(embed_dims={"a": 1}), "model.embed_dims"),
    "a value without end": (model(mlp_ratio=float("inf")), NO_NETWORK),
    "no ratio": (model(mlp_ratio=float("nan")), "model.mlp_ratio"),
    "more memory than there is": (edits(model(embed_dims=[2**17] * 4), uncut), "too many"),
    "a huge network that is cut to the size of this": (
        edits(model(mlp_ratio=1e9), lambda d: d["plan"].update({name: [0, 1] for name in MLPS})),
        "too many",
    ),
    "more memory than can be counted": (model(embed_dims=[2**62] * 4), NO_NETWORK),
    "more blocks than weights": (model(depth=[1, 1, 1, 1, 10**9]), "1000000004 blocks"),
    "as many blocks of another kind": (model(name="sdt_v1", depth=10**12), "blocks"),
    "deeper": (model(depth=[1, 1, 1, 1, 2]), "stage4.block2.attn.key.bn1.bias is missing"),
    "fewer classes": (model(num_classes=4), "does not fit"),
    "another family": (model(name="e_spikeformer"), NO_NETWORK),
    "a terminal's commands": (model(name="\x1b[2J\x07a\nb"), "unknown network"),
    "a long name": (model(name="x" * 10**5), NO_NETWORK),
    "no plan": (lambda d: d.pop("plan"), "lacks plan"),
    "plan a list": (lambda d: d.update(plan=[1, 2]), "needs as plan the kept"),
    "plan of numbers": (lambda d: d.update(plan={3: [1, 2]}), "needs as plan the kept"),
    "plan of a group that does not exist": (plan(stage9_mlp=[0]), "no such channel group"),
    "plan outside the group": (kept([0, 99]), "the group has 32"),
    "plan below the group": (kept([-1, 0]), f"plan of {HIDDEN}"),
    "plan not ascending": (kept([2, 1]), f"plan of {HIDDEN}"),
    "plan with an index twice": (kept([1, 1]), f"plan of {HIDDEN}"),
    "plan of words": (kept(["a"]), f"plan of {HIDDEN}"),
    "plan of truths": (kept([False, True]), f"plan of {HIDDEN}"),
    "plan of fractions": (kept([0.0, 1.0]), f"plan of {HIDDEN}"),
    "plan of a word": (kept("01"), f"plan of {HIDDEN}"),
    "plan without indices": (kept([]), f"plan of {HIDDEN}"),
    "plan of nothing": (kept(None), f"plan of {HIDDEN}"),
    "plan uneven over heads": (plan(stage3_block1_attn_value=[0, 1, 8]), "every head"),
    "plan forgotten": (uncut, "does not fit"),
    "plan of another cut": (kept([0, 1]), f"{HIDDEN.removesuffix('hidden')}bn1.bias is"),
    "no dtype": (lambda d: d.pop("dtype"), "lacks dtype"),
    "dtype of a network that is none": (lambda d: d.update(dtype="int8"), "float16"),
    "dtype a list": (lambda d: d.update(dtype=["float32"]), "float16"),
    "no provenance": (lambda d: d.pop("provenance"), "lacks provenance"),
    "provenance a word": (lambda d: d.update(provenance="here"), "provenance"),
    "no hash of the weights": (lambda d: d["sha256"].pop("weights"), "sha256"),
    "a short hash": (lambda d: d["sha256"].update(weights="ab"), "sha256"),
    "another hash": (lambda d: d["sha256"].update(weights="0" * 64), "does not match"),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_description(folder, what):
    edit, named = EDITS[what]
    description = described(folder)
    edit(description)
    describe(folder, description)
    message = refusal(folder)
    assert "sha256" in named or DESCRIPTION in message
    # whoever edits can sign as well; then it must make sense
    describe(folder, description, sign=True)
    assert named in refusal(folder)


def test_edits_that_make_another_network_of_the_same_weights_are_noticed(folder):
    checkpoint.load(folder)
    for edit in (
        model(attention_scale=0.25),
        model(num_heads=2),
        model(time_steps=3),
        model(strides=[1, 2, 2, 2, 1]),
        lambda d: d.update(preprocessing={"mean": [0.25]}),
        lambda d: d.update(metrics={"top1": 99.75}),
        lambda d: d.update(note="added"),
        lambda d: d.pop("metrics"),
        lambda d: d["sha256"].update(description="0" * 64),
    ):
        description = described(folder)
        before = yaml.safe_dump(description)
        edit(description)
        assert yaml.safe_dump(description) != before
        (folder / DESCRIPTION).write_text(yaml.safe_dump(description))
        assert "edited after it was written" in refusal(folder)
        (folder / DESCRIPTION).write_text(before)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"model: {",
        b"\xff\xfe\x00",
        b"3\n",
        b"a: b: c\n",
        b"a: &x [1]\nb: *x\n",
        b"&x [*x]\n",
        b"[" * 600,
        b"model: {name: a, 3: b}\n",
        b"a: " + b"9" * 5000,
        b"a: \x07\n",
        b"{[1]: 2}\n",
        b"!!python/object/apply:os.system [exit 1]\n",
    ],
)
def test_a_description_that_is_none(folder, content):
    (folder / DESCRIPTION).write_bytes(content)
    assert DESCRIPTION in refusal(folder)


OWN = """
from psvit.models import factory, register_model
register_model("own_for_test", factory.MetaSpikeFormer, num_heads=1)
"""


def test_a_module_is_imported_at_the_caller_s_word_alone(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_for_test.py").write_text(OWN)
    monkeypatch.setattr(factory, "_REGISTRY", dict(factory._REGISTRY))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    description = described(folder)
    description["model"].update(name="own_for_test", module="own_for_test")
    describe(folder, description, sign=True)
    try:
        for given_module in (None, "json"):
            assert "model.module=own_for_test" in refusal(folder, module=given_module)
            assert "own_for_test" not in sys.modules
        assert checkpoint.main([str(folder)]) == 2
        assert "give --module own_for_test yourself" in capsys.readouterr().err
        network, _ = checkpoint.load(folder, module="own_for_test")
        assert network.spec["module"] == "own_for_test"
        assert "must not choose" in refusal(folder)
        assert "own_for_test" in refusal(folder, module="nowhere")
    finally:
        sys.modules.pop("own_for_test", None)
