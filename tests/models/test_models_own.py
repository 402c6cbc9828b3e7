"""docs/own_network.md, taken at its word."""

import re
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from psvit.models import create_model, factory

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs/own_network.md").read_text(), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder outside the package with the page's two files, as the current one."""
    (python, code), (yaml, config) = BLOCKS[0], BLOCKS[1]
    assert (python, yaml) == ("python", "yaml")
    (tmp_path / "my_network.py").write_text(code)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/my_network.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_network", None)
    factory._REGISTRY.pop("my_network", None)


def test_the_page_s_check_passes(folder, capsys):
    check = BLOCKS[3][1]
    assert "masked(" in check
    exec(compile(check, "own_network.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [
        "stage1.block1.hidden hidden 16",
        "stage1.block2.hidden hidden 16",
        "stage1.stream stream 32",
    ]


def test_a_config_from_outside_the_package(folder):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["model=my_network", f"hydra.searchpath=[file://{folder}]"])
    values = OmegaConf.to_container(cfg.model, resolve=True)
    network = create_model(**{**values, "num_classes": 4, "in_channels": 2})
    assert type(network).__name__ == "MyNetwork"
    # the spec rebuilds it where nothing has imported it yet
    sys.modules.pop("my_network")
    factory._REGISTRY.pop("my_network")
    assert create_model(**network.spec).head.fc.out_features == 4
